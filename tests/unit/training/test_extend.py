"""run.extend: a complete run goes on to more steps by a schedule of its own."""

import json
import math

import pytest

from ds_moe_mtl.config import dump_config
from ds_moe_mtl.evaluation import MultiTaskModel
from ds_moe_mtl.training.schedule import learning_rate
from tests.support.commands import run_commands
from tests.support.launch import ROOT
from tests.support.tiny import tiny_config, write_tiny


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """A folder of runs, and every command's answer by name."""
    folder = write_tiny(tmp_path_factory.mktemp("extend"))
    config = tiny_config(
        folder,
        deepspeed=str(ROOT / "ds_configs/deepspeed/zero1.json"),
        train={"lr": 1e-2, "eval_every": 2, "select": "dev_loss"},
    )
    yaml = folder / "run.yaml"
    yaml.write_text(dump_config(config))
    more = ["train", yaml, "run.extend=true", "train.steps=8", "train.lr=5e-3"]
    bare = f"run.dir={folder / 'bare'}"
    commands = {
        "train": ["train", yaml],
        "asked for in silence": ["train", yaml, "train.steps=8"],
        "more": more,
        "more again": more,
        "less": ["train", yaml, "run.extend=true", "train.steps=6", "train.lr=5e-3"],
        "bare": ["train", yaml, bare, "train.keep_checkpoints=0"],
        "of no checkpoint": ["train", yaml, bare, "run.extend=true", "train.steps=8"],
        "average": [
            *more,
            "train.average_from=0.5",
            "train.select=last",
            f"run.dir={folder / 'x'}",
        ],
    }
    return folder, dict(zip(commands, run_commands(list(commands.values())), strict=True))


def test_an_extended_run_goes_on_by_the_new_schedule_and_keeps_what_it_was(extended):
    folder, answers = extended
    assert answers["train"].status == answers["more"].status == 0, answers["more"].text
    assert "from 4 to 8 steps" in answers["more"].stdout
    run = folder / "run"
    assert json.loads((run / "results.json").read_text())["steps"] == 8
    assert json.loads((run / "results-4.json").read_text())["steps"] == 4
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 9))
    for row in rows:
        total, peak = (4, 1e-2) if row["step"] <= 4 else (8, 5e-3)
        assert row["lr"] == pytest.approx(learning_rate(row["step"] - 1, total, 0, peak))
    losses = {
        row["step"]: sum(v for k, v in row.items() if k.startswith("dev_loss/")) for row in rows
    }
    best = min((step for step, loss in losses.items() if loss), key=losses.get)
    assert json.loads((run / "results.json").read_text())["best_step"] == best
    assert all(math.isfinite(loss) for loss in losses.values())
    MultiTaskModel.from_pretrained(run, "cpu").predict("colour", ["the red cat"])


@pytest.mark.parametrize(
    ("answer", "status", "said"),
    [
        ("asked for in silence", 2, "different: train.steps"),
        ("more again", 0, "is complete already (8 steps)"),
        ("less", 2, "has 8 steps and 6 are asked for; allowed: more of them"),
        ("of no checkpoint", 2, "keeps no checkpoint (train.keep_checkpoints was 0); allowed: a"),
        ("average", 2, "run.extend = true with train.average_from; allowed: false"),
    ],
)
def test_what_is_no_extension_is_told(extended, answer, status, said):
    _, answers = extended
    assert answers[answer].status == status, answers[answer].text
    assert said in answers[answer].stdout + answers[answer].stderr
