"""What levers tell the optimizer: the gates' own rate, and Adam's eps while experts are tied."""

from types import SimpleNamespace

import pytest

from ds_moe_mtl.config import RunConfig
from ds_moe_mtl.engine.levers import Levers

GROUPS = ("weights", "gates", "ep_size_1")


def levers_of(moe, train=()) -> tuple[Levers, list[dict]]:
    """Return the levers of a run over an optimizer's three groups, and the groups."""
    values = {
        "run": {"dir": "runs/x"},
        "tasks": ["rte"],
        "moe": {"gate_scale": "preserve", **moe},
        "train": {"steps": 10, "eps": 1e-8, **dict(train)},
    }
    groups = [{"name": name, "eps": 1e-8} for name in GROUPS]
    groups[2]["moe"] = True
    engine = SimpleNamespace(optimizer=SimpleNamespace(param_groups=groups))
    return Levers(engine, RunConfig.model_validate(values), 10), groups


def test_gates_have_the_rate_of_all_or_one_of_their_own_on_the_same_course():
    assert levers_of({})[0].gate_rates(0.5) == {}
    assert levers_of({"gate_lr": 0.02})[0].gate_rates(0.5) == {"gates": 0.01}


@pytest.mark.parametrize(("experts", "share"), [(4, 0.5), (9, 1 / 3), (1, 1.0)])
def test_eps_of_expert_groups_shrinks_with_the_tied_gradients_and_comes_back(experts, share):
    levers, groups = levers_of({"tied_steps": 3, "num_experts": experts})
    for step, factor in ((2, share), (3, 1.0), (0, share)):  # also where a run is continued
        levers.before_step(step)
        assert [group["eps"] for group in groups] == [1e-8, 1e-8, pytest.approx(factor * 1e-8)]


def test_without_a_lever_nothing_is_touched():
    levers, groups = levers_of({})
    del groups[2]["eps"]
    levers.before_step(0)
    levers.after_step(0, 1.0, False)
    assert "eps" not in groups[2]
