"""The memory formulas: counted weights, states by ZeRO stage, and what autograd really keeps."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, BertConfig, BertModel

from ds_moe_mtl.benchmark.encoder_shape import build, shape_of
from ds_moe_mtl.benchmark.workload import blocks_of
from ds_moe_mtl.config.deepspeed import UPDATE_PIECE
from ds_moe_mtl.models import HeadSpec, RoutingOptions, build_network, upcycle
from ds_moe_mtl.planner import memory
from ds_moe_mtl.planner.flops import count_ffn_weights
from ds_moe_mtl.planner.shape import SIZES, Shape, random_transformer
from tests.support.families import SHOWN, tiny

WEIGHTS = memory.Weights(experts=800, rest=160)
SMALL = Shape(layers=3, hidden=48, intermediate=192, heads=4, vocabulary=50, positions=64)


@pytest.mark.parametrize("size", SIZES)
def test_counted_weights_are_those_of_the_upcycled_model(size):
    shape = SIZES[size]
    config = BertConfig(
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.intermediate,
    )
    with torch.device("meta"):
        model = upcycle(BertModel(config, add_pooling_layer=False), num_experts=4, num_gates=8)
    experts = [p.numel() for name, p in model.named_parameters() if ".experts." in name]
    found = memory.count_weights(shape, num_experts=4, num_gates=8)
    assert found.experts == sum(experts)
    assert found.total == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("stage", "precision", "bytes_a_weight"),
    [(0, "fp32", 16), (1, "bf16", 16), (2, "bf16", 16), (1, "fp32", 20), (2, "fp32", 20)],
)
def test_one_rank_holds_adams_bytes_a_weight_and_zeros_copy(stage, precision, bytes_a_weight):
    assert memory.state_bytes(WEIGHTS, stage, 1, 1, precision).total == bytes_a_weight * 960


def test_experts_shard_over_their_own_group_and_the_rest_over_all_ranks():
    states = memory.state_bytes(WEIGHTS, zero_stage=2, world_size=8, ep_size=4, precision="bf16")
    whole, sharded = 160 + 800 / 4, 160 / 8 + 800 / 4 / 2
    assert states == (2 * whole, 2 * sharded, 12 * sharded)
    assert memory.state_bytes(WEIGHTS, 1, 8, 4, "bf16").gradients == 2 * whole


@pytest.mark.parametrize(("stage", "world", "ep"), [(3, 1, 1), (1, 2, 4)])
def test_what_cannot_run_has_no_figure(stage, world, ep):
    with pytest.raises(ValueError, match="zero_stage = 3|ep_size = 4"):
        memory.state_bytes(WEIGHTS, stage, world, ep, "bf16")


def batch_of(lengths: list[int]) -> dict:
    """Return a network's inputs for sequences of these lengths, longest first, in one group."""
    positions = torch.cat([torch.arange(length) for length in lengths])
    ends = torch.tensor([0, *lengths]).cumsum(0)
    return {
        "input_ids_T": torch.randint(5, 50, (sum(lengths),)),
        "token_type_ids_T": torch.zeros(sum(lengths), dtype=torch.long),
        "position_ids_T": positions,
        "cu_seqlens": ends.int(),
        "groups": [(0, len(lengths))],
        "task_ids_B": torch.zeros(len(lengths), dtype=torch.long),
        "spans_B22": torch.full((len(lengths), 2, 2), -1),
    }


def kept_bytes(
    kind: str,
    dropout: float,
    lengths: list[int],
    checkpointing: bool,
    transformer=None,
    dtype: torch.dtype = torch.float32,
) -> int:
    """Return the bytes of all different tensors, but weights, that a forward pass saves."""
    torch.manual_seed(0)
    network = build_network(
        transformer or random_transformer(SMALL, dropout),
        kind,
        [HeadSpec("task", 2)],
        dropout,
        RoutingOptions(num_experts=4, num_gates=1),
    )
    network = network.train().to(dtype)
    if checkpointing:
        network.checkpoint_activations()
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in weights and tensor.is_floating_point():
            kept[place] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        network(**batch_of(lengths))
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("kind", ["mt_dense", "mt_tag"])
@pytest.mark.parametrize("lengths", [[60, 50, 50, 40, 33], [64] * 12])
def test_the_activations_counted_are_those_that_autograd_keeps(kind, lengths):
    tokens = memory.Tokens(sum(lengths), len(lengths) * lengths[0], len(lengths) * lengths[0] ** 2)
    counted = memory.activation_bytes(SMALL, tokens, "fp32", kind == "mt_tag", dropout=0.1)
    assert kept_bytes(kind, 0.1, lengths, False) == pytest.approx(counted, rel=0.1)


WIDE = {
    "hidden_size": 48,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 60,
    "max_position_embeddings": 80,
    "local_attention": 16,  # windows of 8: sequences above 32 are cut
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("model_type", SHOWN)
def test_the_activations_counted_are_those_of_every_family(model_type, dtype):
    config = tiny(model_type, **WIDE).config
    shape, lengths = shape_of(config), [64] * 6
    blocks, queries, keys = blocks_of(64, shape.window)
    within, seen = blocks * queries * keys, blocks * keys
    tokens = memory.Tokens(6 * 64, 6 * 64, 6 * 64**2, 6, 6 * within, 6 * seen)
    precision = "fp32" if dtype == torch.float32 else "bf16"
    for kind in ("mt_dense", "mt_tag"):
        found = kept_bytes(kind, 0.1, lengths, False, build(config, 0.1, pooler=False), dtype)
        counted = memory.activation_bytes(shape, tokens, precision, kind == "mt_tag", dropout=0.1)
        assert found == pytest.approx(counted, rel=0.1), kind


@given(
    world=st.sampled_from([1, 2, 4, 8, 16]),
    ep=st.sampled_from([1, 2, 4]),
    stage=st.sampled_from([0, 1, 2]),
    precision=st.sampled_from(["fp32", "bf16"]),
)
def test_more_sharing_never_takes_more(world, ep, stage, precision):
    if world % ep:
        return
    weights = memory.count_weights(SIZES["minilm"], 4, 8)

    def states(stage: int, world: int, ep: int) -> float:
        return memory.state_bytes(weights, stage, world, ep, precision).total

    here = states(stage, world, ep)
    assert states(stage, 2 * world, ep) <= here
    assert stage < 1 or states(2, world, ep) <= states(1, world, ep)
    assert world % 8 or states(stage, world, 2 * ep if ep < 4 else ep) <= here


# MiB at the fullest moment of a step, measured: MiniLM, ZeRO 1, batches of RTE, MRPC, STS-B, CoLA
# (docs/planning.md). World size, sparse, precision, ep_size, tokens -> peak.
MEASURED = [
    (1, True, "bf16", 1, memory.Tokens(1100, 1295, 69727), 732.9),
    (1, True, "fp32", 1, memory.Tokens(1100, 1295, 69727), 953.7),
    (1, False, "bf16", 1, memory.Tokens(1100, 1295, 69727), 428.4),
    (1, False, "fp32", 1, memory.Tokens(1100, 1295, 69727), 593.0),
    (2, True, "bf16", 1, memory.Tokens(512, 587, 34663), 514.3),
    (2, True, "fp32", 1, memory.Tokens(512, 587, 34663), 777.4),
    (2, True, "fp32", 2, memory.Tokens(548, 638, 33472), 709.1),
    (2, True, "bf16", 2, memory.Tokens(548, 638, 33472), 485.0),
    (2, False, "bf16", 1, memory.Tokens(516, 623, 40189), 336.4),
    (2, False, "fp32", 1, memory.Tokens(516, 623, 40189), 533.8),
]


def peak_mib(world, sparse, precision, ep, tokens) -> float:
    """Return the planned peak of a run of MEASURED, in MiB."""
    shape = SIZES["minilm"]
    heads = [(384, outputs) for outputs in (2, 2, 1, 2)]
    counts = memory.count_parameters(shape, 4 if sparse else 0, 4 if sparse else 0, heads)
    kept = memory.activation_bytes(shape, tokens, precision, sparse, 0.1, ep)
    weights, piece = memory.split_weights(counts), UPDATE_PIECE["cpu"]
    peak = memory.peak_bytes(
        shape, weights, 1, world, ep, precision, kept, tokens, 50_000_000, piece=piece
    )
    return peak.total / 2**20


@pytest.mark.parametrize("row", MEASURED)
def test_the_peak_is_within_two_percent_of_what_was_measured(row):
    *run, measured = row
    assert peak_mib(*run) == pytest.approx(measured, rel=0.02)


# MiB, measured likewise: encoders of MiniLM's depth and width and the embedded suite. model_type,
# sparse, precision -> peak, all of 898 tokens in 33 sequences.
OF_FAMILIES = [
    ("modernbert", True, "bf16", 697.7),
    ("modernbert", False, "bf16", 395.8),
    ("modernbert", True, "fp32", 883.7),
    ("modernbert", False, "fp32", 528.4),
    ("eurobert", True, "bf16", 692.8),
    ("eurobert", True, "fp32", 871.0),
]
MEDIUM = {
    "vocab_size": 30_522,
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1024,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "pad_token_id": 0,
}


@pytest.mark.parametrize(("model_type", "sparse", "precision", "measured"), OF_FAMILIES)
def test_the_peak_of_other_families_is_within_two_percent_of_what_was_measured(
    model_type, sparse, precision, measured
):
    shape = shape_of(AutoConfig.for_model(model_type, **MEDIUM))
    tokens = memory.Tokens(898, 1053, 33753, 33, 33753, 1053)
    heads = [(384, outputs) for outputs in (3, 2, 1, 2, 2, 1, 1, 2)]
    counts = memory.count_parameters(shape, 4 if sparse else 0, 8 if sparse else 0, heads)
    kept = memory.activation_bytes(shape, tokens, precision, sparse, 0.1)
    weights, piece = memory.split_weights(counts), UPDATE_PIECE["cpu"]
    peak = memory.peak_bytes(
        shape, weights, 1, 1, 1, precision, kept, tokens, 50_000_000, piece=piece
    )
    assert peak.total / 2**20 == pytest.approx(measured, rel=0.02)


# GiB at the fullest moment of two steps on an H100, measured: BERT-Large, bf16, 32 sequences of 128
# tokens, by DeepSpeed's own update (docs/gpu.md). Experts, stage, offload, checkpointing -> peak.
ON_AN_H100 = [
    (4, 1, False, False, 15.82),
    (4, 1, False, True, 15.82),
    (4, 1, True, False, 5.27),
    (4, 1, True, True, 3.86),
    (4, 2, False, False, 17.23),
    (4, 2, False, True, 15.05),
    (4, 2, True, False, 5.27),
    (4, 2, True, True, 2.38),
    (16, 1, False, False, 56.38),
    (16, 1, False, True, 56.38),
]


@pytest.mark.parametrize(("experts", "stage", "offloads", "checkpointing", "measured"), ON_AN_H100)
def test_the_peak_on_a_gpu_is_within_eight_percent_of_what_was_measured(
    experts, stage, offloads, checkpointing, measured
):
    shape, tokens = SIZES["bert_large"], memory.Tokens(4096, 4096, 4096 * 128, 32)
    kept = memory.activation_bytes(
        shape, tokens, "bf16", True, 0.1, checkpointing=checkpointing, on_gpu=True
    )
    weights = memory.count_weights(shape, experts, 8)
    peak = memory.peak_bytes(
        shape, weights, stage, 1, 1, "bf16", kept, tokens, 50_000_000, offloads, flash=True
    )
    assert peak.total / 2**30 == pytest.approx(measured, rel=0.08)


def test_a_gpus_dropout_masks_have_a_byte_an_element():
    tokens = memory.Tokens(100, 100, 2500, 4)

    def kept(dropout):
        return memory.activation_bytes(SMALL, tokens, "bf16", False, dropout, on_gpu=True)

    assert kept(0.1) - kept(0.0) == (2 * SMALL.layers + 1) * 100 * SMALL.hidden


def test_flash_attentions_sums_are_the_fullest_moment_with_short_sequences_alone():
    weights = memory.count_weights(SMALL, 0, 0)

    def buffers(sequences, flash):
        tokens = memory.Tokens(1000, 1000, 0, sequences)
        return memory.peak_bytes(
            SMALL, weights, 1, 1, 1, "bf16", 1e9, tokens, 1, piece=1, flash=flash
        ).buffers

    sums = 4 * (1000 + 128 * 200) * 48  # [T + 128 B, H, d] in fp32
    four_rows, given_back, inner = 2 * 4 * 1000 * 48, 2 * 2 * 1000 * 192, 2 * 1000 * 192
    more = buffers(200, True) - buffers(200, False)
    assert more == sums + four_rows - given_back - inner
    assert buffers(8, True) == buffers(8, False)


def test_stage_2_keeps_its_own_gradients_from_the_first_full_bucket_on():
    shape, tokens = SIZES["bert_large"], memory.Tokens(4096, 4096, 4096 * 128, 32)
    weights = memory.count_weights(shape, 4, 8)

    def fullest(stage, bucket):
        return memory.peak_bytes(shape, weights, stage, 1, 1, "bf16", 4e9, tokens, bucket)

    small = fullest(2, 50_000_000)
    assert small.phase == "backward" and small.gradients == 2 * weights.total
    assert fullest(2, weights.total) == fullest(1, weights.total)


def test_checkpointing_keeps_little_more_than_each_layers_input():
    lengths = [64] * 12
    rows = sum(lengths) * SMALL.hidden * 4
    kept = kept_bytes("mt_tag", 0.1, lengths, checkpointing=True)
    assert SMALL.layers * rows <= kept <= (SMALL.layers + 5) * rows


def test_levers_change_what_is_kept_by_their_closed_forms():
    tokens = memory.Tokens(100, 120, 4000)

    def kept(sparse=True, **levers):
        return memory.activation_bytes(
            SMALL, tokens, "fp32", sparse, 0.1, levers=memory.Levers(**levers)
        )

    one = (kept() - kept(sparse=False)) / SMALL.layers
    assert kept(layers=1) == pytest.approx(kept(sparse=False) + one)
    ffn = count_ffn_weights(SMALL)
    assert kept(merged=3) == pytest.approx(kept() + 4 * 3 * ffn * SMALL.layers)
    weights = memory.count_weights(SMALL, 4, 2)
    plain, averaged = (
        memory.state_bytes(weights, 1, 4, 2, "bf16", averages=on).optimizer for on in (False, True)
    )
    assert averaged == plain * 16 / 12  # 4 bytes beside the fp32 copy and two moments
