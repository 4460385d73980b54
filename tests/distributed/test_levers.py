"""Every lever in a whole run: it trains, loads, predicts the same and resumes exactly."""

import json
import shutil

import pytest
import torch

from ds_moe_mtl.config import UserError, dump_config
from ds_moe_mtl.evaluation import MultiTaskModel
from ds_moe_mtl.models.dense_export import dense_encoder
from ds_moe_mtl.models.token_level.upcycle import routed_ffns
from ds_moe_mtl.training.network import new_network
from ds_moe_mtl.training.plan import make_plan, task_specs
from tests.support.ends import differences
from tests.support.launch import ROOT, launch
from tests.support.tiny import tiny_config, write_tiny

STEPS = 6
RUNS = {
    "merged": {"moe": {"combine": "merged", "gate_lr": 0.2}},
    "merged_switch": {"model": {"kind": "mt_switch"}, "moe": {"combine": "merged"}},
    "shared": {"moe": {"shared_share": 0.5, "layers": "last_half"}},
    "tied": {"moe": {"tied_steps": 3, "expert_dropout": 0.3}},
    "gates": {
        "moe": {
            "gate_init": "spread",
            "gate_lr": 0.01,
            "route_by": "sequence",
            "gate_momentum": False,
        }
    },
    "pull": {"moe": {"expert_pull": 0.1, "expert_dropout": 0.3}},
    "average": {"train": {"average_from": 0.5}},
    "average_dense": {"model": {"kind": "mt_dense"}, "train": {"average_from": 0.5}},
}
MOE_LAYERS = {"shared": 1, "average_dense": 0}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("levers"))


def write(tiny, name, folder):
    train = {"steps": STEPS, "save_every": 2, "keep_checkpoints": 3, "limit_dev": 12}
    sections = {key: dict(values) for key, values in RUNS[name].items()}
    sections["train"] = {**train, **sections.get("train", {})}
    sections["model"] = {"dropout": 0.1, **sections.get("model", {})}
    config = tiny_config(tiny, run={"dir": str(folder / name)}, **sections)
    path = folder / f"{name}.yaml"
    path.write_text(dump_config(config))
    return path


def train_all(paths):
    each = [ROOT / "tests/support/train_each.py", *paths]
    ended = launch(each, 1, "fork", time_limit=500)
    assert ended.returncode == 0, ended.text


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory):
    """The folder of finished runs, by lever."""
    folder = tmp_path_factory.mktemp("runs")
    train_all([write(tiny, name, folder) for name in RUNS])
    return folder


@pytest.fixture(scope="module")
def resumed(tiny, runs, tmp_path_factory):
    """The same runs, cut back to their checkpoint of step 2 and continued."""
    folder = tmp_path_factory.mktemp("resumed")
    paths = []
    for name in RUNS:
        run = folder / name
        shutil.copytree(runs / name, run)
        for file in ("results.json", "lock"):
            (run / file).unlink()
        shutil.rmtree(run / "model")
        for step in (4, 6):
            shutil.rmtree(run / f"checkpoints/step_{step:08d}")
        text = (run / "config.yaml").read_text().replace(str(runs / name), str(run))
        (run / "config.yaml").write_text(text)
        paths.append(folder / f"{name}.yaml")
        paths[-1].write_text(text)
    train_all(paths)
    return folder


@pytest.mark.parametrize("name", RUNS)
def test_the_written_model_scores_as_the_run_did_at_its_end(runs, name):
    results = json.loads((runs / name / "results.json").read_text())["tasks"]
    model = MultiTaskModel.from_pretrained(runs / name)
    assert len(routed_ffns(model.network)) == MOE_LAYERS.get(name, 2)
    for task, result in results.items():
        found = model.evaluate(task, None, limit=12)
        assert found["value"] == pytest.approx(result["value"], abs=1e-4), task


@pytest.mark.parametrize("name", RUNS)
def test_a_run_continued_from_its_checkpoint_ends_as_if_it_had_not_stopped(runs, resumed, name):
    assert differences(resumed / name, runs / name) == []


def test_the_average_is_not_the_last_weights(runs):
    from ds_moe_mtl.export.model import choose_checkpoint, export_model

    run = runs / "average_dense"
    export_model(choose_checkpoint(run, None), run / "plain")
    plain, mean = (MultiTaskModel.from_pretrained(run / f).network for f in ("plain", "model"))
    pairs = zip(plain.parameters(), mean.parameters(), strict=True)
    apart = [float((one - other).detach().abs().max()) for one, other in pairs]
    assert 0 < max(apart) < 0.02  # 3 steps of Adam at 1e-3 or less


def test_mixtures_are_what_routes_json_shows_and_a_task_exports_as_a_dense_encoder(runs):
    numbers = json.loads((runs / "merged/routes.json").read_text())
    model = MultiTaskModel.from_pretrained(runs / "merged")
    layers = [ffn.moe for ffn in routed_ffns(model.network)]
    assert numbers["combine"] == "merged"
    for task, name in enumerate(model.specs):
        shares = [layer.gate.wg.weight[task].softmax(0).tolist() for layer in layers]
        for found, wanted in zip(numbers["shares"][name], shares, strict=True):
            assert found == pytest.approx(wanted, abs=1e-3)
        encoder = dense_encoder(model.network, name)
        assert not any(".moe." in key for key in encoder.state_dict())
    start = torch.tensor([0.7, 0.1, 0.1, 0.1]).log()
    moved = (layers[0].gate.wg.weight[0] - start).abs().max()
    assert moved > 0.01  # at the gates' own rate; at train.lr it would be 0.004 at most
    one = json.loads((runs / "merged_switch/routes.json").read_text())["shares"]
    assert len({str(share) for share in one.values()}) == 1  # one mixture for all tasks


def test_layers_with_experts_are_named_in_routes_json(runs):
    numbers = json.loads((runs / "shared/routes.json").read_text())
    assert numbers["layers"] == [1] and len(numbers["shares"]["colour"]) == 1


@pytest.mark.parametrize("name", ["merged", "shared", "gates"])
def test_stage_two_keeps_the_form_and_refuses_another(tiny, runs, name):
    moe = RUNS[name]["moe"]
    start = {"model": str(runs / name)}
    config = tiny_config(tiny, start=start, moe=moe)
    plan = make_plan(config, task_specs(config), lambda line: None)
    network, _ = new_network(plan)
    trained = MultiTaskModel.from_pretrained(runs / name).network.state_dict()
    for key, tensor in network.state_dict().items():
        assert torch.equal(tensor, trained[key]), key
    other = tiny_config(tiny, start=start)
    plan = make_plan(other, task_specs(other), lambda line: None)
    with pytest.raises(UserError, match="moe.(combine|shared_share|route_by) = .* allowed: moe"):
        new_network(plan)
