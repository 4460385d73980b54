"""ds-moe-mtl evaluate: dev rows, files of labelled rows, reports; ds-moe-mtl data before a run."""

import csv
import json

import pytest

from ds_moe_mtl.cli import main
from ds_moe_mtl.config import dump_config
from ds_moe_mtl.data import read_split
from ds_moe_mtl.evaluation import MultiTaskModel
from tests.support.commands import run_commands
from tests.support.kinds import KINDS, write_kinds
from tests.support.launch import ROOT
from tests.support.tiny import tiny_config, write_encoder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run over a task of every kind, and results.json."""
    folder = tmp_path_factory.mktemp("kinds")
    write_encoder(folder / "encoder")
    tasks = write_kinds(folder / "data")
    tasks[0]["test"] = tasks[0]["train"]
    (folder / "tasks.json").write_text(json.dumps(tasks))
    config = tiny_config(
        folder,
        deepspeed=str(ROOT / "ds_configs/deepspeed/zero1.json"),
        train={"lr": 1e-2, "steps": 6, "batch_size": 16},
    )
    (folder / "run.yaml").write_text(dump_config(config))
    (answer,) = run_commands([["train", folder / "run.yaml"]])
    assert answer.status == 0, answer.text
    return folder, json.loads((folder / "run/results.json").read_text())


def evaluated(capsys, *words):
    assert main(["evaluate", *map(str, words), "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def dev_columns(folder, name):
    """Return a task's dev rows."""
    spec = MultiTaskModel.from_pretrained(folder / "run", "cpu").task(name)
    return read_split(spec, "validation", None)


def dev_file(folder, name):
    """Write a task's dev rows and return the file."""
    columns = dev_columns(folder, name)
    path = folder / f"dev_{name}.jsonl"
    rows = zip(*columns.values(), strict=True)
    path.write_text(
        "".join(json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in rows)
    )
    return path


def test_dev_rows_and_a_file_of_them_score_as_the_run_did_in_every_kind(trained, capsys):
    folder, results = trained
    told = evaluated(capsys, folder / "run")
    assert tuple(told) == KINDS and not any(report["note"] for report in told.values())
    for name in KINDS:
        path = dev_file(folder, name)
        (of_file,) = evaluated(capsys, folder / "run", "--input", path, "--task", name).values()
        for report in (told[name], of_file):
            for key in ("metric", "value", "examples", "metrics"):
                assert report.get(key) == results["tasks"][name].get(key), name
        for key in ("classes", "confusion", "calibration", "interval", "mean_cost"):
            assert of_file[key] == told[name][key], (name, key)
        worst = [each["row"] for each in of_file["worst"]]
        assert worst and all(place.startswith("line ") for place in worst)
        ends = told[name]["interval"]
        assert ends["low"] <= told[name]["value"] <= ends["high"]


def test_test_rows_score_as_at_the_runs_end(trained, capsys):
    folder, results = trained
    told = evaluated(capsys, folder / "run", "--split", "test", "--worst", "0")
    assert list(told) == ["colour"] and told["colour"]["worst"] == []
    assert told["colour"]["metrics"] == results["test"]["colour"]["metrics"]


def test_columns_of_another_name_are_read_and_texts_are_whole_in_json(trained, capsys):
    folder, results = trained
    columns = dev_columns(folder, "colour")
    path = folder / "renamed.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerow(["verdict", "said"])
        csv.writer(file).writerows(zip(columns["label"], columns["text"], strict=True))
    renamed = ("--column", "text=said", "--column", "colour.label=verdict")
    report = evaluated(capsys, folder / "run", "--input", path, "--task", "colour", *renamed)[
        "colour"
    ]
    assert report["value"] == results["tasks"]["colour"]["value"]
    for each in report["worst"]:
        line = int(each["row"].removeprefix("line "))
        assert columns["text"][line - 2] == each["texts"]["text"]


def test_a_conll_file_needs_no_names_of_columns(trained, capsys):
    folder, results = trained
    columns = dev_columns(folder, "marks")
    path = folder / "dev.conll"
    sentences = zip(columns["tokens"], columns["tags"], strict=True)
    path.write_text(
        "\n".join("".join(f"{w}\t{t}\n" for w, t in zip(*pair, strict=True)) for pair in sentences)
    )
    report = evaluated(capsys, folder / "run", "--input", path)["marks"]
    assert report["value"] == results["tasks"]["marks"]["value"]


def test_bad_rows_of_a_file_are_named_by_their_lines_for_every_task(trained, capsys):
    folder, _ = trained
    path = folder / "bad.jsonl"
    rows = [{"text": "a cat", "label": "plain"}, {"text": None, "label": "plain"}]
    rows += [{"text": "a dog", "label": "dragon"}]
    rows = [{**row, "first": "a dog", "second": "a cat"} for row in rows]
    path.write_text("\n" + "".join(json.dumps(row) + "\n" for row in rows) + "{\n")
    asked = ["--task", "colour", "--task", "amount"]
    assert main(["evaluate", str(folder / "run"), "--input", str(path), *asked]) == 2
    unreadable, *lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and "bad.jsonl: line 5 is not JSON" in unreadable
    assert "colour" in lines[0] and "line 3: column 'text' holds None" in lines[0]
    assert "line 4: label 'dragon'" in lines[0] and "line 2: label 'plain'" in lines[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--split", "test", "--task", "amount"], "amount has no test rows"),
        (["--input", "{folder}/nowhere.csv"], "no such file"),
        (["--column", "a=b"], "--column: allowed with --input"),
        (["--input", "{folder}/data/colour.csv", "--limit", "3"], "--limit: allowed without"),
        (
            ["--input", "{folder}/data/colour.csv", "--task", "marks"],
            "marks reads 'tokens', 'tags'",
        ),
    ],
)
def test_what_cannot_be_scored_is_one_line(trained, capsys, words, message):
    folder, _ = trained
    assert main(["evaluate", str(folder / "run"), *(w.format(folder=folder) for w in words)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_the_tables_fit_a_hundred_columns(trained, capsys):
    folder, _ = trained
    assert main(["evaluate", str(folder / "run")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    assert any("expected calibration error" in line for line in lines)


def test_dev_rows_that_have_changed_since_training_are_told(trained, capsys):
    folder, _ = trained
    path = folder / "data/amount.csv"
    before = path.read_text()
    try:
        path.write_text(before.replace("cat", "dog"))
        told = evaluated(capsys, folder / "run", "--task", "amount", "--task", "colour")
    finally:
        path.write_text(before)
    assert "NOT those that the training run scored" in told["amount"]["note"]
    assert told["colour"]["note"] == ""
    limited = evaluated(capsys, folder / "run", "--task", "colour", "--limit", "5")
    assert "5 dev rows were scored" in limited["colour"]["note"]
