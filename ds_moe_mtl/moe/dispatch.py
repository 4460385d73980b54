"""Experts on other ranks: exchanged counts, then uneven all-to-all there and back.

T tokens of this rank, R rows sent, Q rows received, P ranks of the group, L experts a rank,
E = P * L experts. Rank p of the group holds experts p * L to (p + 1) * L.
"""

from collections.abc import Sequence

import torch
from torch import distributed as dist
from torch import nn

import moe_kernels
from ds_moe_mtl.models.token_level.experts import run_experts
from ds_moe_mtl.models.token_level.gating import RoutingOptions
from ds_moe_mtl.moe.exchange import flat_exchange, hierarchical_exchange
from ds_moe_mtl.moe.hosts import HostGroups


def remote_experts(
    x_TD: torch.Tensor,
    routing: moe_kernels.Routing,
    experts: Sequence[nn.Module],
    options: RoutingOptions,
    group: dist.ProcessGroup,
    hosts: HostGroups | None = None,
) -> torch.Tensor:
    """Return the scaled expert outputs in token order [T, D]; `experts` are this rank's L.

    Exactly the routed rows travel: no capacity, no padding, also with unequal tokens a rank. Every
    rank of the group must make this call, with 0 tokens if need be. hosts: gather rows within
    hosts first; None: send them at once.
    """
    scale_T = moe_kernels.gate_scale_of(routing.prob_T, options.gate_scale)
    sent_PL = routing.counts_E.view(-1, len(experts))
    if hosts is None:
        exchange = flat_exchange(sent_PL, group)
    else:
        exchange = hierarchical_exchange(sent_PL, hosts)
    send_RD = moe_kernels.permute(x_TD, routing, num_rows=exchange.sent, impl=options.impl)
    received_QD = exchange.there(send_RD)
    order_Q, counts_L = moe_kernels.received_order(exchange.received_PL, exchange.received)
    answer_QD = run_experts(received_QD, counts_L, order_Q, experts, options.impl)
    y_RD = exchange.back(answer_QD)
    return moe_kernels.unpermute(y_RD, routing, scale_T, impl=options.impl)
