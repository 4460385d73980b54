"""The layer with experts on other ranks equals the whole layer, loads uneven or empty."""

import pytest
import torch
from torch import distributed as dist
from torch import nn

from ds_moe_mtl.models import FeedForward, MoELayer, RoutingOptions
from ds_moe_mtl.moe import to_deepspeed
from ds_moe_mtl.moe.convert import plain_key
from tests.support.launch import run_ranks

HIDDEN, GATES, EXPERTS = 8, 3, 8
CASES = {
    "unequal tokens a rank": ([5, 1, 9, 3], None),
    "a rank without tokens": ([6, 0, 4, 2], None),
    "no tokens at all": ([0, 0, 0, 0], None),
    "all tokens to one expert": ([5, 2, 3, 4], 6),
}
MARGIN = 1e-4


def plain_layer(favourite: int | None) -> nn.Module:
    """Return a holder of one plain layer; every token goes to `favourite` where there is one."""
    torch.manual_seed(0)
    holder = nn.Module()
    options = RoutingOptions(EXPERTS, GATES, "paper")
    holder.moe = MoELayer(HIDDEN, FeedForward(HIDDEN, 12), options)
    for parameter in holder.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    if favourite is not None:
        weight = holder.moe.gate.wg.weight.data.view(GATES, EXPERTS, HIDDEN)
        weight.zero_()
        weight[:, favourite, 0] = 1.0
    return holder


def tokens_of(rank: int, count: int):
    """Return a rank's hidden states [1, count, hidden] (first value positive) and gate ids."""
    generator = torch.Generator().manual_seed(100 + rank)
    x = torch.randn(1, count, HIDDEN, generator=generator)
    x[..., 0] = x[..., 0].abs() + 0.5
    return x, torch.randint(GATES, (1, count), generator=generator)


def outputs_and_gradients(ep_size: int) -> dict:
    """Return, for every case, this rank's output, input gradient and parameter gradients."""
    from ds_moe_mtl.engine.engine import start_process_group
    from ds_moe_mtl.ranks.rendezvous import Ranks

    rank, world = dist.get_rank(), dist.get_world_size()
    start_process_group(Ranks(rank, world, rank, world, "127.0.0.1", 1, "environment"))
    results = {}
    for name, (counts, favourite) in CASES.items():
        holder = to_deepspeed(plain_layer(favourite), ep_size)
        holder.moe.set_deepspeed_parallelism()
        x, ids = tokens_of(rank, counts[rank])
        x.requires_grad_()
        y, _, loads = holder.moe(x, gate_ids=ids)
        y.sin().sum().backward()
        place, local = rank % ep_size, holder.moe.num_local_experts
        gradients = {plain_key(n, place, local): p.grad for n, p in holder.named_parameters()}
        results[name] = (y.detach(), x.grad, loads, gradients)
    return results


def both_sizes() -> list[dict]:
    return [outputs_and_gradients(2), outputs_and_gradients(4)]


@pytest.fixture(scope="module")
def found():
    return run_ranks(both_sizes, ranks=4, time_limit=240)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("which", "ep_size"), [(0, 2), (1, 4)])
def test_outputs_loads_and_gradients_equal_one_ranks(found, case, which, ep_size):
    counts, favourite = CASES[case]
    layer = plain_layer(favourite).moe
    sums: dict[str, torch.Tensor] = {}
    for rank, count in enumerate(counts):
        x, ids = tokens_of(rank, count)
        logits = (x[0] @ layer.gate.wg.weight.detach().T).view(count, GATES, EXPERTS)
        best = logits[torch.arange(count), ids[0]].topk(2).values
        assert count == 0 or (best[:, 0] - best[:, 1]).min() > MARGIN
        x.requires_grad_()
        y, _, loads = layer(x, gate_ids=ids)
        y.sin().sum().backward()
        mine = found[rank][which][case]
        torch.testing.assert_close(mine[0], y.detach(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(mine[1], x.grad, rtol=1e-5, atol=1e-6)
        assert torch.equal(mine[2], loads)
        for name, gradient in mine[3].items():
            assert gradient is not None, name
            sums[name] = sums.get(name, 0) + gradient
    # Gates are whole on every rank; an expert is on one rank of each group of ep_size.
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(sums[f"moe.{name}"], parameter.grad, rtol=1e-4, atol=1e-5)
