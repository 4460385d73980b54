"""Routing's results beyond the layer: order, counts, logits, capacity, rows to other ranks."""

import pytest
import torch

import moe_kernels
from tests.kernels.layers import KERNEL_DEVICE, make_layer, run

IMPLS = ["torch", "triton"]


def layer_for(impl, *shape, **options):
    return make_layer(*shape, **options).to("cpu" if impl == "torch" else KERNEL_DEVICE)


def routed(layer, impl="torch", **options):
    num_experts = len(layer.experts[0])
    return moe_kernels.route(
        layer.x_TD,
        layer.gate_weight,
        layer.gate_ids_T,
        num_experts,
        layer.mask_T,
        impl=impl,
        **options,
    )


@pytest.mark.parametrize("impl", IMPLS)
def test_order_lists_each_experts_tokens_in_token_order(impl):
    layer = layer_for(impl, 90, 8, 12, 2, 5)
    routing = routed(layer, impl)
    listed = routing.order_R[: int(routing.counts_E.sum())].tolist()
    expected = [t for e in range(5) for t in range(90) if routing.expert_T[t] == e]
    assert listed == expected


@pytest.mark.parametrize("impl", IMPLS)
def test_equal_logits_choose_the_first_expert(impl):
    layer = layer_for(impl, 10, 8, 12, 1, 4, pads=False)
    layer.gate_weight.zero_()
    routing = routed(layer, impl)
    assert routing.expert_T.tolist() == [0] * 10
    torch.testing.assert_close(routing.prob_T, torch.full_like(routing.prob_T, 0.25))


@pytest.mark.parametrize("impl", IMPLS)
def test_logits_and_probabilities_carry_gradients_and_pads_none(impl):
    layer = layer_for(impl, 40, 8, 12, 3, 4)
    grads = []
    for name in ("torch", impl):
        x_TD = layer.x_TD.clone().requires_grad_()
        weight = layer.gate_weight.clone().requires_grad_()
        routing = moe_kernels.route(
            x_TD, weight, layer.gate_ids_T, 4, layer.mask_T, with_logits=True, impl=name
        )
        loss = routing.logits_TE.logsumexp(1).square().sum() + (routing.prob_T**2).sum()
        loss.backward()
        assert torch.all(routing.logits_TE[~layer.mask_T] == 0)
        assert torch.all(x_TD.grad[~layer.mask_T] == 0)
        grads.append((x_TD.grad, weight.grad))
    torch.testing.assert_close(*grads)
    x_TD, weight = layer.x_TD.clone().requires_grad_(), layer.gate_weight
    logits_TE = torch.stack(
        [weight[g * 4 : g * 4 + 4] @ x for x, g in zip(x_TD, layer.gate_ids_T, strict=True)]
    )
    real = layer.mask_T
    loss = logits_TE[real].logsumexp(1).square().sum()
    loss = loss + (logits_TE[real].softmax(1).max(1).values ** 2).sum()
    loss.backward()
    torch.testing.assert_close(grads[0][0], x_TD.grad)


@pytest.mark.parametrize("impl", IMPLS)
def test_capacity_keeps_the_first_tokens_of_each_expert(impl):
    layer = layer_for(impl, 60, 8, 12, 2, 3)
    routing = routed(layer, impl, with_logits=True)
    limited = moe_kernels.limit_capacity(routing, 7)
    for e in range(3):
        tokens = torch.nonzero(routing.expert_T == e)[:, 0]
        kept = torch.nonzero(limited.expert_T == e)[:, 0]
        assert torch.equal(kept, tokens[:7])
    assert limited.counts_E.tolist() == [min(7, n) for n in routing.counts_E.tolist()]
    assert torch.all(limited.prob_T[limited.expert_T < 0] == 0)
    assert limited.logits_TE is routing.logits_TE


def test_capacity_of_zero_drops_all_and_a_negative_one_is_refused():
    routing = routed(make_layer(5, 8, 12, 2, 3))
    assert moe_kernels.limit_capacity(routing, 0).expert_T.tolist() == [-1] * 5
    with pytest.raises(ValueError, match="capacity=-1"):
        moe_kernels.limit_capacity(routing, -1)


@pytest.mark.parametrize("impl", IMPLS)
def test_the_finer_operators_in_a_row_are_the_layer(impl):
    layer = layer_for(impl, 50, 8, 12, 3, 4)

    def composed(x_TD, gate_weight, ids, w1, b1, w2, b2, mask_T, gate_scale, activation):
        routing = moe_kernels.route(x_TD, gate_weight, ids, 4, mask_T, impl=impl)
        rows = int(routing.counts_E.sum())
        x_RD = moe_kernels.permute(x_TD, routing, num_rows=rows, impl=impl)
        y_RD = moe_kernels.expert_ffn(x_RD, routing.counts_E, w1, b1, w2, b2, activation, impl=impl)
        scale_T = moe_kernels.gate_scale_of(routing.prob_T, gate_scale)
        y_TD = moe_kernels.unpermute(y_RD, routing, scale_T, impl=impl)
        return y_TD, routing.expert_T, routing.prob_T, routing.counts_E

    for gate_scale in ("paper", "preserve"):
        expected, _, _ = run(layer, moe_kernels.top1_moe_ffn, gate_scale=gate_scale, impl="torch")
        found, _, _ = run(layer, composed, gate_scale=gate_scale)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("impl", IMPLS)
def test_experts_on_two_ranks_give_what_they_give_on_one(impl):
    """Two ranks hold two experts each; rows are exchanged by slicing, as all_to_all would."""
    layers = [layer_for(impl, n, 8, 12, 2, 4, seed=n) for n in (30, 17)]
    w1, b1, w2, b2 = layers[0].experts
    gate_weight = layers[0].gate_weight
    routings, send = [], []
    for layer in layers:
        layer.gate_weight, layer.experts = gate_weight, layers[0].experts
        routings.append(routed(layer, impl))
        rows = int(routings[-1].counts_E.sum())
        x_RD = moe_kernels.permute(layer.x_TD, routings[-1], num_rows=rows, impl=impl)
        send.append(x_RD.split(routings[-1].counts_E.view(2, 2).sum(1).tolist()))
    back = [[], []]
    for rank in range(2):
        counts_SE = torch.stack([r.counts_E[2 * rank : 2 * rank + 2] for r in routings])
        order_R, counts_E = moe_kernels.received_order(counts_SE, int(counts_SE.sum()))
        mine = slice(2 * rank, 2 * rank + 2)
        y_RD = moe_kernels.expert_ffn(
            torch.cat([send[source][rank] for source in range(2)]), counts_E,
            w1[mine], b1[mine], w2[mine], b2[mine], order_R=order_R, impl=impl,
        )  # fmt: skip
        for source, rows in enumerate(y_RD.split(counts_SE.sum(1).tolist())):
            back[source].append(rows)
    for layer, routing, rows in zip(layers, routings, back, strict=True):
        y_TD = moe_kernels.unpermute(torch.cat(rows), routing, routing.prob_T, impl=impl)
        expected, *_ = moe_kernels.top1_moe_ffn(
            layer.x_TD, gate_weight, layer.gate_ids_T, w1, b1, w2, b2, layer.mask_T, impl="torch"
        )
        torch.testing.assert_close(y_TD, expected)
