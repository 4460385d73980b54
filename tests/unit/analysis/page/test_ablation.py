"""A disabled expert gives 0, whatever its form, and is afterwards what it was."""

import copy

import pytest
import torch

from ds_moe_mtl.analysis.page.ablation import zeroed
from ds_moe_mtl.models.token_level.experts import FeedForward


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ["gelu", "geglu", "swiglu"])
@torch.no_grad()
def test_a_disabled_expert_gives_nothing_and_comes_back_to_the_bit(activation, bias):
    expert = FeedForward(16, 24, activation, bias=bias).eval()
    before = copy.deepcopy(expert.state_dict())
    x_TD = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    with zeroed(expert):
        assert torch.equal(expert(x_TD), torch.zeros(5, 16))
    assert expert(x_TD).abs().max() > 0
    for name, tensor in expert.state_dict().items():
        assert torch.equal(tensor, before[name])
