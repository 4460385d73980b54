"""Answers with probabilities, of mixed tasks and of whole files: the same by every way."""

import csv
import json

import numpy as np
import pytest
import torch

from ds_moe_mtl.cli import main
from ds_moe_mtl.config import UserError
from ds_moe_mtl.evaluation import MultiTaskModel, predict_files
from ds_moe_mtl.models.description import save_folder
from ds_moe_mtl.training.network import new_network
from ds_moe_mtl.training.plan import make_plan, routing_options, task_specs
from tests.support.launch import launch, start
from tests.support.steps import quiet
from tests.support.tiny import WORDS, differ_experts, spread_gates, tiny_config, write_tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with an untrained model of the three tiny tasks."""
    folder = write_tiny(tmp_path_factory.mktemp("predict"))
    config = tiny_config(folder)
    plan = make_plan(config, task_specs(config), quiet)
    network, _ = new_network(plan)
    spread_gates(network)
    differ_experts(network)
    torch.manual_seed(3)
    for head in network.heads.linears:
        torch.nn.init.normal_(head.weight, std=0.5)
    tasks = [spec.to_dict() for spec in plan.specs]
    description = network.description("mt_tag", routing_options(config, len(tasks)), tasks, {})
    save_folder(folder / "model", description, network.state_dict(), plan.tokenizer)
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return MultiTaskModel.from_pretrained(folder / "model", "cpu")


def _texts(count, seed=0):
    draw = np.random.default_rng(seed)
    return [" ".join(draw.choice(WORDS, size=draw.integers(1, 15))) for _ in range(count)]


def test_probabilities_are_the_softmax_and_name_the_same_label(model):
    texts = _texts(9)
    plain = model.predict("colour", texts)
    answers = model.predict("colour", texts, return_probabilities=True)
    assert [answer["label"] for answer in answers] == plain
    for answer in answers:
        shares = answer["probabilities"]
        assert list(shares) == list(model.task("colour").labels)
        assert sum(shares.values()) == pytest.approx(1)
        assert answer["probability"] == shares[answer["label"]] == max(shares.values())
    for answer, best in zip(answers, model.predict("colour", texts, top_k=1), strict=True):
        assert best["probabilities"] == {answer["label"]: answer["probability"]}
    with pytest.raises(UserError, match="amount is a regression task, whose answers have no"):
        model.predict("amount", [("one", "two")], return_probabilities=True)
    with pytest.raises(UserError, match="top_k: 0; allowed"):
        model.predict("colour", texts, top_k=0)


def test_mixed_tasks_in_one_call_are_answered_as_each_by_itself(model):
    one, two = _texts(20, 1), _texts(20, 2)
    pairs = list(zip(one, two, strict=True))
    alone = {
        "colour": model.predict("colour", one),
        "same": model.predict("same", pairs),
        "amount": model.predict("amount", pairs),
    }
    order = np.random.default_rng(0).permutation(60)
    asked = [(name, n) for name in alone for n in range(20)]
    mixed = [(asked[i][0], (one if asked[i][0] == "colour" else pairs)[asked[i][1]]) for i in order]
    found = model.predict_many(mixed)
    for i, value in zip(order, found, strict=True):
        name, n = asked[i]
        if name == "amount":
            assert value == pytest.approx(alone[name][n], abs=1e-5)
        else:
            assert value == alone[name][n]
    assert model.predict_many([]) == []
    with pytest.raises(UserError, match="colour: example 2 has a int"):
        model.predict_many([("same", pairs[0]), ("colour", "red"), ("colour", 5)])
    with pytest.raises(UserError, match="example 0 is"):
        model.predict_many(["colour"])


def _write_rows(path, rows=50):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text", "first", "second"])
        writer.writerows(
            [n, *texts]
            for n, texts in enumerate(zip(*[_texts(rows, s) for s in (4, 5, 6)], strict=True))
        )
    return path


def test_a_file_is_answered_row_by_row_as_the_examples_are(folder, model, tmp_path, monkeypatch):
    monkeypatch.setattr(predict_files, "ROWS_AT_ONCE", 16)
    source = _write_rows(tmp_path / "rows.csv")
    words = ["predict", str(folder / "model"), "--input", str(source), "--probabilities"]
    assert main([*words, "--output", str(tmp_path / "out.jsonl")]) == 0
    rows = list(csv.DictReader(source.open(newline="")))
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [{key: row[key] for key in rows[0]} for row in found] == rows
    texts, pairs = [r["text"] for r in rows], [(r["first"], r["second"]) for r in rows]
    assert [row["predicted_colour"] for row in found] == model.predict("colour", texts)
    assert [row["predicted_same"] for row in found] == model.predict("same", pairs)
    shares = model.predict("same", pairs, return_probabilities=True)
    np.testing.assert_allclose(
        [row["predicted_same_probability"] for row in found],
        [share["probability"] for share in shares],
        atol=1e-6,
    )
    np.testing.assert_allclose(
        [row["predicted_amount"] for row in found], model.predict("amount", pairs), atol=1e-5
    )
    assert main([*words, "--output", str(tmp_path / "out.csv"), "--task", "colour"]) == 0
    again = list(csv.DictReader((tmp_path / "out.csv").open(newline="")))
    assert [row["predicted_colour"] for row in again] == [row["predicted_colour"] for row in found]
    assert "predicted_same" not in again[0]


def test_a_bad_row_ends_the_work_with_its_line_or_goes_without_an_answer(folder, tmp_path, capsys):
    source = tmp_path / "rows.jsonl"
    lines = ['{"text": "red"}', '{"text": 5}', "{", '{"other": 1}', '{"text": "a cat"}']
    source.write_text("\n".join(lines))
    words = ["predict", str(folder / "model"), "--task", "colour", "--input", str(source)]
    assert main(words) == 2
    assert f"{source}: line 2: has a int (5) in 'text'" in capsys.readouterr().err
    assert main([*words, "--bad-rows", "skip"]) == 0
    said = capsys.readouterr()
    rows = [json.loads(line) for line in said.out.splitlines()]
    assert [("predicted_colour" in row, row["predicted_error"] is None) for row in rows] == [
        (True, True),
        (False, False),
        (False, False),
        (False, False),
        (True, True),
    ]
    assert "3 of 5 rows have no answer; the first: line 2" in said.err
    source.write_text('{"text": "red"}\n{"text": "red", "predicted_colour": "mine"}\n')
    assert main(words) == 2
    assert "line 2 has 'predicted_colour' already" in capsys.readouterr().err


def test_a_data_root_that_is_not_there_is_refused(folder, tmp_path, capsys):
    model, less = str(folder / "model"), tmp_path / "less"
    for words in (
        ["evaluate", model],
        ["routes", model],
        ["remove", model, "--task", "colour", "--output", str(less)],
    ):
        assert main([*words, "--data-root", str(tmp_path / "no")]) == 2
        said = capsys.readouterr()
        assert "--data-root: " in said.err and "no such folder" in said.err and not said.out
    assert not less.exists()


def test_a_bad_row_that_is_skipped_at_the_second_try_needs_no_other_output(
    folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("ds_moe_mtl.evaluation.predict_files.ROWS_AT_ONCE", 2)
    source, output = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    words = ["predict", str(folder / "model"), "--task", "colour", "--input", str(source)]
    words += ["--output", str(output)]
    for lines, hint in (
        (['{"text": 5}', '{"text": "red"}', '{"text": "a cat"}'], "allowed: --bad-rows skip\n"),
        (['{"text": "red"}', '{"text": "a cat"}', "{"], "skip, and another --output\n"),
    ):
        source.write_text("\n".join(lines))
        assert main(words) == 2
        assert capsys.readouterr().err.endswith(hint)
        again = output if hint.startswith("allowed") else tmp_path / "other.jsonl"
        words[-1] = str(again)
        assert main([*words, "--bad-rows", "skip"]) == 0
        assert len(again.read_text().splitlines()) == 3
        words[-1] = str(tmp_path / "second.jsonl")


def test_a_killed_prediction_goes_on_and_ends_with_the_same_file(folder, tmp_path):
    source = _write_rows(tmp_path / "rows.csv", 400)
    program = tmp_path / "small_pieces.py"
    program.write_text(
        "import sys; from ds_moe_mtl.evaluation import predict_files as p; p.ROWS_AT_ONCE = 40; "
        "from ds_moe_mtl.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [program, "predict", folder / "model", "--input", source, "--output"]
    whole, cut = tmp_path / "whole.csv", tmp_path / "cut.csv"
    done = launch([*command, whole], 1, "fork")
    assert done.returncode == 0, done.text
    with start([*command, cut], 1, "fork") as running:
        running.wait_until(lambda: len(list(tmp_path.glob("cut.csv.part/0*.csv"))) >= 2)
        running.kill()
    assert not cut.exists()
    pieces = {p: p.stat().st_mtime_ns for p in tmp_path.glob("cut.csv.part/0*-40.csv")}
    again = launch([*command, cut], 1, "fork")
    assert again.returncode == 0, again.text
    assert f"{40 * len(pieces)} rows are done already" in again.stderr
    assert cut.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--input", "rows.csv", "--column", "nope=text"], "no task reads 'nope'; allowed: "),
        (["--input", "rows.csv", "--column", "text"], "allowed: TASK_COLUMN=FILE_COLUMN"),
        (["--input", "other.csv"], "no such column: colour reads 'text'; same reads"),
        (["--input", "rows.csv", "--output", "rows.csv"], "rows.csv exists; allowed: a new file"),
        (["--input", "rows.csv", "--output", "out.txt"], "one of .jsonl, .csv, .tsv, .parquet"),
        (["--input", "rows.csv", "--output", "no/out.csv"], "no such folder"),
        (["--input", "no.csv"], "no such file"),
        (["--output", "out.csv", "--task", "colour"], "--output: allowed with --input of"),
        (["--input", "taken.csv"], "has a column 'predicted_colour' already"),
        ([], "allowed: one --task"),
    ],
)
def test_what_cannot_be_predicted_is_one_line(folder, tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    _write_rows(tmp_path / "rows.csv", 3)
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    (tmp_path / "taken.csv").write_text("text,predicted_colour\nred,x\n")
    assert main(["predict", str(folder / "model"), *words]) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.splitlines()) == 1
