"""The Triton kernels against float64: on the GPU, or in Triton's interpreter without one."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import moe_kernels
from moe_kernels.experts import address_table
from tests.kernels.layers import (
    KERNEL_DEVICE,
    assert_close_to_truth,
    has_margin,
    make_layer,
    run,
)

# Activation and biases: each bias is missing with the other one there, and both together.
GATED = [("geglu", ("b1", "b2")), ("geglu_tanh", ("b2",)), ("swiglu", ("b1",)), ("swiglu", ())]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# T, D, F, G, E: nothing, one token, fewer than a tile, more than a tile, odd sizes.
SHAPES = [(0, 16, 24, 2, 4), (1, 16, 24, 2, 4), (7, 20, 36, 1, 3), (129, 33, 70, 8, 4)]


def top1(layer, **options):
    """Return top1_moe_ffn's results and gradients on the kernels' device."""
    return run(layer.to(KERNEL_DEVICE), moe_kernels.top1_moe_ffn, impl="triton", **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_results_and_gradients_are_as_exact_as_plain_pytorchs(shape, dtype):
    assert_close_to_truth(make_layer(*shape, dtype), "triton")


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_preserved_scale_and_tanh_gelu(dtype):
    layer = make_layer(40, 16, 24, 3, 2, dtype)
    assert_close_to_truth(layer, "triton", gate_scale="preserve", activation="gelu_tanh")


@pytest.mark.parametrize(
    "form, shape, dtype",
    [
        (GATED[0], SHAPES[0], torch.float16),
        (GATED[1], SHAPES[1], torch.float32),
        (GATED[2], SHAPES[2], torch.bfloat16),
        (GATED[3], SHAPES[2], torch.float32),
        (GATED[0], SHAPES[3], torch.float16),
        (GATED[1], SHAPES[3], torch.bfloat16),
        (GATED[2], SHAPES[3], torch.float32),
        (GATED[3], SHAPES[3], torch.bfloat16),
        (("gelu", ()), SHAPES[3], torch.float16),
    ],
    ids=str,
)
def test_gated_ffns_and_those_without_biases_are_as_exact(form, shape, dtype):
    layer = make_layer(*shape, dtype, activation=form[0], biases=form[1])
    assert_close_to_truth(layer, "triton")


@pytest.mark.parametrize("activation, biases", [GATED[0], GATED[-1]])
def test_rows_sorted_already_and_rows_in_any_order_go_through_gated_experts(activation, biases):
    layer = make_layer(50, 16, 24, 1, 3, activation=activation, biases=biases).to(KERNEL_DEVICE)
    counts = torch.tensor([31, 0, 19], dtype=torch.int32)
    order_R = torch.randperm(50, generator=torch.Generator().manual_seed(1)).to(KERNEL_DEVICE)
    for order in (None, order_R):
        results = []
        for impl in ("torch", "triton"):
            leaves = [tensor.clone().requires_grad_() for tensor in layer.tensors()]
            y_RD = moe_kernels.expert_ffn(
                leaves[0], counts, *layer.by_kind(leaves), activation, order_R=order, impl=impl
            )
            y_RD.backward(layer.grad_y_TD)
            results.append(
                [y_RD.detach(), *(leaf.grad for leaf in leaves if leaf is not leaves[1])]
            )
        torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("experts, gates", [(1, 1), (1, 64), (64, 1), (5, 32)])
def test_one_to_many_experts_and_gates(experts, gates):
    assert_close_to_truth(make_layer(40, 8, 12, gates, experts), "triton")


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_all_tokens_to_one_expert_leave_zero_gradients_in_the_others(dtype):
    layer = make_layer(20, 16, 24, 2, 3, dtype, only_expert=1)
    assert_close_to_truth(layer, "triton")
    values, _, counts_E = top1(layer)
    assert counts_E[0] == counts_E[2] == 0
    assert values["grad w1[0]"].abs().max() == 0 and values["grad b2[2]"].abs().max() == 0


def test_rows_of_a_gate_without_pads():
    assert_close_to_truth(make_layer(65, 16, 24, 1, 4, pads=False), "triton")


@settings(max_examples=6, deadline=None)
@given(
    tokens=st.integers(0, 70),
    hidden=st.integers(1, 40),
    inner=st.integers(1, 40),
    gates=st.integers(1, 6),
    experts=st.integers(1, 6),
    pads=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_any_shape(tokens, hidden, inner, gates, experts, pads, seed):
    layer = make_layer(tokens, hidden, inner, gates, experts, pads=pads, seed=seed)
    assume(has_margin(layer))
    assert_close_to_truth(layer, "triton")


@pytest.mark.parametrize("activation, biases", [("gelu", ("b1", "b2")), GATED[0]])
def test_uninitialised_memory_is_never_read(activation, biases):
    """Every torch.empty is filled with NaN, or with an index far out of range."""
    layer = make_layer(50, 16, 24, 2, 3, torch.float16, activation=activation, biases=biases)
    expected, _, _ = top1(layer)
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.utils.deterministic.fill_uninitialized_memory
        assert torch.empty(3).isnan().all()
        found, _, _ = top1(layer)
    finally:
        torch.use_deterministic_algorithms(False)
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name


@pytest.mark.parametrize("activation, biases", [("gelu", ("b1", "b2")), GATED[0]])
def test_two_runs_agree_to_the_bit(activation, biases):
    layer = make_layer(130, 16, 24, 2, 3, torch.float16, activation=activation, biases=biases)
    first, _, _ = top1(layer)
    second, _, _ = top1(layer)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.parametrize("activation, biases", [("gelu", ("b1", "b2")), GATED[0]])
def test_a_kept_graph_can_be_gone_through_again(activation, biases):
    """The backward pass writes over what the forward one saved, but not under retain_graph."""
    layer = make_layer(40, 16, 24, 2, 3, torch.float16, activation=activation, biases=biases)
    layer = layer.to(KERNEL_DEVICE)
    leaves = [tensor.clone().requires_grad_() for tensor in layer.tensors()]
    y_TD = moe_kernels.top1_moe_ffn(
        leaves[0], leaves[1], layer.gate_ids_T, *layer.by_kind(leaves), layer.mask_T,
        activation=activation, impl="triton",
    )[0]  # fmt: skip
    first = torch.autograd.grad(y_TD, leaves, layer.grad_y_TD, retain_graph=True)
    second = torch.autograd.grad(y_TD, leaves, layer.grad_y_TD)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


def test_input_and_weights_need_not_be_contiguous():
    layer = make_layer(20, 8, 12, 2, 3)
    expected, _, _ = top1(layer)
    layer.x_TD = layer.x_TD.repeat_interleave(2, 1)[:, ::2]
    layer.experts = [[t.t().contiguous().t() for t in kind] for kind in layer.experts]
    found, _, _ = top1(layer)
    torch.testing.assert_close(found, expected)


def test_parameters_whose_storage_moved_are_found_again():
    layer = make_layer(20, 8, 12, 2, 3).to(KERNEL_DEVICE)
    parameter = layer.experts[0][1] = torch.nn.Parameter(layer.experts[0][1])
    before = top1(layer)[0]["y"]
    parameter.data = parameter.data.clone() * 2
    after = top1(layer)[0]["y"]
    layer.experts[0][1] = parameter.detach().clone()
    assert not torch.equal(before, after)
    assert torch.equal(after, top1(layer)[0]["y"])


def test_the_address_table_is_made_once_an_address():
    tensors = [torch.zeros(4, device=KERNEL_DEVICE) for _ in range(3)]
    table, align = address_table(tensors)
    assert align == 16 and table.tolist() == [tensor.data_ptr() for tensor in tensors]
    assert address_table(tensors)[0] is table
    assert address_table(tensors[::-1])[0] is not table


def test_a_frozen_gate_or_experts_get_no_gradient():
    layer = make_layer(20, 8, 12, 2, 3).to(KERNEL_DEVICE)
    expected, _, _ = top1(layer)
    x_TD = layer.x_TD.clone().requires_grad_()
    y_TD, _, prob_T, _ = moe_kernels.top1_moe_ffn(
        x_TD, layer.gate_weight, layer.gate_ids_T, *layer.experts, layer.mask_T, impl="triton"
    )
    torch.autograd.backward([y_TD, prob_T], [layer.grad_y_TD, layer.grad_prob_T])
    assert torch.equal(x_TD.grad, expected["grad x"])
    assert layer.gate_weight.grad is None


@pytest.mark.skipif(KERNEL_DEVICE == "cpu", reason="a gate id is checked on the CPU")
def test_a_gate_id_out_of_range_is_not_routed_on_a_gpu():
    layer = make_layer(20, 8, 12, 2, 3, pads=False).to(KERNEL_DEVICE)
    layer.gate_ids_T[3] = 7
    routing = moe_kernels.route(layer.x_TD, layer.gate_weight, layer.gate_ids_T, 3)
    assert routing.expert_T[3] == -1 and int(routing.counts_E.sum()) == 19
