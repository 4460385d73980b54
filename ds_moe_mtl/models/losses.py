"""The joint objective: cross-entropy over log(classes), squared error, mean over all examples.

B sequences, C outputs of the widest task.
Source: "Sparsely Activated MoE are Robust Multi-Task Learners", eq. 9-10 and "Loss scaling".
"""

import torch


def sequence_losses(
    logits_BC: torch.Tensor,
    labels_B: torch.Tensor,
    num_outputs_B: torch.Tensor,
    scaled: bool = True,
) -> torch.Tensor:
    """Return each sequence's loss [B], float32.

    num_outputs_B: classes of the sequence's task; 1 means regression (squared error on column 0).
    Classification is divided by log(classes) where `scaled`. labels_B: class index, or the score.
    """
    regression_B = num_outputs_B == 1
    score_B = logits_BC[:, 0]
    squared_B = (score_B - labels_B).square()
    classes_BC = torch.where(regression_B[:, None], torch.zeros_like(logits_BC), logits_BC)
    target_B = torch.where(regression_B, torch.zeros_like(labels_B), labels_B).long()
    log_prob_BC = torch.log_softmax(classes_BC, dim=-1)
    cross_entropy_B = -log_prob_BC.gather(1, target_B[:, None]).squeeze(1)
    if not scaled:
        return torch.where(regression_B, squared_B, cross_entropy_B)
    scale_B = torch.log(num_outputs_B.clamp(min=2).float())
    return torch.where(regression_B, squared_B, cross_entropy_B / scale_B)


def task_sums(
    losses_B: torch.Tensor, weights_B: torch.Tensor, task_ids_B: torch.Tensor, num_tasks: int
) -> torch.Tensor:
    """Return [2, tasks]: each task's weighted loss sum and its number of examples, detached."""
    rows = torch.stack([losses_B.detach() * weights_B, weights_B])
    return rows.new_zeros((2, num_tasks)).index_add_(1, task_ids_B, rows)
