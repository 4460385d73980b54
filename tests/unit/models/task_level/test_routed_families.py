"""Layers as experts in every family: several experts in one packed batch, as one by one."""

import pytest
import torch

from ds_moe_mtl.models import HeadSpec, build_network
from ds_moe_mtl.models.dropout import without_dropout
from ds_moe_mtl.models.task_level.routed_layers import RouteCall, RoutedLayer
from ds_moe_mtl.models.task_level.task_router import RouterOptions
from tests.support.families import SHOWN, tiny
from tests.unit.models.families.test_families import LENGTHS

EXPERTS = 3


def routed(kind):
    """Return a network whose every layer is experts that differ."""
    heads = [HeadSpec(f"task{i}", 2) for i in range(EXPERTS)]
    options = RouterOptions(experts=EXPERTS, route="random_task")
    network = without_dropout(
        build_network(without_dropout(tiny(kind)), "task_moe", heads, 0.0, router=options)
    )
    torch.manual_seed(2)
    for layer in (m for m in network.modules() if isinstance(m, RoutedLayer)):
        for parameter in layer.experts.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return network


def routes_of(experts_LB):
    return torch.nn.functional.one_hot(torch.tensor(experts_LB), EXPERTS).float()


def states(network, pieces, experts_LB, one_hot=True, fill=0):
    """Return the packed hidden states [T, D] of sequences of ids, `fill` tokens more among them."""
    lengths = [len(ids) for ids in pieces]
    ids = torch.nn.functional.pad(torch.cat(pieces), (0, fill))
    positions = torch.cat([*(torch.arange(length) for length in lengths), torch.zeros(fill).long()])
    ends = torch.tensor([0, *lengths]).cumsum(0).int()
    with network._scope.use(RouteCall(routes_of(experts_LB), lengths, one_hot)):
        return network.encoder(ids, ids * 0, positions, ends, None, lengths)[: sum(lengths)]


@pytest.mark.parametrize("kind", SHOWN)
def test_one_hot_routes_of_a_batch_are_each_sequence_alone_with_its_experts(kind):
    network = routed(kind).train()
    depth = sum(isinstance(module, RoutedLayer) for module in network.modules())
    generator = torch.Generator().manual_seed(1)
    pieces = [torch.randint(5, 60, (length,), generator=generator) for length in LENGTHS]
    experts_LB = torch.randint(0, EXPERTS, (depth, len(pieces)), generator=generator).tolist()
    experts_LB[0] = [0, 2, 0, 1]
    alone = torch.cat(
        [states(network, [ids], [[row[b]] for row in experts_LB]) for b, ids in enumerate(pieces)]
    )
    weights = torch.randn(alone.shape, generator=generator)
    gradients = []
    for found in (
        alone,
        states(network, pieces, experts_LB),
        states(network, pieces, experts_LB, fill=3),
        states(network, pieces, experts_LB, one_hot=False, fill=3),
    ):
        torch.testing.assert_close(found, alone, rtol=1e-5, atol=1e-5)
        network.zero_grad()
        (found * weights).sum().backward(retain_graph=True)
        parameters = network.encoder.parameters()
        gradients.append([None if p.grad is None else p.grad.clone() for p in parameters])
    for other in gradients[1:]:
        for one, two in zip(gradients[0], other, strict=True):
            assert (one is None) == (two is None)
            if one is not None:
                torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-4)
