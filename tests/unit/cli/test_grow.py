"""ds-moe-mtl add and remove: a model gains tasks, loses tasks, and the others stay as they are."""

import json

import numpy as np
import pytest

from ds_moe_mtl.cli import main
from ds_moe_mtl.config import dump_config
from ds_moe_mtl.evaluation import MultiTaskModel
from tests.support.commands import run_commands
from tests.support.launch import ROOT, launch
from tests.support.tiny import tiny_config, write_tiny

TEXTS = {
    "colour": ["the red cat", "a dog sleeps", "blue"],
    "same": [("one cat", "one dog"), ("a bird flies", "two fish")],
    "amount": [("one cat", "one dog"), ("old", "new old")],
}


def _yaml(folder, name, tasks, **sections):
    rows = {row["name"]: row for row in json.loads((folder / "tasks.json").read_text())}
    sections.setdefault("deepspeed", str(ROOT / "ds_configs/deepspeed/zero1.json"))
    config = tiny_config(
        folder,
        run={"dir": str(folder / name)},
        tasks=[rows[task] for task in tasks],
        **sections,
    )
    (folder / f"{name}.yaml").write_text(dump_config(config))
    return folder / f"{name}.yaml"


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    """A folder of runs, and every command's answer by name."""
    folder = write_tiny(tmp_path_factory.mktemp("grow"))
    train = {"lr": 1e-2, "save_every": 2}
    old = _yaml(folder, "old", ["colour", "same"], train=train)
    dense = _yaml(folder, "dense", ["colour", "same"], train=train, model={"kind": "mt_dense"})
    new = _yaml(folder, "new", ["amount"], train=train)
    half = [new, "train.precision=bf16", "train.weight_decay=0.1"]
    commands = {
        "old": ["train", old],
        "dense": ["train", dense],
        "new": ["add", folder / "old", new, "--json"],
        "again": ["add", folder / "old", new, "--json"],
        "bf16": ["add", folder / "old", *half, f"run.dir={folder / 'bf16'}", "--gate", "same"],
        "all": [
            *("add", folder / "old", new, "--train", "all", "--json"),
            *("--gate", "amount=random", f"run.dir={folder / 'all'}"),
        ],
        "of dense": ["add", folder / "dense", new, "--json", f"run.dir={folder / 'of_dense'}"],
        "none new": ["add", folder / "old", old, f"run.dir={folder / 'none'}"],
        "no such gate": ["add", folder / "old", new, "--gate", "nope", f"run.dir={folder / 'x'}"],
        "spread": ["add", folder / "old", new, "moe.ep_size=2", f"run.dir={folder / 'x'}"],
        "an old one": ["add", folder / "old", _yaml(folder, "more", ["amount", "same"])],
        "pull": ["add", folder / "old", new, "moe.expert_pull=0.1", f"run.dir={folder / 'x'}"],
        "a gate of dense": ["add", folder / "dense", new, "--gate", "same"],
        "no model": ["add", folder / "encoder", new],
    }
    return folder, dict(zip(commands, run_commands(list(commands.values())), strict=True))


@pytest.mark.parametrize(
    ("answer", "run", "start"),
    [("new", "new", "old"), ("bf16", "bf16", "old"), ("of dense", "of_dense", "dense")],
)
def test_new_tasks_leave_every_answer_of_the_others_to_the_bit(grown, answer, run, start):
    folder, answers = grown
    assert answers[answer].status == 0, answers[answer].text
    before = MultiTaskModel.from_pretrained(folder / start, "cpu")
    after = MultiTaskModel.from_pretrained(folder / run, "cpu")
    assert list(after.specs) == ["amount", "colour", "same"]
    rows = json.loads((folder / run / "kept_tasks.json").read_text())["tasks"]
    assert [(row["task"], row["moved"]) for row in rows] == [("colour", 0.0), ("same", 0.0)]
    assert all(row["before"] == row["after"] for row in rows)
    for task in ("colour", "same"):
        assert before.predict(task, TEXTS[task]) == after.predict(task, TEXTS[task])
    losses = [
        json.loads(line)["loss"]
        for line in (folder / run / "metrics.jsonl").read_text().split("\n")
        if line
    ]
    assert np.isfinite(losses).all()
    head = after.network.heads.head(("task", "amount")).weight
    assert float(head.detach().abs().mean()) > 0
    assert json.loads((folder / run / "results.json").read_text())["tasks"].keys() == {"amount"}


def test_training_all_weights_says_how_far_the_others_moved(grown):
    folder, answers = grown
    assert answers["all"].status == 0, answers["all"].text
    rows = json.loads(answers["all"].stdout)
    assert [row["task"] for row in rows] == ["colour", "same"]
    assert all(row["moved"] > 0 for row in rows)
    before = MultiTaskModel.from_pretrained(folder / "old", "cpu")
    after = MultiTaskModel.from_pretrained(folder / "all", "cpu")
    for row in rows:
        for model, at in ((before, "before"), (after, "after")):
            assert model.evaluate(row["task"], None)["value"] == pytest.approx(row[at])


def test_a_finished_addition_is_told_again_and_costs_nothing(grown):
    _, answers = grown
    assert answers["again"].status == 0, answers["again"].text
    assert "complete already" in answers["again"].stderr
    assert answers["again"].stdout == answers["new"].stdout


def test_two_ranks_add_what_one_adds(grown):
    folder, _ = grown
    run = launch(
        [
            "-m",
            "ds_moe_mtl",
            "add",
            folder / "old",
            folder / "new.yaml",
            f"run.dir={folder / 'two'}",
        ],
        2,
        "fork",
    )
    assert run.returncode == 0, run.text
    one, two = (MultiTaskModel.from_pretrained(folder / name, "cpu") for name in ("new", "two"))
    for name, tensor in one.network.state_dict().items():
        np.testing.assert_allclose(two.network.state_dict()[name], tensor, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("none new", "the model has all of colour, same; allowed: a new one"),
        ("no such gate", "start.gate: 'nope'; allowed: colour, same, random, own"),
        ("spread", "moe.ep_size = 2 with start.train = new"),
        ("an old one", "start.train = new, but tasks names same, which the model has"),
        ("pull", "moe.expert_pull = 0.1 with start.train = new"),
        ("a gate of dense", "is a mt_dense model, without gates"),
        ("no model", "no trained model; allowed: a finished run or a model folder"),
    ],
)
def test_what_cannot_be_added_is_one_line(grown, answer, said):
    _, answers = grown
    assert answers[answer].status == 2, answers[answer].text
    assert said in answers[answer].stderr and "Traceback" not in answers[answer].stderr


@pytest.mark.parametrize("run", ["new", "of_dense"])
def test_a_model_without_a_task_answers_the_others_as_before(grown, run, tmp_path, capsys):
    folder, _ = grown
    words = ["remove", str(folder / run), "--task", "colour", "--output", str(tmp_path / "less")]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "2 tasks (amount, same), without colour" in said
    assert ("experts that no task uses any more" in said) == (run == "new")
    before = MultiTaskModel.from_pretrained(folder / run, "cpu")
    after = MultiTaskModel.from_pretrained(tmp_path / "less", "cpu")
    assert list(after.specs) == ["amount", "same"]
    for task in after.specs:
        assert before.predict(task, TEXTS[task]) == after.predict(task, TEXTS[task])
    assert after.description["about"]["removed"] == ["colour"]
    if run == "new":
        assert after.description["routing"]["num_gates"] == 2
    assert main(words) == 2  # the folder is taken
    assert main([*words[:2], "--task", "nope", "--output", str(tmp_path / "x")]) == 2
    every = [word for task in before.specs for word in ("--task", task)]
    assert main([*words[:2], *every, "--output", str(tmp_path / "x")]) == 2
    assert not (tmp_path / "x").exists()
