"""Our count of FLOPs against DeepSpeed's flops profiler, which counts calls as they happen."""

import pytest
import torch
from torch import nn

from ds_moe_mtl.benchmark.encoder_shape import shape_of
from ds_moe_mtl.models import HeadSpec, RoutingOptions, build_network
from ds_moe_mtl.planner.flops import count_flops, meetings
from ds_moe_mtl.planner.shape import Shape, random_transformer
from tests.support.families import KINDS, tiny

SHAPE = Shape(layers=2, hidden=64, intermediate=256, heads=4, vocabulary=40, positions=32)
LENGTHS = [32] * 8
TOKENS = sum(LENGTHS)
WIDE = {
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "max_position_embeddings": 40,
    # Local layers of three keys in blocks of one query: all that is computed is in the window.
    "local_attention": 2,
    "num_key_value_heads": 2,
}


def profiled_macs(transformer: nn.Module, kind: str) -> int:
    """Return DeepSpeed's multiply-accumulates of one forward pass."""
    from deepspeed.profiling.flops_profiler import FlopsProfiler

    torch.manual_seed(0)
    network = build_network(
        transformer, kind, [HeadSpec("one", 2)], 0.0, RoutingOptions(4, 1)
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


def counted(shape: Shape, kind: str, pooler: bool = False) -> float:
    """Return our operations of the same pass."""
    experts = 4 if kind == "mt_switch" else 0
    heads = [(shape.hidden, 2)] + ([(shape.hidden, shape.hidden)] if pooler else [])
    within = meetings(torch.tensor(LENGTHS), shape.window) / TOKENS
    flops = count_flops(
        shape,
        32,
        experts,
        int(experts > 0),
        heads,
        len(LENGTHS) / TOKENS,
        attended_within=within,
    )
    return TOKENS * flops.forward


@pytest.mark.parametrize("kind", ["mt_dense", "mt_switch"])
def test_deepspeeds_profiler_counts_the_same_products(kind):
    macs = profiled_macs(random_transformer(SHAPE, 0.0), kind)
    assert 2 * macs == pytest.approx(counted(SHAPE, kind), rel=0.01)


@pytest.mark.parametrize("model_type", KINDS)
def test_deepspeeds_profiler_counts_the_same_products_of_every_family(model_type):
    transformer = tiny(model_type, **WIDE)
    shape = shape_of(transformer.config)
    pooler = getattr(transformer, "pooler", None) is not None
    for kind in ("mt_dense", "mt_switch"):
        macs = profiled_macs(tiny(model_type, **WIDE), kind)
        assert 2 * macs == pytest.approx(counted(shape, kind, pooler), rel=0.01), kind
