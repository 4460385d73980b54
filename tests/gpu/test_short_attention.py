"""Our attention for short sequences on a GPU: beside torch's flash for long ones, and in a network.

T tokens, H heads, d head size. tests/kernels compares short sequences with float64.
"""

import pytest
import torch

from ds_moe_mtl.models.attention.choice import PACKED_SDPA, PACKED_SHORT, attention_plan
from ds_moe_mtl.models.attention.padded import eager, padded
from ds_moe_mtl.models.attention.short import short
from tests.support.gpu import DEVICE, HERE, assert_as_good, needs_gpu

pytestmark = [needs_gpu, pytest.mark.skipif(not HERE, reason="flash runs on GPUs only")]

LENGTHS = [512, 300, 129, 128, 127, 64, 33, 32, 17, 9, 5, 5, 3, 2, 1]


def draw(size, dtype):
    generator = torch.Generator().manual_seed(0)
    shape = (1, 12, sum(LENGTHS), size)
    drawn = [torch.randn(shape, generator=generator).to(DEVICE, dtype) for _ in range(4)]
    return [*drawn[:3], drawn[3].transpose(1, 2)]


def attended(function, tensors, name, dropout=0.0):
    *leaves, grad = (x.detach().clone() for x in tensors)
    leaves = [x.requires_grad_() for x in leaves]
    packing = attention_plan(name, LENGTHS, None, DEVICE, leaves[0].dtype)
    scaling = leaves[0].shape[-1] ** -0.5
    out, _ = function(None, *leaves, None, scaling=scaling, dropout=dropout, packing=packing)
    return [out, *torch.autograd.grad(out, leaves, grad)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("size", [32, 64, 128])
def test_output_and_gradients_are_as_good_as_those_of_padded_attention(size, dtype):
    tensors = draw(size, dtype)
    exact = attended(padded(eager), [x.double() for x in tensors], PACKED_SDPA)
    theirs = attended(padded(eager), tensors, PACKED_SDPA)
    ours = attended(short, tensors, PACKED_SHORT)
    for what, a, b, c in zip(("out", "dq", "dk", "dv"), ours, theirs, exact, strict=True):
        assert_as_good(a, b, c, what)


def test_two_passes_under_dropout_agree_to_the_bit():
    tensors = draw(64, torch.bfloat16)
    passes = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        passes.append(attended(short, tensors, PACKED_SHORT, 0.1))
    assert all(torch.equal(a, b) for a, b in zip(*passes[:2], strict=True))
    assert not torch.equal(passes[0][0], passes[2][0])
