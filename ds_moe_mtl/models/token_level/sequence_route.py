"""One decision for a sequence: its gate sees the mean of its tokens, and all go to one expert.

The mean of the layer's inputs over the sequence's real tokens is our choice; [CLS] alone is one
token of them. T tokens, S sequences, D hidden size, E experts.
"""

import torch

import moe_kernels
from moe_kernels.routing.types import sort_by_expert


def route_sequences(
    x: torch.Tensor,
    gate_weight: torch.Tensor,
    gate_ids: torch.Tensor | None,
    mask: torch.Tensor | None,
    cu_seqlens: torch.Tensor | None,
    num_experts: int,
    with_logits: bool,
    impl: str,
) -> tuple[moe_kernels.Routing, moe_kernels.Routing]:
    """Return the routing of the tokens, and that of the sequences whose decisions they follow.

    x [batch, seq, D], gate_ids and mask as in gating.route_tokens. cu_seqlens int32 [S + 1]: where
    sequences start among the batch's tokens, packed end to end; tokens after the last belong to
    none and have to be masked. None: each row is a sequence. A sequence has one task: the gate is
    that of its first token. Sums have a fixed order, on a GPU too.
    """
    rows, length, hidden = x.shape
    if cu_seqlens is None:
        cu_seqlens = torch.arange(rows + 1, device=x.device) * length
    cu_seqlens = cu_seqlens.long()
    num_tokens, num_sequences = rows * length, len(cu_seqlens) - 1
    sequence_T = torch.bucketize(
        torch.arange(num_tokens, device=x.device), cu_seqlens[1:], right=True
    ).clamp(max=num_sequences - 1)
    real_T = torch.ones(num_tokens, dtype=torch.bool, device=x.device)
    if mask is not None:
        real_T = mask.reshape(-1) != 0
    mean_SD, count_S = _means(x.reshape(-1, hidden), real_T, cu_seqlens)
    if gate_ids is not None:
        first_S = cu_seqlens[:-1].clamp(max=max(num_tokens - 1, 0))
        by_row = gate_ids.shape == (rows,)
        gate_ids = gate_ids[first_S // length] if by_row else gate_ids.reshape(-1)[first_S]
    of_sequences = moe_kernels.route(
        mean_SD, gate_weight, gate_ids, num_experts, count_S > 0, with_logits=with_logits, impl=impl
    )
    expert_T = torch.where(real_T, of_sequences.expert_T[sequence_T], -1)
    prob_T = torch.where(real_T, of_sequences.prob_T[sequence_T], 0.0)
    counts_E, order_R = sort_by_expert(expert_T, num_experts)
    return moe_kernels.Routing(expert_T, prob_T, counts_E, order_R), of_sequences


def _means(
    x_TD: torch.Tensor, real_T: torch.Tensor, cu_seqlens: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each sequence's mean over real tokens [S, D], float32 at least, and their number [S].

    A sequence without real tokens has mean 0.
    """
    x_TD = x_TD.to(torch.promote_types(torch.float32, x_TD.dtype))
    x_TD = torch.where(real_T[:, None], x_TD, 0.0)
    after = len(x_TD) - cu_seqlens[-1:]  # tokens of no sequence, a segment of their own
    lengths = torch.cat([cu_seqlens.diff(), after])

    def sums(values: torch.Tensor) -> torch.Tensor:
        return torch.segment_reduce(values, "sum", lengths=lengths, unsafe=True)[:-1]

    count_S = sums(real_T.to(x_TD.dtype))
    return sums(x_TD) / count_S.clamp(min=1)[:, None], count_S
