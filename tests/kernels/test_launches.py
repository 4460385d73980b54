"""How often the GPU is started: launches cost more than the work of a small layer."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime.interpreter import GridExecutor

import moe_kernels
from tests.kernels.layers import KERNEL_DEVICE, make_layer

# Operations of torch that start no kernel: allocations and views.
FREE = {
    "empty", "new_empty", "empty_like", "new_empty_strided", "empty_strided", "detach", "view",
    "_unsafe_view", "unbind", "slice", "alias", "expand", "as_strided", "t", "reshape", "unsqueeze",
}  # fmt: skip

pytestmark = pytest.mark.skipif(
    KERNEL_DEVICE == "cuda", reason="launches are counted in Triton's interpreter"
)


class Launches(TorchDispatchMode):
    """Names of the Triton kernels and torch operations that ran, in order."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name not in FREE:
            self.names.append(name)
        return function(*args, **(kwargs or {}))


@pytest.fixture
def launches(monkeypatch):
    counted = Launches()
    run_grid = GridExecutor.__call__

    def call(self, *args, **kwargs):
        # What the interpreter itself does with tensors is no launch.
        counted.names.append(self.fn.__name__)
        before = len(counted.names)
        run_grid(self, *args, **kwargs)
        del counted.names[before:]

    monkeypatch.setattr(GridExecutor, "__call__", call)
    return counted


@pytest.mark.parametrize("gate_scale", moe_kernels.GATE_SCALES)
def test_a_step_takes_at_most_ten_launches_forward_and_twelve_backward(launches, gate_scale):
    layer = make_layer(20, 16, 24, 1, 3, torch.float16)
    leaves = [tensor.clone().requires_grad_() for tensor in layer.tensors()]
    kinds = [leaves[2 + 3 * i : 5 + 3 * i] for i in range(4)]

    def forward():
        return moe_kernels.top1_moe_ffn(
            leaves[0], leaves[1], None, *kinds, layer.mask_T, gate_scale, impl="triton"
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
