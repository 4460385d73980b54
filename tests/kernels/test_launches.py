"""How often the GPU is started: launches cost more than the work of a small layer."""

import pytest
import torch

import moe_kernels
from tests.kernels.layers import KERNEL_DEVICE, make_layer
from tests.support.launches import counted_launches

pytestmark = pytest.mark.skipif(
    KERNEL_DEVICE == "cuda", reason="launches are counted in Triton's interpreter"
)


@pytest.fixture
def launches(monkeypatch):
    return counted_launches(monkeypatch)


BOTH = ("b1", "b2")


@pytest.mark.parametrize(
    "gate_scale, activation, biases",
    [*((scale, "gelu", BOTH) for scale in moe_kernels.GATE_SCALES), ("paper", "geglu", BOTH),
     ("preserve", "swiglu", ())],
)  # fmt: skip
def test_a_step_takes_at_most_ten_launches_forward_and_twelve_backward(
    launches, gate_scale, activation, biases
):
    layer = make_layer(20, 16, 24, 1, 3, torch.float16, activation=activation, biases=biases)
    leaves = [tensor.clone().requires_grad_() for tensor in layer.tensors()]
    kinds = layer.by_kind(leaves)

    def forward():
        return moe_kernels.top1_moe_ffn(
            leaves[0], leaves[1], None, *kinds, layer.mask_T, gate_scale, activation, impl="triton"
        )[0]

    # Gate ids are None because checking their range, on the CPU alone, takes operations too.
    forward()  # makes the address table, once
    launches.names.clear()
    with launches:
        y_TD = forward()
    assert launches.names == [
        "choose_kernel", "scan_kernel", "order_kernel", "up_kernel", "down_kernel",
    ]  # fmt: skip
    launches.names.clear()
    with launches:
        gradients = torch.autograd.grad(y_TD, leaves, layer.grad_y_TD)
    assert len(gradients) == len(leaves)
    assert len(launches.names) <= 12, launches.names
    assert sum(name.endswith("_kernel") for name in launches.names) == 6
