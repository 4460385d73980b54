"""Activation checkpointing: layers run twice, with the same gates, routes and random numbers."""

import pytest
import torch

from ds_moe_mtl.models import HeadSpec, RoutingOptions, build_network
from ds_moe_mtl.planner.shape import Shape, random_transformer
from tests.support.tiny import differ_experts, spread_gates

SHAPE = Shape(layers=2, hidden=32, intermediate=64, heads=4, vocabulary=40, positions=16)
LENGTHS = [9, 7, 7, 4]


def losses_and_gradients(kind: str, dropout: float, checkpointing: bool, aux: float):
    """Return two steps' losses, the gradients, and how often each layer's FFN was called."""
    torch.manual_seed(3)
    network = build_network(
        random_transformer(SHAPE, dropout),
        kind,
        [HeadSpec("one", 2), HeadSpec("two", 2)],
        dropout,
        RoutingOptions(num_experts=4, num_gates=2, load_balance_loss=aux),
    ).train()
    spread_gates(network)
    differ_experts(network)
    if checkpointing:
        network.checkpoint_activations()
    calls = []
    for layer in network.encoder.transformer.encoder.layer:
        layer.intermediate.register_forward_hook(lambda *_: calls.append(1))
    losses = []
    for step in range(2):
        torch.manual_seed(step)
        outputs = network(
            input_ids_T=torch.randint(5, 40, (sum(LENGTHS),)),
            token_type_ids_T=torch.zeros(sum(LENGTHS), dtype=torch.long),
            position_ids_T=torch.cat([torch.arange(length) for length in LENGTHS]),
            cu_seqlens=torch.tensor([0, *LENGTHS]).cumsum(0).int(),
            groups=[(0, 1), (1, 3), (3, 4)],
            task_ids_B=torch.tensor([0, 1, 1, 0]),
            spans_B22=torch.full((4, 2, 2), -1),
        )
        loss = outputs.logits_BC.square().mean() + outputs.aux_loss
        loss.backward()
        losses.append(loss.item())
    gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    return losses, gradients, len(calls)


@pytest.mark.parametrize("kind", ["mt_tag", "mt_dense"])
@pytest.mark.parametrize(("dropout", "aux"), [(0.0, 0.0), (0.1, 0.0), (0.1, 0.5)])
def test_losses_and_gradients_are_those_without_it(kind, dropout, aux):
    losses, gradients, calls = losses_and_gradients(kind, dropout, False, aux)
    again_losses, again_gradients, again_calls = losses_and_gradients(kind, dropout, True, aux)
    assert again_calls == 2 * calls
    assert again_losses == losses
    assert again_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(again_gradients[name], gradient, rtol=1e-6, atol=1e-8, msg=name)
