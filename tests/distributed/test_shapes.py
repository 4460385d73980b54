"""A run over every kind of own task: two ranks with parted experts learn what one rank learns."""

import json

import pytest
import torch

from ds_moe_mtl.config.load import dump_config
from ds_moe_mtl.evaluation import MultiTaskModel
from tests.support.launch import ROOT, launch, run_ranks
from tests.support.shapes import write_shapes
from tests.support.steps import MARGIN, train_tiny
from tests.support.tiny import tiny_config, write_tiny

# A bias adds the same to all scores of a context, of which only differences count: its gradient is
# rounding, of which Adam makes steps of any sign.
FREE = "heads.linears.5.bias"
ZERO1 = ROOT / "ds_configs" / "deepspeed" / "zero1.json"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write_tiny(tmp_path_factory.mktemp("shapes"))
    rows = write_shapes(folder / "shapes")
    rows[1] |= {"class_weights": "balanced", "loss_weight": 0.5}
    rows[2]["sampling_weight"] = 2.0
    tasks = [*json.loads((folder / "tasks.json").read_text()), *rows]
    (folder / "tasks.json").write_text(json.dumps(tasks))
    return folder


def test_two_ranks_that_part_the_experts_learn_what_one_learns(folder):
    sections = {"train": {"steps": 3, "batch_size": 9, "lr": 1e-3, "log_every": 1}}
    (one,) = run_ranks(train_tiny, str(folder), sections, ZERO1, ranks=1)
    parted = {**sections, "moe": {"gate_scale": "preserve", "ep_size": 2}}
    two = run_ranks(train_tiny, str(folder), parted, ZERO1, ranks=2)
    assert min(one["margin"], *(rank["margin"] for rank in two)) > MARGIN
    for row, other in zip(one["rows"], two[0]["rows"], strict=True):
        losses = {key: value for key, value in row.items() if key.startswith(("loss", "dev/"))}
        assert losses.keys() == {key for key in other if key.startswith(("loss", "dev/"))}
        assert [other[key] for key in losses] == pytest.approx(list(losses.values()), rel=1e-4)
    assert one["state"].keys() == two[0]["state"].keys()
    assert FREE in one["state"]
    for name, weight in one["state"].items():
        if name == FREE:
            continue
        torch.testing.assert_close(two[0]["state"][name], weight, atol=2e-5, rtol=1e-4)


def test_a_run_scores_its_test_rows_with_the_model_that_it_keeps(folder):
    rows = json.loads((folder / "tasks.json").read_text())[3:]
    for row in rows:
        row["test"] = row["train"]
    rows[0]["metrics"] = ["micro_f1", "lrap"]
    steps = {"steps": 4, "eval_every": 2, "select": "dev_score"}
    config = tiny_config(folder, tasks=rows, train=steps)
    (folder / "run.yaml").write_text(dump_config(config))
    run = launch([ROOT / "train.py", folder / "run.yaml"], ranks=2, launcher="fork")
    assert run.returncode == 0, run.text
    assert "(test)" in run.stdout and "its thresholds were chosen on the dev rows" in run.stdout
    results = json.loads((folder / "run" / "results.json").read_text())
    assert results["test"].keys() == results["tasks"].keys()
    assert results["test"]["marks"]["examples"] == 40
    model = MultiTaskModel.from_pretrained(folder / "run", "cpu")
    thresholds = tuple(results["tasks"]["about"]["thresholds"].values())
    assert thresholds == model.task("about").thresholds
    assert results["tasks"]["about"]["metrics"].keys() == {"micro_f1", "lrap"}
    for name, result in results["tasks"].items():
        again = model.evaluate(name, None, config.data.cache)
        assert again["value"] == pytest.approx(result["value"], abs=1e-4)
