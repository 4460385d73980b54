"""ds-moe-mtl reproduce: the smoke budget of every table, from stage one to the comparison."""

import json

import pytest

from tests.support.commands import run_commands
from tests.support.paper_data import write_paper_data
from tests.support.tiny import write_encoder

TABLES = [f"table{n}" for n in range(1, 9)]


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory):
    """The folder of all tables' runs, their answers, and those of a second call."""
    folder = tmp_path_factory.mktemp("reproduce")
    common = [
        "--budget=smoke",
        f"--output={folder}",
        f"model.encoder={write_encoder(folder / 'encoder')}",
        f"data.root={write_paper_data(folder / 'data')}",
        f"data.cache={folder / 'cache'}",
        "train.precision=fp32",
        "train.threads=1",
    ]
    first = run_commands([["reproduce", table, *common] for table in TABLES])
    again = run_commands(
        [
            ["reproduce", "table1", *common],
            ["reproduce", "table6", "--print", "--json", *common],
            ["reproduce", "table1", *common, "train.lr=0.5"],
            ["reproduce", "table9", *common],
            ["reproduce", "table4", "--budget=cpu", f"--output={folder}"],
            ["reproduce", "table1", "nonsense"],
        ]
    )
    return folder / "smoke", dict(zip(TABLES, first, strict=True)), again


def facts(folder, table):
    return json.loads((folder / f"{table}.json").read_text())


@pytest.mark.parametrize("table", TABLES)
def test_the_smoke_of_a_table_runs_all_its_cells(reproduced, table):
    folder, answers, _ = reproduced
    assert answers[table].status == 0, answers[table].text
    found = facts(folder, table)
    assert found["done"] == found["cells"] > 0
    assert len(found["rows"]) * len({s["column"] for s in found["scores"]}) == found["cells"]
    text = (folder / f"{table}.md").read_text()
    assert "| paper |" in text and "| ours |" in text and "the scores mean nothing" in text
    assert text in answers[table].stdout


def test_a_mixture_that_tables_share_is_trained_once(reproduced):
    folder, answers, _ = reproduced
    assert "complete already" not in answers["table1"].stdout.partition("cell 1 of")[0]
    assert "glue_mttag_minilm is complete already" in answers["table6"].stdout


def test_rows_begin_with_the_gates_that_their_table_names(reproduced):
    folder, _, _ = reproduced
    gates = {
        s["row"]: s["gate"] for s in facts(folder, "table6")["scores"] if "IMDB" in s["column"]
    }
    assert gates["Random"] == "random" and gates["SST-2"] == "sst2" and gates["RTE"] == "rte"
    picked = [s for s in facts(folder, "table6")["scores"] if s["row"] == "auto"]
    for score in picked:
        losses = score["donor_losses"]
        assert score["gate"] == min(losses, key=losses.get) and "random" in losses
    tag = [s for s in facts(folder, "table2")["scores"] if s["row"] == "MT-TaG"]
    assert {s["column"]: s["gate"] for s in tag}["IMDB 1%"] == "sst2"


def test_a_second_call_trains_nothing_and_prints_the_same(reproduced):
    folder, answers, again = reproduced
    assert again[0].status == 0 and "step 1/" not in again[0].stdout, again[0].text
    assert (folder / "table1.md").read_text() in again[0].stdout
    assert json.loads(again[1].stdout)["cells"] == 12


def test_mistakes_are_one_line_and_status_2(reproduced):
    words = (
        "different: train.lr",
        "unknown table 'table9'",
        "table4: its encoders are too large for the budget cpu",
        "'nonsense' sets nothing",
    )
    for answer, word in zip(reproduced[2][2:], words, strict=True):
        assert answer.status == 2 and word in answer.stderr, answer.text
        assert len(answer.stderr.strip().splitlines()) == 1 and "Traceback" not in answer.text


def test_what_a_smoke_leaves_out_is_not_shown_as_complete(reproduced):
    found = facts(reproduced[0], "table1")
    assert found["rows"][0]["ours"]["MNLI"] is None and found["rows"][0]["ours"]["all"] is None
    assert found["rows"][0]["ours"]["RTE"] is not None
