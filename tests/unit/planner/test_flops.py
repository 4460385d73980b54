"""Weights and FLOPs against counts worked by hand, and against the modules themselves."""

import pytest
import torch

from ds_moe_mtl.models import HeadSpec, RoutingOptions, build_network
from ds_moe_mtl.planner.flops import count_flops, count_parameters, meetings
from ds_moe_mtl.planner.levers import Levers
from ds_moe_mtl.planner.shape import SIZES, Shape, random_transformer

TINY = Shape(layers=2, hidden=8, intermediate=16, heads=2, vocabulary=20, positions=10)
ADDED = {"minilm": 21_268_224, "bert_base": 170_007_552, "bert_large": 604_348_416}


@pytest.mark.parametrize("size", SIZES)
def test_upcycling_adds_the_published_weights(size):
    dense, sparse = count_parameters(SIZES[size]), count_parameters(SIZES[size], 4, 8)
    assert sparse.total - sparse.gates - dense.total == ADDED[size]


def test_eight_gates_of_minilm_have_the_published_weights():
    assert count_parameters(SIZES["minilm"], 4, 8).gates == 73_728


def test_parts_are_those_of_a_built_network():
    heads = [HeadSpec("two", 2), HeadSpec("words", 3, spans=True)]
    network = build_network(
        random_transformer(TINY, 0.0, pooler=True), "mt_tag", heads, 0.0, RoutingOptions(4, 2)
    )
    counts = count_parameters(TINY, 4, 2, [(8, 2), (24, 3)], pooler=True)
    found = {"experts": 0, "gates": 0, "heads": 0}
    for name, parameter in network.named_parameters():
        part = "experts" if ".experts." in name else "gates" if ".wg." in name else "heads"
        if part != "heads" or name.startswith("heads."):
            found[part] += parameter.numel()
    assert found == {part: getattr(counts, part) for part in found}
    assert counts.total == sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("options", "levers"),
    [
        ({"layers": (1,)}, Levers(layers=1)),
        ({"shared_share": 0.5}, Levers(shared=8)),
        ({"combine": "merged", "gate_scale": "preserve"}, Levers(merged=2)),
        ({"layers": "last_half", "shared_share": 0.5}, Levers(layers=1, shared=8)),
    ],
)
def test_weights_under_a_lever_are_those_of_a_built_network(options, levers):
    heads = [HeadSpec("two", 2), HeadSpec("three", 3)]
    network = build_network(
        random_transformer(TINY, 0.0), "mt_tag", heads, 0.0, RoutingOptions(4, 2, **options)
    )
    counts = count_parameters(TINY, 4, 2, [(8, 2), (8, 3)], levers=levers)
    sizes = {name: parameter.numel() for name, parameter in network.named_parameters()}
    assert counts.total == sum(sizes.values())
    assert counts.experts == sum(size for name, size in sizes.items() if ".experts." in name)
    assert counts.gates == sum(size for name, size in sizes.items() if ".wg." in name)


def test_a_merge_costs_gates_times_experts_times_an_ffns_weights_a_call():
    plain = count_flops(TINY, 5, 4, 3)
    found = count_flops(TINY, 5, 4, 3, levers=Levers(layers=1, merged=3, call_tokens=10))
    ffn = 2 * 8 * 16 + 16 + 8
    assert found.merge == 2 * 3 * 4 * ffn / 10 and found.gates == 0
    assert found.forward == plain.forward - plain.gates + found.merge
    assert count_flops(TINY, 5, 4, 3, levers=Levers(layers=1)).gates == plain.gates / 2


def test_a_token_uses_one_expert_and_one_gate_a_layer():
    dense, sparse = count_parameters(TINY), count_parameters(TINY, 4, 3)
    assert sparse.active == dense.total + 2 * 4 * 8  # two layers' gates of 4 experts x 8 wide


def test_flops_of_a_small_encoder_worked_by_hand():
    flops = count_flops(TINY, 5, 4, 3, heads=[(8, 2)], heads_a_token=0.25)
    assert flops.projections == 2 * 4 * (2 * 8 * 8)  # layers, projections, 2 D D
    assert flops.attention == 2 * 2 * (2 * 5 * 8)  # layers, two products, 2 keys D
    assert flops.ffn == 2 * 2 * (2 * 8 * 16)
    assert flops.gates == 2 * (2 * 8 * 4)
    assert flops.heads == 0.25 * 2 * 8 * 2
    assert flops.backward == 2 * flops.forward and flops.step == 3 * flops.forward


def test_sparse_flops_are_the_dense_ones_and_the_gates():
    dense, sparse = count_flops(SIZES["minilm"], 128), count_flops(SIZES["minilm"], 128, 64, 8)
    assert sparse.forward - sparse.gates == dense.forward
    assert dense.ffn == 6 * 4 * 384 * 1536


@pytest.mark.parametrize("window", [0, 1, 3, 10])
def test_meetings_are_the_pairs_of_tokens_within_a_window(window):
    lengths = torch.tensor([1, 2, 4, 7, 11, 23])
    pairs = 0
    for length in lengths.tolist():
        apart = (torch.arange(length)[:, None] - torch.arange(length)).abs()
        pairs += int((apart <= (window or length)).sum())
    assert meetings(lengths, window) == pairs


def test_flops_of_a_gated_encoder_with_local_layers_worked_by_hand():
    shape = TINY._replace(gated=True, head_size=2, local=1, window=1, projections=96, mapped=24)
    flops = count_flops(shape, 5, attended_within=2.6)
    assert flops.projections == 2 * (2 * 96 + 24)
    assert flops.attention == 2 * 2 * (5 + 2.6) * (2 * 2)  # two heads of two columns
    assert flops.ffn == 2 * 3 * (2 * 8 * 16)
    assert count_flops(shape, 5).attention == 2 * 2 * (5 + 3) * (2 * 2)  # at most three keys
    assert count_parameters(shape._replace(biased=False), 4, 1).experts == 2 * 4 * 3 * 8 * 16
