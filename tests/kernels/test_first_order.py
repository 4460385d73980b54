"""What the operators' autograd functions cannot do is an error, never a wrong number."""

import pytest
import torch

import moe_kernels
from tests.kernels.layers import make_layer


def layer_output(layer, x_TD):
    return moe_kernels.top1_moe_ffn(
        x_TD, layer.gate_weight, layer.gate_ids_T, *layer.experts, layer.mask_T,
        activation=layer.activation, impl="torch",
    )[0]  # fmt: skip


def composed_output(layer, x_TD):
    experts = len(layer.experts[0])
    routing = moe_kernels.route(x_TD, layer.gate_weight, layer.gate_ids_T, experts, layer.mask_T)
    rows = moe_kernels.permute(x_TD, routing, impl="torch")
    return moe_kernels.unpermute(rows, routing, impl="torch")


@pytest.mark.parametrize(
    "output, form",
    [
        (layer_output, {}),
        (layer_output, {"activation": "swiglu", "biases": ()}),
        (composed_output, {}),
    ],
)
@pytest.mark.parametrize("nonlinear", [False, True])
def test_a_second_derivative_raises_also_where_the_first_gradient_is_a_constant(
    output, form, nonlinear
):
    layer = make_layer(9, 8, 12, 2, 4, **form)
    x_TD = layer.x_TD.clone().requires_grad_()
    y_TD = output(layer, x_TD)
    loss = y_TD.square().sum() if nonlinear else y_TD.sum()
    (expected,) = torch.autograd.grad(loss, x_TD, retain_graph=True)
    (first,) = torch.autograd.grad(loss, x_TD, create_graph=True)
    assert torch.equal(first, expected)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        first.square().sum().backward()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("output", [layer_output, composed_output])
def test_a_trace_is_refused_and_says_what_to_use(output):
    layer = make_layer(9, 8, 12, 2, 4)
    with pytest.raises(RuntimeError, match="cannot be traced"):
        torch.jit.trace(lambda x_TD: output(layer, x_TD), layer.x_TD.clone())
