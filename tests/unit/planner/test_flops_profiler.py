"""Our count of FLOPs against DeepSpeed's flops profiler, which counts calls as they happen."""

import pytest
import torch

from ds_moe_mtl.models import HeadSpec, RoutingOptions, build_network
from ds_moe_mtl.planner.flops import count_flops
from ds_moe_mtl.planner.shape import Shape, random_transformer

SHAPE = Shape(layers=2, hidden=64, intermediate=256, heads=4, vocabulary=40, positions=32)
LENGTHS = [32] * 8
TOKENS = sum(LENGTHS)


def profiled_macs(kind: str) -> int:
    """Return DeepSpeed's multiply-accumulates of one forward pass."""
    from deepspeed.profiling.flops_profiler import FlopsProfiler

    torch.manual_seed(0)
    network = build_network(
        random_transformer(SHAPE, 0.0), kind, [HeadSpec("one", 2)], 0.0, RoutingOptions(4, 1)
    ).eval()
    profiler = FlopsProfiler(network)
    profiler.start_profile()
    with torch.no_grad():
        network(
            input_ids_T=torch.randint(5, 40, (TOKENS,)),
            token_type_ids_T=torch.zeros(TOKENS, dtype=torch.long),
            position_ids_T=torch.cat([torch.arange(length) for length in LENGTHS]),
            cu_seqlens=torch.tensor([0, *LENGTHS]).cumsum(0).int(),
            groups=[(0, len(LENGTHS))],
            task_ids_B=torch.zeros(len(LENGTHS), dtype=torch.long),
            spans_B22=torch.full((len(LENGTHS), 2, 2), -1),
        )
    macs = profiler.get_total_macs()
    profiler.end_profile()
    return macs


@pytest.mark.parametrize("kind", ["mt_dense", "mt_switch"])
def test_deepspeeds_profiler_counts_the_same_products(kind):
    experts = 4 if kind == "mt_switch" else 0
    heads = [(SHAPE.hidden, 2)]
    flops = count_flops(SHAPE, 32, experts, int(experts > 0), heads, len(LENGTHS) / TOKENS)
    assert 2 * profiled_macs(kind) == pytest.approx(TOKENS * flops.forward, rel=0.01)
