"""Options of the sparse layer that do not go together are refused in one line, where they stand."""

import pytest

from ds_moe_mtl.config import UserError, load_config
from ds_moe_mtl.config.levers import _LEVERS, tell_idle
from ds_moe_mtl.config.schema import MoeSection, RunConfig

GOOD = """\
run:
  dir: runs/x
tasks: [rte]
moe:
  num_experts: 4
train:
  steps: 10
"""
REFUSED = {
    "combine=merged ep_size=2": "moe.ep_size = 2 with moe.combine = merged (no token is routed)",
    "combine=merged dispatch=capacity": "moe.dispatch = capacity with moe.combine = merged",
    "tied_steps=9 ep_size=2": "moe.ep_size = 2 with moe.tied_steps = 9 (experts are one",
    "tied_steps=9 gate_scale=paper": "moe.gate_scale = paper with moe.tied_steps = 9",
    "tied_steps=9 expert_noise=0.1": "moe.expert_noise = 0.1 with moe.tied_steps = 9",
    "combine=merged tied_steps=9": "moe.tied_steps = 9 with moe.combine = merged",
    "route_by=sequence dispatch=capacity": "moe.dispatch = capacity with moe.route_by = sequence",
    "gate_init=spread gate_embedding=2": "moe.gate_embedding = 2 with moe.gate_init = spread",
    "expert_pull=0.01 ep_size=4": "moe.ep_size = 4 with moe.expert_pull = 0.01",
    "combine=merged shared_share=0.5": "moe.shared_share = 0.5 with moe.combine = merged",
    "combine=merged gate_scale=paper": "moe.gate_scale = paper with moe.combine = merged",
}


@pytest.mark.parametrize("overrides", REFUSED)
def test_levers_that_do_not_go_together_are_told_in_one_line(tmp_path, overrides):
    (tmp_path / "run.yaml").write_text(GOOD)
    given = [f"moe.{part}" for part in overrides.split()]
    given += [] if "gate_scale" in overrides else ["moe.gate_scale=preserve"]
    with pytest.raises(UserError) as error:
        load_config(tmp_path / "run.yaml", given)
    line = str(error.value)
    assert REFUSED[overrides] in line and "; allowed: moe." in line and "\n" not in line


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["moe.tied_steps=5", "start.model=."], "whose experts have parted; allowed: 0"),
        (["moe.layers=[1, 1]"], "moe.layers names a layer twice; allowed: each layer once"),
        (["moe.layers=[]"], "moe.layers = ()"),
        (["moe.layers=first"], "moe.layers = 'first'; allowed: a list of 1 or more"),
        (
            ["train.average_from=0.5", "train.select=dev_score", "train.eval_every=2"],
            "train.average_from = 0.5 with train.select = dev_score; allowed: train.select = last",
        ),
    ],
)
def test_other_mistakes_with_levers_are_told_in_one_line(tmp_path, monkeypatch, overrides, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(GOOD)
    with pytest.raises(UserError) as error:
        load_config("run.yaml", ["moe.gate_scale=preserve", *overrides])
    assert words in str(error.value) and "\n" not in str(error.value)


def test_every_lever_and_what_it_wants_is_a_key_with_an_allowed_value():
    for lever in _LEVERS:
        assert lever.name in MoeSection.model_fields
        assert not lever.is_on(MoeSection.model_fields[lever.name].default)  # off by default
        wanted = {name: value for name, value in lever.wants.items()}
        MoeSection.model_validate(wanted)


@pytest.mark.parametrize(
    ("kind", "tied", "is_told"),
    [("mt_tag", 10, True), ("mt_tag", 9, False), ("mt_switch", 11, True), ("mt_dense", 99, False)],
)
def test_experts_that_never_part_are_told(kind, tied, is_told):
    values = {"run": {"dir": "x"}, "tasks": ["rte"], "train": {"steps": 10}}
    values |= {"model": {"kind": kind}, "moe": {"tied_steps": tied}}
    said: list[str] = []
    tell_idle(RunConfig.model_validate(values), 10, said.append)
    assert any(f"tied_steps = {tied} of 10 steps" in line for line in said) == is_told
    idle = ["note: moe.tied_steps has no effect for model.kind mt_dense"]
    assert [line for line in said if "no effect" in line] == idle * (kind == "mt_dense")
