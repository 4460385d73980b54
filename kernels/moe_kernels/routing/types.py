"""The result of routing, and what can be done with it before the experts run.

T tokens, E experts, R routed tokens.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Routing(NamedTuple):
    """Where every token goes. Only prob_T and logits_TE carry gradients.

    expert_T: int32, the chosen expert; -1 = not routed (a pad, or beyond its expert's capacity).
    prob_T: float32, softmax probability of the chosen expert; 0 where not routed.
    counts_E: int32, tokens of each expert.
    order_R: token indices sorted by expert, in token order within an expert. Off the CPU it is T
        long (R is known on the device only) and the tokens that are not routed come last.
    logits_TE: float32 logits of the token's own gate, when they were asked for; 0, without
        gradient, for pads. Tokens beyond their expert's capacity keep theirs.
    """

    expert_T: Tensor
    prob_T: Tensor
    counts_E: Tensor
    order_R: Tensor
    logits_TE: Tensor | None = None


class Routed(NamedTuple):
    """What the routing kernels write: order_T ends with the tokens that are not routed, which
    counts_E1's last entry counts; logits and probabilities are float32, the rest int32.
    """

    expert_T: Tensor
    prob_T: Tensor
    logits_TE: Tensor
    counts_E1: Tensor
    order_T: Tensor


def sort_by_expert(expert_T: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    """Return (counts_E int32, order_R int64) of the experts chosen; -1 is not routed.

    The sort is stable, so an expert sees its tokens in their order. Never waits for a GPU.
    """
    key_T = torch.where(expert_T < 0, num_experts, expert_T)
    order_T = torch.sort(key_T, stable=True).indices
    counts = torch.zeros(num_experts + 1, dtype=torch.int32, device=expert_T.device)
    counts.index_add_(0, key_T, torch.ones_like(key_T))
    counts_E = counts[:num_experts]
    if order_T.device.type == "cpu":
        order_T = order_T[: int(counts_E.sum())]
    return counts_E, order_T


def limit_capacity(routing: Routing, capacity: int) -> Routing:
    """Return the routing with at most `capacity` tokens an expert, the first ones in token order.

    The tokens beyond it get expert -1 and probability 0, so they add nothing and learn nothing.
    """
    if capacity < 0:
        raise ValueError(f"capacity={capacity}: must be at least 0 tokens")
    counts_E, order_R = routing.counts_E, routing.order_R
    start_E = torch.cumsum(counts_E, 0) - counts_E
    expert_R = routing.expert_T[order_R]
    place_R = torch.arange(len(order_R), device=order_R.device) - start_E[expert_R.clamp(min=0)]
    kept_T = torch.zeros_like(routing.expert_T, dtype=torch.bool)
    kept_T[order_R] = (expert_R >= 0) & (place_R < capacity)
    expert_T = torch.where(kept_T, routing.expert_T, -1)
    counts_E, order_R = sort_by_expert(expert_T, len(counts_E))
    prob_T = torch.where(kept_T, routing.prob_T, 0.0)
    return routing._replace(expert_T=expert_T, prob_T=prob_T, counts_E=counts_E, order_R=order_R)
