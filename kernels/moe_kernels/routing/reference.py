"""Top-1 routing in plain PyTorch: the CPU path, and what the kernels are tested against.

T tokens, D hidden size, G gates, E experts.
"""

import torch
from torch import Tensor

# One product with the weights of every gate computes T * G * E logits and uses T * E of them. That
# costs less than sorting the tokens by gate up to this many columns, G * E (by counting).
ALL_GATES_COLUMNS = 128


def gate_logits(x_TD: Tensor, gate_weight: Tensor, gate_ids_T: Tensor, num_experts: int) -> Tensor:
    """Return logits_TE, float32: every token's product with its own gate's weights."""
    num_gates = gate_weight.shape[0] // num_experts
    compute = torch.promote_types(torch.float32, x_TD.dtype)
    x_TD, weight = x_TD.to(compute), gate_weight.to(compute)
    if num_gates == 1:
        return x_TD @ weight.t()
    if num_gates * num_experts <= ALL_GATES_COLUMNS:
        logits_TGE = (x_TD @ weight.t()).view(-1, num_gates, num_experts)
        index_T1E = gate_ids_T.long().view(-1, 1, 1).expand(-1, 1, num_experts)
        return logits_TGE.gather(1, index_T1E).squeeze(1)
    by_gate_T = torch.sort(gate_ids_T, stable=True).indices
    counts_G = torch.bincount(gate_ids_T, minlength=num_gates).tolist()
    blocks = zip(x_TD[by_gate_T].split(counts_G), weight.split(num_experts), strict=True)
    sorted_TE = torch.cat([x_ND @ weight_ED.t() for x_ND, weight_ED in blocks])
    return sorted_TE[torch.argsort(by_gate_T)]


def choose(logits_TE: Tensor, mask_T: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return (expert_T int32, prob_T): the best expert, the first of equals, and its probability.

    Softmax comes before the choice, so the probability of the one that is chosen still has a
    gradient (softmax after it would be 1 always). Pads get expert -1 and probability 0.
    """
    best_T = logits_TE.argmax(-1)
    prob_T = logits_TE.softmax(-1).gather(1, best_T.unsqueeze(1)).squeeze(1)
    expert_T = best_T.to(torch.int32)
    if mask_T is not None:
        expert_T = torch.where(mask_T, expert_T, -1)
        prob_T = torch.where(mask_T, prob_T, 0.0)
    return expert_T, prob_T
