"""ds-moe-mtl reproduce: tables at the smoke budget, from stage one to the comparison."""

import json
import shutil

import pytest

from ds_moe_mtl.ranks.rendezvous import rendezvous
from ds_moe_mtl.studies.tables.runs import plan_table, table_jobs
from ds_moe_mtl.studies.tables.schema import load_budgets, load_mixtures, load_table
from tests.support.commands import run_commands
from tests.support.paper_data import write_paper_data
from tests.support.pictures import share_of_ink
from tests.support.tiny import write_encoder

TABLES = ["table1", "table2", "table4", "table6"]
"""Of every kind of table: one mixture, unseen tasks, larger encoders, chosen gates."""
LOST = "finetune/glue_mttag_minilm/imdb-0.1-random"


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
    shutil.rmtree(folder / "smoke" / LOST)
    again = run_commands(
        [
            ["reproduce", "table1", *common],
            ["reproduce", "table6", "--print", "--json", *common],
            ["reproduce", "table1", *common, "train.lr=0.5"],
            ["reproduce", "table9", *common],
            ["reproduce", "table4", "--budget=cpu", f"--output={folder}"],
            ["reproduce", "table1", "nonsense"],
            ["reproduce", "train.steps=3"],
            ["reproduce", "table1", "--budget=small"],
            ["reproduce", "table1", "--jobs=0"],
            ["reproduce", "table1", "table2", "--only=glue_dense_minilm"],
            ["reproduce", "table1", "--only=MT-TaG", *common],
            ["reproduce", "table1", "table6", "--jobs=2", *common],
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
    assert share_of_ink(folder / f"{table}.png") > 0.01


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
    table6 = json.loads(again[1].stdout)
    assert (table6["cells"], table6["done"]) == (12, 11)


def test_jobs_run_what_is_left_and_no_more(reproduced):
    folder, answers, again = reproduced
    assert again[-1].status == 0, again[-1].text
    logs = [path.name for path in (folder / "logs").iterdir()]
    assert logs == ["table6__Random___IMDB_10%.log"]
    assert "0 of 1 left" in again[-1].stdout and "12 of 12 cells done" in again[-1].stdout
    # The same folder, seed and rows: the same score as without jobs.
    shown = answers["table6"].stdout.partition("## Gates")[2].partition("- Run on")[0]
    assert shown and shown in again[-1].stdout


def test_tables_that_run_at_once_share_mixtures_and_cells(tmp_path):
    smoke, mixtures = load_budgets()["smoke"], load_mixtures()
    own = [f"model.encoder={write_encoder(tmp_path / 'encoder')}"]
    plans = {
        name: plan_table(name, load_table(name), "smoke", smoke, mixtures, tmp_path, own)
        for name in ("table1", "table2", "table3", "table6")
    }
    jobs = table_jobs(plans, lambda *part: part, rendezvous({}), print)
    by_name = {job.name: job for job in jobs}
    assert len(by_name) == len(jobs)
    assert [job.name for job in jobs if not job.needs and "_" in job.name] == [
        *("glue_dense_minilm", "glue_switch_minilm", "glue_mttag_minilm"),
        *("cglue_dense_minilm", "cglue_switch_minilm", "cglue_mttag_minilm"),
    ]
    assert by_name["table1, Single-Task / RTE"].needs == ()
    assert by_name["table1, MT-TaG / RTE"].needs == ("glue_mttag_minilm",)
    assert by_name["table1, MT-TaG / RTE"].arguments == ("table1", "MT-TaG / RTE")
    assert "table3, MT-TaG, GLUE / RTE" not in by_name  # table1's
    assert by_name["table3, MT-TaG, C-GLUE / RTE"].needs == ("cglue_mttag_minilm",)
    assert "table6, MNLI / SciTail 10%" not in by_name  # table2's


def test_tables_that_ask_for_other_seeds_of_one_cell_take_turns(tmp_path):
    cpu, mixtures = load_budgets()["cpu"], load_mixtures()
    own = [f"model.encoder={write_encoder(tmp_path / 'encoder')}"]
    plans = {
        name: plan_table(name, load_table(name), "cpu", cpu, mixtures, tmp_path, own)
        for name in ("table2", "table6")
    }
    jobs = table_jobs(plans, lambda *part: part, rendezvous({}), print)
    (second,) = [job for job in jobs if job.name == "table6, SST-2 / IMDB 10%"]
    assert second.needs == ("table2, MT-TaG / IMDB 10%", "glue_mttag_minilm")


def test_mistakes_are_one_line_and_status_2(reproduced):
    words = (
        "different: train.lr",
        "unknown table 'table9'",
        "table4: its encoders are too large for the budget cpu",
        "unknown table 'nonsense'",
        "no table is named; allowed: table1 to table8",
        "--budget: 'small'; allowed: smoke, cpu",
        "--jobs: 0; allowed: at least 1",
        "--only with 2 tables; allowed: one table",
        "--only: 'MT-TaG' is no part of the table; allowed: glue_dense_minilm",
    )
    for answer, word in zip(reproduced[2][2:-1], words, strict=True):
        assert answer.status == 2 and word in answer.stderr, answer.text
        assert len(answer.stderr.strip().splitlines()) == 1 and "Traceback" not in answer.text


def test_what_a_smoke_leaves_out_is_not_shown_as_complete(reproduced):
    found = facts(reproduced[0], "table1")
    assert found["rows"][0]["ours"]["MNLI"] is None and found["rows"][0]["ours"]["all"] is None
    assert found["rows"][0]["ours"]["RTE"] is not None
