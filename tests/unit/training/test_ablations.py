"""The first paper's ablations as config values: each reaches the network, and trains."""

import pytest
import torch

from ds_moe_mtl.models.token_level.direct_calls import routed_ffns
from ds_moe_mtl.training.network import new_network
from ds_moe_mtl.training.plan import make_plan, task_specs
from tests.support.tiny import tiny_config, write_tiny

NO_AUX = {"load_balance_loss": 0.0, "router_z_loss": 0.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("ablations"))


def layers_of(folder, **moe):
    """The MoE layers of a run's network, and their options."""
    config = tiny_config(folder, moe=moe)
    plan = make_plan(config, task_specs(config), lambda line: None)
    network, _ = new_network(plan)
    return network, [ffn.moe for ffn in routed_ffns(network)]


@pytest.mark.parametrize("experts", [2, 4, 6, 8])
def test_the_number_of_experts_is_that_of_every_layer_and_gate(folder, experts):
    network, layers = layers_of(folder, num_experts=experts)
    assert len(layers) == 2
    for layer in layers:
        assert len(layer.experts) == experts
        assert layer.gate.wg.weight.shape == (3 * experts, 32)  # three tasks
        for expert in layer.experts[1:]:
            for mine, first in zip(expert.parameters(), layer.experts[0].parameters(), strict=True):
                assert torch.equal(mine, first)  # copies, as published


def test_noise_on_the_copied_experts_has_the_spread_that_is_asked_for(folder):
    _, plain = layers_of(folder)
    _, noisy = layers_of(folder, expert_noise=0.01)
    for layer, before in zip(noisy, plain, strict=True):
        added = torch.cat(
            [
                (mine - copied).detach().flatten()
                for mine, copied in zip(
                    layer.experts.parameters(), before.experts.parameters(), strict=True
                )
            ]
        )
        assert added.std() == pytest.approx(0.01, rel=0.05)
        assert added.mean().abs() < 0.001


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("load_balance_loss", 0.01),
        ("router_z_loss", 0.001),
        ("jitter", 0.1),
        ("dispatch", "capacity"),
        ("capacity_factor", 1.5),
        ("gate_embedding", 4),
    ],
)
def test_a_layers_option_is_the_configurations(folder, key, value):
    _, layers = layers_of(folder, **{key: value})
    assert all(getattr(layer.options, key) == value for layer in layers)


def test_dropout_in_experts_stands_between_their_two_layers(folder):
    _, layers = layers_of(folder, expert_dropout=0.25)
    _, plain = layers_of(folder)
    assert [[expert.dropout for expert in layer.experts] for layer in layers] == [[0.25] * 4] * 2
    assert {expert.dropout for layer in plain for expert in layer.experts} == {0}
