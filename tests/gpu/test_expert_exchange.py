"""Experts reached by all-to-all, through a NCCL group of one rank, and those in place: both
against plain PyTorch and float64."""

from dataclasses import replace

import pytest
import torch

from tests.support.gpu import DEVICE, VISIBLE, assert_as_good, needs_deepspeed, needs_gpu
from tests.support.launch import run_ranks

pytestmark = [needs_gpu, needs_deepspeed]

TOKENS, HIDDEN, INNER, GATES, EXPERTS = 999, 64, 256, 3, 4


def both_ways(gate_scale: str, dtype: torch.dtype) -> dict[str, dict[str, torch.Tensor]]:
    """Return output and gradients in `dtype`, by plain PyTorch ("reference"), in place and
    exchanged, and exact ones in float64."""
    from torch import distributed as dist

    from ds_moe_mtl.models.token_level.experts import FeedForward
    from ds_moe_mtl.models.token_level.gating import RoutingOptions, route_tokens
    from ds_moe_mtl.models.token_level.moe_layer import MoELayer
    from ds_moe_mtl.moe.dispatch import remote_experts

    torch.manual_seed(0)
    options = RoutingOptions(num_experts=EXPERTS, num_gates=GATES, gate_scale=gate_scale)
    layer = MoELayer(HIDDEN, FeedForward(HIDDEN, INNER), options)
    torch.nn.init.normal_(layer.gate.wg.weight, std=0.3)
    for parameter in layer.experts.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    x = torch.randn(1, TOKENS, HIDDEN)
    gate_ids, grad = torch.arange(TOKENS)[None] % GATES, torch.randn(1, TOKENS, HIDDEN)
    layer = layer.to(DEVICE, dtype)
    x, grad = x.to(DEVICE, dtype), grad.to(DEVICE, dtype)

    def in_place(layer, x, gate_ids):
        return layer(x, gate_ids=gate_ids)[0]

    def exchanged(layer, x, gate_ids):
        weight = layer.gate.wg.weight
        routing, _ = route_tokens(x, weight, gate_ids, None, layer.options, True)
        experts, group = list(layer.experts), dist.group.WORLD
        y = remote_experts(x[0], routing, experts, layer.options, group)
        return y[None]

    found = {}
    for name, run in (("in place", in_place), ("exchanged", exchanged)):
        found[name] = _results(run, layer, x, gate_ids.to(DEVICE), grad)
    layer.options = replace(options, impl="torch")
    found["reference"] = _results(in_place, layer, x, gate_ids.to(DEVICE), grad)
    exact = layer.cpu().double()
    found["exact"] = _results(in_place, exact, x.cpu().double(), gate_ids, grad.cpu().double())
    found["backend"] = dist.get_backend()
    return found


def _results(run, layer, x, gate_ids, grad) -> dict[str, torch.Tensor]:
    x = x.detach().requires_grad_()
    layer.zero_grad()
    y = run(layer, x, gate_ids)
    y.backward(grad)
    gradients = {name: p.grad.cpu() for name, p in layer.named_parameters()}
    return {"y": y.detach().cpu(), "x": x.grad.cpu(), **gradients}


@pytest.mark.parametrize("gate_scale", ["paper", "preserve"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
def test_experts_in_place_and_exchanged_are_as_good_as_plain_pytorch(gate_scale, dtype):
    (found,) = run_ranks(both_ways, gate_scale, dtype, ranks=1, launcher="python", env=VISIBLE)
    print(f"backend {found['backend']}")
    assert found["backend"] == ("nccl" if DEVICE.type == "cuda" else "gloo")
    assert found["exact"].keys() == found["exchanged"].keys()
    for name, exact in found["exact"].items():
        for way in ("in place", "exchanged"):
            assert_as_good(found[way][name], found["reference"][name], exact, f"{way}, {name}")
