"""What is wrong with all tasks is told at once, and what is odd about data that can be read."""

import json

import pytest

from ds_moe_mtl.cli import main
from ds_moe_mtl.config import OwnTask, SeveralErrors, UserError
from ds_moe_mtl.data import checked_tasks, own_spec
from ds_moe_mtl.data.check import row_faults
from tests.support.kinds import write_kinds
from tests.support.tiny import write_encoder

GOOD = "text,label\n" + "".join(f"a cat {n},{'yes' if n % 3 else 'no'}\n" for n in range(30))


def write_yaml(folder, tasks, encoder):
    values = {
        "tasks": tasks,
        "run": {"dir": str(folder / "run")},
        "data": {"cache": str(folder / "cache")},
        "model": {"kind": "mt_dense", "encoder": str(encoder)},
        "train": {"steps": 1, "batch_size": 4, "lr": 1e-3},
    }
    (folder / "run.yaml").write_text(json.dumps(values))
    return str(folder / "run.yaml")


def row(folder, name, content, **more):
    (folder / name).write_text(content)
    keys = {"name": name.partition(".")[0], "train": str(folder / name)}
    return {**keys, "text": ["text"], "label": "label", **more}


@pytest.fixture
def three(tmp_path):
    (tmp_path / "dev.csv").write_text("text,label\na dog,maybe\na cat,yes\n")
    (tmp_path / "test.csv").write_text("text,label\na dog\n")
    return [
        row(tmp_path, "first.csv", GOOD + "a dog,\n"),
        row(
            tmp_path,
            "second.jsonl",
            '{"text": "a", "label": 0.5}\n{"text": null, "label": "x"}\n',
            kind="regression",
        ),
        row(
            tmp_path,
            "third.csv",
            GOOD,
            dev=str(tmp_path / "dev.csv"),
            test=str(tmp_path / "test.csv"),
        ),
    ]


@pytest.mark.parametrize("command", ["train", "data"])
def test_all_faults_of_three_tasks_come_at_once_and_before_the_encoder(
    tmp_path, three, capsys, command
):
    path = write_yaml(tmp_path, three, tmp_path / "no_encoder")
    assert main([command, path]) == 2
    first, second, third = capsys.readouterr().err.splitlines()
    assert first.startswith("error: tasks: 'first': ") and "row 30 (from 0): no label" in first
    assert "label 'x' in column 'label'" in second and "column 'text' holds None" in second
    assert "label 'maybe'" in third and "test.csv: line 2 has 1 fields" in third


def test_a_known_task_without_its_files_is_told_with_the_others(tmp_path, three):
    entries = [*(OwnTask(**each) for each in three[:1]), "rte"]
    with pytest.raises(SeveralErrors) as caught:
        checked_tasks(entries, str(tmp_path))
    assert ["first" in caught.value.lines[0], "rte" in caught.value.lines[1]] == [True, True]
    with pytest.raises(UserError) as alone:
        checked_tasks(["rte", "cola"], str(tmp_path / "nowhere"))  # one folder, one line
    assert len(alone.value.lines) == 1


def test_clean_data_says_so_and_odd_data_what_is_odd(tmp_path, capsys):
    write_encoder(tmp_path / "encoder")
    long = "the red cat sleeps here and there up"
    odd = GOOD + f'{long},yes\n" ",no\n{long},no\n{long},no\n'
    (tmp_path / "dev.csv").write_text(f"text,label\n{long},no\nthe big dog,yes\n")
    words = ["red", "green", "blue", "one", "two", "three", "four", "five"]
    pairs = [(a, b) for a in words for b in words]
    distinct = "text,label\n" + "".join(
        f"{a} {b},{'yes' if n % 3 else 'no'}\n" for n, (a, b) in enumerate(pairs)
    )
    tasks = [
        row(tmp_path, "clean.csv", distinct),
        row(tmp_path, "odd.csv", odd, dev=str(tmp_path / "dev.csv"), max_length=8),
    ]
    path = write_yaml(tmp_path, tasks, tmp_path / "encoder")
    assert main(["data", path, "--json"]) == 0
    clean, found = json.loads(capsys.readouterr().out)
    assert clean["kind"] == "classification" and clean["why"] == "column 'label' holds text"
    assert clean["rows"]["dev"]["from"].endswith("clean.csv (held out)")
    assert {name: of["train"] + of["dev"] for name, of in clean["classes"].items()} == {
        "no": 22,
        "yes": 42,
    }
    assert found["empty"] == {"text": {"train": 1, "dev": 0}}
    assert found["in_train"] == {"dev": 1}
    conflict = found["conflicts"]["train"]["example"]
    assert conflict["rows"] == [0, 1] and sorted(conflict["labels"]) == ["no", "yes"]
    assert found["lengths"]["train"]["longest"] == 10  # two specials and eight words
    assert found["lengths"]["train"]["cut"] == pytest.approx(3 / 34)
    assert main(["data", path]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    parts = "\n".join(lines).split("odd: classification")
    assert "  clean " in parts[0] and "  clean " not in parts[1]
    assert "31 of train repeat an earlier example" in parts[1]  # numbers are no words here
    assert "1 of dev's examples are in train too" in parts[1]


def test_rows_of_every_shape_are_looked_at_without_a_tokenizer(tmp_path):
    tasks = write_kinds(tmp_path, rows=30)
    for task in tasks:
        label = task["label"] if isinstance(task["label"], str) else tuple(task["label"])
        text = (task["text"],) if isinstance(task["text"], str) else tuple(task["text"])
        spec = own_spec(OwnTask(**{**task, "label": label, "text": text}))
        (line, *_) = row_faults(spec, {name: [3.5, 3.5] for name in spec.columns}, "f")
        assert "row 0 (from 0)" in line and "(2 such rows)" in line, spec.kind
