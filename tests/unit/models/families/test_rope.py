"""Rotary positions keep their precision in 16 bits, and never depend on the rest of a batch."""

import copy

import pytest
import torch

from ds_moe_mtl.models import upcycle
from ds_moe_mtl.models.encoder import PackedEncoder
from tests.support.families import tiny

ROTARY = ("modernbert", "eurobert", "nomic_bert")
YARN = {"rope_type": "yarn", "factor": 2.0, "rope_theta": 10_000.0}
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}


@pytest.mark.parametrize("kind", ROTARY)
@pytest.mark.parametrize("cast", [lambda m: m.bfloat16(), lambda m: m.to(torch.float16)])
def test_frequencies_stay_in_float32_when_the_encoder_is_cast(kind, cast):
    encoder = PackedEncoder(tiny(kind))
    before = {
        name: buffer.clone() for name, buffer in encoder.named_buffers() if "inv_freq" in name
    }
    assert before
    copied = copy.deepcopy(encoder)
    for one in (cast(encoder), cast(copied)):
        assert one.dtype in (torch.bfloat16, torch.float16)
        for name, buffer in one.named_buffers():
            if "inv_freq" in name:
                assert torch.equal(buffer, before[name]), name
    moved = encoder.transformer.rotary_emb.to("meta")
    assert all(buffer.is_meta for buffer in moved.buffers())


def test_an_upcycled_model_of_ones_own_keeps_them_too():
    model = upcycle(tiny("modernbert"), num_experts=2, num_gates=1)
    before = {name: b.clone() for name, b in model.named_buffers() if "inv_freq" in name}
    assert all(torch.equal(dict(model.bfloat16().named_buffers())[n], b) for n, b in before.items())


def test_the_cast_angles_at_far_positions_are_those_of_float32():
    encoder = PackedEncoder(tiny("eurobert"))
    rotary = encoder.bfloat16().transformer.rotary_emb
    far = torch.tensor([[8_000]])
    cos, _ = rotary(torch.zeros(1, dtype=torch.float64), far)
    theta = rotary.config.rope_parameters["rope_theta"]
    exact = far[..., None].double() * theta ** -(torch.arange(0, 16, 2).double() / 16)
    torch.testing.assert_close(cos[..., :8], exact.cos(), rtol=0, atol=2e-3)


def test_positions_that_depend_on_the_longest_sequence_of_a_batch_are_refused():
    PackedEncoder(tiny("eurobert", rope_parameters=YARN))
    with pytest.raises(
        ValueError, match="rope_type is dynamic.*longest sequence.*allowed: default"
    ):
        PackedEncoder(tiny("eurobert", rope_parameters=DYNAMIC))
    both = {"full_attention": DYNAMIC, "sliding_attention": {"rope_type": "default"}}
    with pytest.raises(ValueError, match="rope_type is dynamic"):
        PackedEncoder(tiny("modernbert", rope_parameters=both))
