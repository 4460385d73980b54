"""Attention without pads: what torch's operators are given, against attention that pads.

The operators run on GPUs only (tests/gpu). Here plain PyTorch stands in for them on the CPU.
"""

import pytest
import torch
from transformers import BertConfig, BertModel

from ds_moe_mtl.models import HeadSpec, RoutingOptions, build_network
from ds_moe_mtl.models.attention.choice import (
    PACKED_EAGER,
    PACKED_FLASH,
    PACKED_SDPA,
    packed_attention,
)
from ds_moe_mtl.models.attention.flash import packed_sequences, why_not_flash
from tests.support.families import tiny
from tests.support.flash_operators import flash_on_cpu

CPU = torch.device("cpu")
LENGTHS = (7, 5, 5, 2, 1)


@pytest.fixture
def stand_in():
    with flash_on_cpu():
        yield


def test_the_operators_exist_with_the_arguments_that_are_passed():
    q = torch.empty(20, 4, 32, dtype=torch.bfloat16, device="meta")
    ends = torch.empty(6, dtype=torch.int32, device="meta")
    out, logsumexp, rng, unused, _ = torch.ops.aten._flash_attention_forward(
        q, q, q, ends, ends, 7, 7, 0.1, False, False, scale=0.5, window_size_left=3
    )
    sides = {"window_size_left": 3, "window_size_right": 3}
    grads = torch.ops.aten._flash_attention_backward(
        out, q, q, q, out, logsumexp, ends, ends, 7, 7, 0.1, False, rng, unused, scale=0.5, **sides
    )
    assert out.shape == q.shape and [grad.shape for grad in grads] == [q.shape] * 3


@pytest.mark.parametrize("kind", ["mt_dense", "mt_tag"])
@pytest.mark.parametrize("encoder", ["bert", "modernbert", "eurobert"])
def test_attention_without_pads_gives_what_attention_with_pads_gives(stand_in, encoder, kind):
    """modernbert: within windows; eurobert: with grouped keys and values."""
    transformer = tiny(encoder)
    heads = [HeadSpec("first", 2), HeadSpec("second", 3)]
    network = build_network(transformer, kind, heads, 0.0, RoutingOptions(num_gates=2)).eval()
    ends = torch.tensor([0, *LENGTHS]).cumsum(0).int()
    batch = {
        "input_ids_T": torch.randint(5, 60, (20,)),
        "token_type_ids_T": torch.zeros(20, dtype=torch.long),
        "position_ids_T": torch.cat([torch.arange(n) for n in LENGTHS]),
        "cu_seqlens": ends,
        "groups": None,
        "task_ids_B": torch.arange(5) % 2,
        "spans_B22": torch.full((5, 2, 2), -1),
    }
    found = {}
    for name in (PACKED_FLASH, PACKED_SDPA):
        network.encoder.attention = name
        out = network(**batch, lengths=LENGTHS if name == PACKED_FLASH else None)
        logits = out.logits_BC.masked_fill(out.logits_BC.isinf(), 0)
        network.zero_grad()
        logits.square().sum().backward()
        found[name] = [logits, *(p.grad for p in network.parameters() if p.grad is not None)]
    for ours, padded in zip(*found.values(), strict=True):
        torch.testing.assert_close(ours, padded, rtol=1e-4, atol=1e-5)
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_batch_without_sequences_runs_on_the_stand_in_token(stand_in):
    config = BertConfig(vocab_size=60, hidden_size=32, num_hidden_layers=1, num_attention_heads=4)
    network = build_network(BertModel(config), "mt_dense", [HeadSpec("one", 2)], 0.0)
    network.encoder.attention = PACKED_FLASH
    none = torch.zeros(0, dtype=torch.long)
    ends, spans = torch.zeros(1, dtype=torch.int32), torch.zeros((0, 2, 2), dtype=torch.long)
    out = network(none, none, none, ends, None, none, spans, lengths=(), longest_word=1)
    out.logits_BC.sum().backward()
    assert out.logits_BC.shape == (0, 2)
    assert all(p.grad is not None for p in network.encoder.transformer.encoder.parameters())


def test_the_plan_needs_no_word_from_the_device():
    ends = torch.empty(4, dtype=torch.int32, device="meta")  # which has no values to read
    plan = packed_sequences((9, 4, 4), torch.device("meta"), ends)
    assert (plan.tokens, plan.longest) == (17, 9) and plan.ends is ends


def test_each_device_and_precision_has_its_attention():
    assert packed_attention(CPU, torch.float32, 32) == PACKED_SDPA
    assert packed_attention(CPU, torch.bfloat16, 32) == PACKED_EAGER
    gpu = torch.device("cuda")
    assert packed_attention(gpu, torch.float32, 32) == PACKED_SDPA
    assert "multiples of 8" in why_not_flash(gpu, torch.bfloat16, 36)
    assert "needs a GPU" in why_not_flash(CPU, torch.bfloat16, 64)
