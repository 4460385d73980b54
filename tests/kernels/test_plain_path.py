"""The CPU path: its parts against plain autograd, token by token and in float64."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import moe_kernels
from tests.kernels.layers import (
    assert_close_to_truth,
    has_margin,
    make_layer,
    plain_top1,
    run,
)
from tests.support.ffn_forms import FORMS, ffn_formula

SHAPES = [(0, 8, 12, 2, 4), (1, 8, 12, 2, 4), (7, 9, 15, 1, 3), (129, 17, 30, 8, 4)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def test_layer_is_each_tokens_expert_times_its_probability():
    layer = make_layer(6, 5, 7, 3, 4, torch.float64)
    w1, b1, w2, b2 = layer.experts
    y_TD, expert_T, prob_T, counts_E = moe_kernels.top1_moe_ffn(
        layer.x_TD, layer.gate_weight, layer.gate_ids_T, w1, b1, w2, b2, layer.mask_T
    )
    for t in range(6):
        if not layer.mask_T[t]:
            assert expert_T[t] == -1 and prob_T[t] == 0 and torch.all(y_TD[t] == 0)
            continue
        own = layer.gate_weight[layer.gate_ids_T[t] * 4 : layer.gate_ids_T[t] * 4 + 4]
        probs = (own @ layer.x_TD[t]).softmax(0)
        e = int(probs.argmax())
        inner = F.gelu(w1[e] @ layer.x_TD[t] + b1[e])
        assert expert_T[t] == e
        torch.testing.assert_close(y_TD[t], probs[e] * (w2[e] @ inner + b2[e]))
    assert counts_E.tolist() == [(expert_T == e).sum() for e in range(4)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("gate_scale, activation", [("paper", "gelu"), ("preserve", "gelu_tanh")])
def test_results_and_gradients_are_as_exact_as_autograds(shape, dtype, gate_scale, activation):
    layer = make_layer(*shape, dtype)
    assert_close_to_truth(layer, "torch", gate_scale=gate_scale, activation=activation)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("activation, bias", FORMS[1:])
def test_every_form_of_an_ffn_is_as_exact_as_autograds(shape, dtype, activation, bias):
    biases = ("b1", "b2") if bias else ()
    layer = make_layer(*shape, dtype, activation=activation, biases=biases)
    assert_close_to_truth(layer, "torch")


@pytest.mark.parametrize("experts, gates", [(1, 1), (1, 64), (64, 1), (64, 64)])
def test_one_to_many_experts_and_gates(experts, gates):
    assert_close_to_truth(make_layer(70, 8, 12, gates, experts), "torch")


def test_all_tokens_to_one_expert_leave_zero_gradients_in_the_others():
    layer = make_layer(20, 8, 12, 2, 3, only_expert=1)
    assert_close_to_truth(layer, "torch")
    values, _, counts_E = run(layer, moe_kernels.top1_moe_ffn, impl="torch")
    assert counts_E[0] == counts_E[2] == 0
    assert values["grad w1[0]"].abs().max() == 0 and values["grad b2[2]"].abs().max() == 0


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(0, 80),
    hidden=st.integers(1, 20),
    inner=st.integers(1, 20),
    gates=st.integers(1, 9),
    experts=st.integers(1, 9),
    pads=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_any_shape(tokens, hidden, inner, gates, experts, pads, seed):
    layer = make_layer(tokens, hidden, inner, gates, experts, pads=pads, seed=seed)
    assume(has_margin(layer))
    assert_close_to_truth(layer, "torch")


@st.composite
def ffn_cases(draw):
    """Draw the arguments of expert_ffn in float64: rows of some experts, or of none, in order."""
    counts = draw(st.lists(st.integers(0, 12), min_size=1, max_size=5))
    idle = draw(st.integers(0, 6))
    D, F = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    activation = draw(st.sampled_from(list(moe_kernels.ACTIVATIONS)))
    biases = draw(st.sampled_from([(), ("b1",), ("b2",), ("b1", "b2")]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    listed = draw(st.booleans())
    T, E = sum(counts) + idle * listed, len(counts)
    layer = make_layer(T, D, F, 1, E, torch.float64, activation=activation, biases=biases)
    order_R = torch.randperm(T, generator=generator)[: sum(counts)] if listed else None
    scale_T = torch.rand(T, generator=generator) if draw(st.booleans()) else None
    return layer, counts, order_R, scale_T


@settings(max_examples=80, deadline=None)
@given(case=ffn_cases())
def test_any_ffn_and_its_gradients_are_the_formulas_in_float64(case):
    layer, counts, order_R, scale_T = case
    tensors = [layer.x_TD, *layer.tensors()[2:], *([] if scale_T is None else [scale_T])]

    def results(ffn):
        leaves = [tensor.clone().requires_grad_() for tensor in tensors]
        kinds = layer.by_kind([None, *leaves])
        y_TD = ffn(leaves[0], kinds, None if scale_T is None else leaves[-1])
        y_TD.backward(layer.grad_y_TD)
        return [y_TD.detach(), *(leaf.grad for leaf in leaves)]

    def ours(x_TD, kinds, scale):
        return moe_kernels.expert_ffn(
            x_TD, counts, *kinds, layer.activation, order_R=order_R, scale_T=scale
        )

    def formula(x_TD, kinds, scale):
        order = torch.arange(len(x_TD)) if order_R is None else order_R
        missing = [None] * len(counts)
        experts = zip(*(missing if kind is None else kind for kind in kinds), strict=True)
        blocks = x_TD[order].split(counts)
        y_RD = torch.cat(
            [ffn_formula(x, *own, layer.activation) for x, own in zip(blocks, experts, strict=True)]
        )
        y_RD = y_RD if scale is None else y_RD * scale[order, None]
        return torch.zeros_like(x_TD).index_copy(0, order, y_RD)

    for found, expected in zip(results(ours), results(formula), strict=True):
        tolerance = 1e-6 if expected.dtype == torch.float32 else 1e-11
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "activation, biases", [("gelu", ("b1", "b2")), ("geglu", ()), ("swiglu", ("b1",))]
)
def test_gradients_match_finite_differences(activation, biases):
    layer = make_layer(9, 4, 5, 2, 3, torch.float64, activation=activation, biases=biases)
    leaves = [tensor.clone().requires_grad_() for tensor in layer.tensors()]

    def through(layer_fn):
        def function(*leaves):
            result = layer_fn(
                *leaves[:2], layer.gate_ids_T, *layer.by_kind(leaves), layer.mask_T, "paper",
                activation,
            )  # fmt: skip
            return result[0], result[2]

        return function

    assert torch.autograd.gradcheck(through(plain_top1), leaves)
    assert torch.autograd.gradcheck(through(moe_kernels.top1_moe_ffn), leaves)


def test_preserve_of_identical_experts_is_the_dense_ffn():
    layer = make_layer(50, 8, 12, 2, 4, pads=False)
    w1, b1, w2, b2 = ([kind[0]] * 4 for kind in layer.experts)
    y_TD, *_ = moe_kernels.top1_moe_ffn(
        layer.x_TD, layer.gate_weight, layer.gate_ids_T, w1, b1, w2, b2, gate_scale="preserve"
    )
    dense_TD = F.linear(F.gelu(F.linear(layer.x_TD, w1[0], b1[0])), w2[0], b2[0])
    torch.testing.assert_close(y_TD, dense_TD)


def test_a_gate_gets_no_gradient_from_other_gates_tokens():
    layer = make_layer(30, 8, 12, 3, 4)
    layer.gate_ids_T.clamp_(max=1)
    values, _, _ = run(layer, moe_kernels.top1_moe_ffn, impl="torch")
    assert values["grad gate_weight"][:8].abs().max() > 0
    assert values["grad gate_weight"][8:].abs().max() == 0


def test_a_gate_id_a_sequence_is_the_same_as_one_a_token():
    layer = make_layer(24, 8, 12, 3, 4, pads=False)
    x_BSD, ids_B = layer.x_TD.view(4, 6, 8), torch.tensor([2, 0, 1, 2])
    by_sequence = moe_kernels.top1_moe_ffn(x_BSD, layer.gate_weight, ids_B, *layer.experts)
    ids_BS = ids_B.repeat_interleave(6).view(4, 6)
    by_token = moe_kernels.top1_moe_ffn(x_BSD, layer.gate_weight, ids_BS, *layer.experts)
    assert by_sequence[0].shape == x_BSD.shape
    for one, other in zip(by_sequence, by_token, strict=True):
        assert torch.equal(one, other)


def test_tokens_sorted_by_gate_and_shuffled_ones_get_the_same_logits():
    layer = make_layer(200, 8, 12, 3, 4, pads=False)
    in_runs_T = torch.sort(layer.gate_ids_T).values
    shuffle_T = torch.randperm(200)
    runs = moe_kernels.route(layer.x_TD, layer.gate_weight, in_runs_T, 4, with_logits=True)
    mixed = moe_kernels.route(
        layer.x_TD[shuffle_T], layer.gate_weight, in_runs_T[shuffle_T], 4, with_logits=True
    )
    torch.testing.assert_close(runs.logits_TE[shuffle_T], mixed.logits_TE)


def test_input_and_weights_need_not_be_contiguous():
    layer = make_layer(20, 8, 12, 2, 3)
    expected, _, _ = run(layer, moe_kernels.top1_moe_ffn, impl="torch")
    layer.x_TD = layer.x_TD.repeat_interleave(2, 1)[:, ::2]
    layer.experts = [[t.t().contiguous().t() for t in kind] for kind in layer.experts]
    found, _, _ = run(layer, moe_kernels.top1_moe_ffn, impl="torch")
    torch.testing.assert_close(found, expected)


def test_frozen_experts_and_input_get_no_gradient_and_change_no_other():
    layer = make_layer(20, 8, 12, 2, 3)
    expected, _, _ = run(layer, moe_kernels.top1_moe_ffn, impl="torch")
    gate_weight = layer.gate_weight.clone().requires_grad_()
    y_TD, *_ = moe_kernels.top1_moe_ffn(
        layer.x_TD, gate_weight, layer.gate_ids_T, *layer.experts, layer.mask_T
    )
    y_TD.backward(layer.grad_y_TD)
    assert layer.x_TD.grad is None and gate_weight.grad.abs().max() > 0
    assert torch.equal(expected["y"], y_TD)


@pytest.mark.parametrize("activation, biases", [("gelu", ("b1", "b2")), ("geglu", ())])
def test_autocast_computes_in_its_type(activation, biases):
    layer = make_layer(20, 8, 12, 2, 3, activation=activation, biases=biases)
    arguments = (layer.x_TD, layer.gate_weight, layer.gate_ids_T, *layer.experts)
    with torch.autocast("cpu", torch.bfloat16):
        y_TD, *_ = moe_kernels.top1_moe_ffn(*arguments, activation=activation)
    exact, *_ = moe_kernels.top1_moe_ffn(*arguments, activation=activation)
    assert y_TD.dtype == torch.bfloat16
    torch.testing.assert_close(y_TD.float(), exact, rtol=0.02, atol=0.02)


def test_torch_compile_breaks_the_graph_once_a_layer_and_changes_nothing():
    layer = make_layer(20, 8, 12, 2, 3)
    graphs = []

    def backend(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    def model(x_TD):
        y_TD, *_ = moe_kernels.top1_moe_ffn(
            x_TD * 2, layer.gate_weight, layer.gate_ids_T, *layer.experts
        )
        return y_TD + 1

    compiled = torch.compile(model, backend=backend)
    results = []
    for function in (model, compiled):
        x_TD = layer.x_TD.clone().requires_grad_()
        y_TD = function(x_TD)
        y_TD.backward(layer.grad_y_TD)
        results.append((y_TD.detach(), x_TD.grad))
    torch.testing.assert_close(*results)
    assert len(graphs) == 2
