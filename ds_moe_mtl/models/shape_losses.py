"""Losses of answers that are more than one class, scaled so that an untrained head's are about 1.

Several labels: the mean over a task's labels of each one's binary cross-entropy, over log 2. Tags:
the mean over a sequence's words of their cross-entropy, over log(tags). An answer in a text: the
mean of the cross-entropies of its first and of its last token over the tokens of its own context,
over the logarithm of their number. All three are our choice: the paper divides a classification's
loss by log(classes), and so each decision here is divided by the logarithm of what it chooses from.

B sequences, U units (words, or tokens of a context), C outputs of the widest task, L labels.
"""

import math

import torch
from torch.nn.functional import pad, softplus

from ds_moe_mtl.data.answer_spans import FIRST, LAST


def label_losses(
    logits_BC: torch.Tensor,
    label_sets_BL: torch.Tensor,
    sizes_B: torch.Tensor,
    weights_BC: torch.Tensor | None = None,
    scaled: bool = True,
) -> torch.Tensor:
    """Return each sequence's loss [B] over its task's labels; 0 where sizes_B is 0.

    sizes_B: the task's labels, the first of its logits. weights_BC: of each label's cross-entropy
    where the sequence has the label.
    """
    widest = logits_BC.shape[1]
    own_BC = torch.arange(widest, device=logits_BC.device) < sizes_B[:, None]
    has_BC = pad(label_sets_BL, (0, max(0, widest - label_sets_BL.shape[1])))[:, :widest]
    x_BC = logits_BC.where(own_BC, torch.zeros_like(logits_BC))
    present_BC = softplus(-x_BC)
    if weights_BC is not None:
        present_BC = present_BC * weights_BC[:, :widest]
    entropy_BC = torch.where(has_BC > 0, present_BC, softplus(x_BC)) * own_BC
    losses_B = entropy_BC.sum(dim=1) / sizes_B.clamp(min=1)
    return losses_B / math.log(2) if scaled else losses_B


def tag_losses(
    logits_UC: torch.Tensor,
    labels_U: torch.Tensor,
    rows_U: torch.Tensor,
    own_U: torch.Tensor,
    size: int,
    scaled: bool,
    classes_U: torch.Tensor,
    weights_UC: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return each of `size` sequences' mean loss over its words [B]; 0 without words.

    own_U: which units are words of such a task. classes_U: the task's tags. weights_UC: of a
    word's loss, by its tag.
    """
    logits_UC = logits_UC.where(own_U[:, None], torch.zeros_like(logits_UC))
    labels_U = labels_U.where(own_U, torch.zeros_like(labels_U))
    log_prob_UC = torch.log_softmax(logits_UC, dim=-1)
    losses_U = -log_prob_UC.gather(1, labels_U[:, None]).squeeze(1)
    if scaled:
        losses_U = losses_U / torch.log(classes_U.clamp(min=2).to(losses_U.dtype))
    if weights_UC is not None:
        losses_U = losses_U * weights_UC.gather(1, labels_U[:, None]).squeeze(1)
    losses_U = losses_U.where(own_U, torch.zeros_like(losses_U))
    counts_B = _sums(own_U.to(losses_U.dtype), rows_U, size)
    return _sums(losses_U, rows_U, size) / counts_B.clamp(min=1)


def answer_losses(
    logits_UC: torch.Tensor,
    labels_U: torch.Tensor,
    rows_U: torch.Tensor,
    own_U: torch.Tensor,
    size: int,
    scaled: bool,
) -> torch.Tensor:
    """Return each of `size` sequences' loss [B]; 0 where its answer is not among its units.

    logits_UC: the score of a token as the first one, then as the last. labels_U: FIRST and LAST.
    own_U: which units are tokens of such a context.
    """
    if logits_UC.shape[1] < 2:
        return logits_UC.new_zeros(size)
    zeros_U = torch.zeros_like(logits_UC[:, 0])
    tokens_B = _sums(own_U.to(logits_UC.dtype), rows_U, size)
    total_B = logits_UC.new_zeros(size)
    for place, bit in enumerate((FIRST, LAST)):
        scores_U = logits_UC[:, place].where(own_U, zeros_U)
        right_U = (own_U & ((labels_U & bit) > 0)).to(scores_U.dtype)
        # Of sequences without a unit nothing is read.
        largest_B = total_B.new_zeros(size).scatter_reduce(
            0, rows_U, scores_U.detach(), "amax", include_self=False
        )
        shifted_U = scores_U - largest_B[rows_U]
        sum_B = _sums(shifted_U.exp() * own_U, rows_U, size)
        log_sum_B = torch.where(sum_B > 0, sum_B, torch.ones_like(sum_B)).log()
        total_B = total_B + _sums(right_U * (log_sum_B[rows_U] - shifted_U), rows_U, size)
    losses_B = total_B / 2
    return losses_B / torch.log(tokens_B.clamp(min=2)) if scaled else losses_B


def _sums(values_U: torch.Tensor, rows_U: torch.Tensor, size: int) -> torch.Tensor:
    """Return the sum of each row's values [size]."""
    # index_put, unlike index_add, sums in one order on a GPU too.
    return values_U.new_zeros(size).index_put((rows_U,), values_U, accumulate=True)
