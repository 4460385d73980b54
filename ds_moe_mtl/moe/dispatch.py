"""Experts on other ranks: exchanged counts, then uneven all-to-all there and back.

T tokens of this rank, R rows sent, Q rows received, P ranks of the group, L experts a rank,
E = P * L experts. Rank p of the group holds experts p * L to (p + 1) * L.
"""

from collections.abc import Sequence

import torch
from torch import distributed as dist
from torch import nn
from torch.profiler import record_function

import moe_kernels
from ds_moe_mtl.models.token_level.experts import run_experts
from ds_moe_mtl.models.token_level.gating import RoutingOptions
from ds_moe_mtl.planner.traffic import ALL_TO_ALL
from moe_kernels.first_order import first_order


def remote_experts(
    x_TD: torch.Tensor,
    routing: moe_kernels.Routing,
    experts: Sequence[nn.Module],
    options: RoutingOptions,
    group: dist.ProcessGroup,
) -> torch.Tensor:
    """Return the scaled expert outputs in token order [T, D]; `experts` are this rank's L.

    Exactly the routed rows travel: no capacity, no padding, also with unequal tokens a rank. Every
    rank of the group must make this call, with 0 tokens if need be.
    """
    scale_T = moe_kernels.gate_scale_of(routing.prob_T, options.gate_scale)
    sent_PL = routing.counts_E.view(dist.get_world_size(group), len(experts))
    received_PL = torch.empty_like(sent_PL)
    with record_function(ALL_TO_ALL):
        dist.all_to_all_single(received_PL, sent_PL.contiguous(), group=group)
    send_sizes = sent_PL.sum(1).tolist()
    receive_sizes = received_PL.sum(1).tolist()

    send_RD = moe_kernels.permute(x_TD, routing, num_rows=sum(send_sizes), impl=options.impl)
    received_QD = _AllToAll.apply(send_RD, send_sizes, receive_sizes, group)
    order_Q, counts_L = moe_kernels.received_order(received_PL, sum(receive_sizes))
    answer_QD = run_experts(received_QD, counts_L, order_Q, experts, options.impl)
    y_RD = _AllToAll.apply(answer_QD, receive_sizes, send_sizes, group)
    return moe_kernels.unpermute(y_RD, routing, scale_T, impl=options.impl)


class _AllToAll(torch.autograd.Function):
    """Uneven all-to-all of rows; its gradient is the all-to-all back."""

    @staticmethod
    def forward(ctx, rows, send_sizes, receive_sizes, group):
        ctx.sizes, ctx.group = (send_sizes, receive_sizes), group
        out = rows.new_empty((sum(receive_sizes), rows.shape[1]))
        with record_function(ALL_TO_ALL):
            dist.all_to_all_single(out, rows.contiguous(), receive_sizes, send_sizes, group=group)
        return out

    @staticmethod
    @first_order
    def backward(ctx, grad):
        send_sizes, receive_sizes = ctx.sizes
        out = grad.new_empty((sum(send_sizes), grad.shape[1]))
        rows, group = grad.contiguous(), ctx.group
        with record_function(ALL_TO_ALL):
            dist.all_to_all_single(out, rows, send_sizes, receive_sizes, group=group)
        return out, None, None, None
