"""Task-level experts in the trainer: two stages, resume, ranks, selection, and BART."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ds_moe_mtl.cli.export import main as export
from ds_moe_mtl.config import RunConfig, dump_config
from tests.support.bart import write_bart
from tests.support.gym import write_gym
from tests.support.launch import ROOT, launch, run_ranks
from tests.support.steps import assert_same_training, train_tiny
from tests.support.tiny import write_tiny

ZERO0 = ROOT / "ds_configs/deepspeed/zero0.json"
ZERO1 = ROOT / "ds_configs/deepspeed/zero1.json"
TASKS = ["gym-glue-sst2", "gym-emo", "gym-quarel", "gym-glue-rte"]


def config_of(folder: Path, name: str, **sections) -> RunConfig:
    """Return a run over the tiny gym."""
    values = {
        "run": {"dir": str(folder / name)},
        "data": {"root": str(folder), "cache": str(folder / "cache")},
        "tasks": TASKS,
        "model": {"kind": "task_moe", "encoder": str(folder / "encoder"), "dropout": 0.1},
        "router": {"vector_size": 8, "hidden": 8, "temperature": 1.0, "clip": 0.5},
        "train": {"steps": 6, "batch_size": 8, "lr": 1e-3, "log_every": 1, "eval_every": 2},
        "deepspeed": str(ZERO1),
    }
    for key, section in sections.items():
        values[key] = {**values[key], **section} if isinstance(section, dict) else section
    return RunConfig.model_validate(values)


def configs(folder: Path) -> list[RunConfig]:
    """Return both stages, one run and its continuation, one that selects, and BART."""
    frozen = {"routes_from": str(folder / "stage1"), "selection": "softmax", "temperature": 300.0}
    middle = str(folder / "once/checkpoints/step_00000003")
    generating = {
        "tasks": [*TASKS, "gym-web_questions"],
        "model": {"encoder": str(folder / "bart")},
        "train": {"steps": 2, "eval_every": 2, "limit_dev": 3, "select": "dev_score"},
    }
    return [
        config_of(folder, "stage1"),
        config_of(folder, "stage2", router=frozen),
        config_of(folder, "once", train={"save_every": 3, "keep_checkpoints": 9}),
        config_of(folder, "continued", run={"resume": middle}),
        config_of(folder, "selected", train={"select": "dev_loss", "lr": 0.05}),
        config_of(folder, "bart", **generating),
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write_tiny(tmp_path_factory.mktemp("task_moe"))
    write_gym(folder)
    write_bart(folder / "bart")
    files = []
    for config in configs(folder):
        files.append(folder / f"{Path(config.run.dir).name}.yaml")
        files[-1].write_text(dump_config(config))
    trained = launch([ROOT / "tests/support/train_each.py", *files], 1, "fork", time_limit=400)
    assert trained.returncode == 0, trained.text
    return folder


def weights(folder: Path, run: str) -> dict[str, torch.Tensor]:
    return load_file(folder / run / "model/model.safetensors")


def rows(folder: Path, run: str) -> list[dict]:
    return [json.loads(line) for line in (folder / run / "metrics.jsonl").read_text().splitlines()]


def test_stage_2_leaves_the_routes_untouched_bit_for_bit_and_trains_the_rest(folder):
    first, second = weights(folder, "stage1"), weights(folder, "stage2")
    routers = [name for name in first if name.startswith("router.") and name != "router.step"]
    assert "router.vectors" in routers and len(routers) == 9
    assert all(torch.equal(first[name], second[name]) for name in routers)
    layer = "encoder.transformer.encoder.layer.0.experts.1.output.dense.weight"
    assert not torch.equal(first[layer], second[layer])


def test_stage_1_trains_router_and_vectors_with_rates_of_their_own(folder):
    from ds_moe_mtl.models.task_level.task_router import RouterOptions, TaskRouter

    torch.manual_seed(0)
    options = RouterOptions(layers=(0, 1), vector_size=8, hidden=8)
    start = TaskRouter(options, len(TASKS)).vectors.detach()
    moved = (weights(folder, "stage1")["router.vectors"] - start).abs().max()
    assert 1e-3 < float(moved) < 6e-2  # at most six steps of 1e-2, the vectors' rate


def test_a_continued_run_is_the_one_that_was_never_stopped(folder):
    assert weights(folder, "once").keys() == weights(folder, "continued").keys()
    for name, tensor in weights(folder, "once").items():
        assert torch.equal(tensor, weights(folder, "continued")[name]), name
    kept = [row["loss"] for row in rows(folder, "once") if row["step"] > 3]
    assert kept == [row["loss"] for row in rows(folder, "continued")]


def test_the_model_with_the_least_dev_loss_is_kept(folder):
    losses = {
        row["step"]: sum(v for k, v in row.items() if k.startswith("dev_loss/"))
        for row in rows(folder, "selected")
        if any(key.startswith("dev_loss/") for key in row)
    }
    results = json.loads((folder / "selected/results.json").read_text())
    assert set(losses) == {2, 4, 6}
    assert results["best_step"] == min(losses, key=losses.get)
    step = int(weights(folder, "selected")["router.step"])
    assert step == results["best_step"] - 1
    row = next(row for row in rows(folder, "selected") if row["step"] == step + 1)
    values = {name: result["value"] for name, result in results["tasks"].items()}
    assert values == {name: row[f"dev/{name}"] for name in values}


def test_bart_trains_and_scores_what_it_generates(folder):
    results = json.loads((folder / "bart/results.json").read_text())
    assert results["tasks"]["gym-web_questions"]["metric"] == "exact_match"
    assert all(0 <= result["value"] <= 100 for result in results["tasks"].values())
    assert all("loss" in row for row in rows(folder, "bart"))
    from ds_moe_mtl.evaluation import MultiTaskModel

    model = MultiTaskModel.from_pretrained(folder / "bart", "cpu")
    answers = model.predict("gym-emo", ["[emo] the cat sleeps"])
    assert len(answers) == 1 and isinstance(answers[0], str)


@pytest.mark.parametrize("name", ["stage2", "bart"])
def test_a_checkpoint_alone_makes_the_runs_model_frozen_router_and_step_included(
    folder, tmp_path, name
):
    run = shutil.copytree(folder / name, tmp_path / name)
    yaml = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(yaml.replace(str(folder), str(tmp_path / "gone")))
    assert export([str(run), "--output", str(tmp_path / "exported")]) == 0
    own, mine = weights(folder, name), load_file(tmp_path / "exported/model.safetensors")
    assert own.keys() == mine.keys()
    assert all(torch.equal(own[key], mine[key]) for key in own)


def test_a_frozen_router_goes_on_at_another_stage(folder, tmp_path):
    to = ["--to-topology", "zero_stage=2", "--output", str(tmp_path / "two")]
    assert export([str(folder / "stage2"), *to]) == 0
    assert export([str(tmp_path / "two"), "--output", str(tmp_path / "model")]) == 0
    own, mine = weights(folder, "stage2"), load_file(tmp_path / "model/model.safetensors")
    assert all(torch.equal(own[key], mine[key]) for key in own)


SECTIONS = {
    "model": {"kind": "task_moe"},
    "router": {"vector_size": 8, "hidden": 8, "clip": 0.05, "expert_noise": 0.02},
    "train": {"steps": 3, "batch_size": 6, "lr": 1e-3, "log_every": 1},
}


def both_stages_of_zero(folder: str) -> dict:
    """Return tiny trainings at stage 0 and 1 on the ranks there are."""
    return {
        stage: train_tiny(folder, {**SECTIONS}, deepspeed)
        for stage, deepspeed in (("zero0", ZERO0), ("zero1", ZERO1))
    }


def test_two_ranks_train_as_one_with_router_and_model_clipped_apart(tmp_path):
    write_tiny(tmp_path)
    one = run_ranks(both_stages_of_zero, str(tmp_path), ranks=1)[0]
    two = run_ranks(both_stages_of_zero, str(tmp_path), ranks=2)[0]
    for found in (one["zero1"], two["zero0"], two["zero1"]):
        assert_same_training(found, one["zero0"])
