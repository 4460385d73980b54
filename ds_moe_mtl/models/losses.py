"""The joint objective: cross-entropy over log(classes), squared error, mean over all examples.

A question with answer options: cross-entropy over its options' scores, over log(options). What an
untrained head gives is 1 for these and for what models.shape_losses adds.

B sequences, U units, C outputs of the widest task.
Source: "Sparsely Activated MoE are Robust Multi-Task Learners", eq. 9-10 and "Loss scaling".
"""

from collections.abc import Sequence

import torch

from ds_moe_mtl.data import MultiTaskBatch
from ds_moe_mtl.models.heads import HeadSpec
from ds_moe_mtl.models.shape_losses import answer_losses, label_losses, tag_losses

FORMS = ("classes", "labels", "tags", "answer")
"""HeadSpec.form by the number that a network knows it by."""

INPUTS = (
    "input_ids_T",
    "token_type_ids_T",
    "position_ids_T",
    "cu_seqlens",
    "lengths",
    "groups",
    "task_ids_B",
    "spans_B22",
    "longest_word",
    "questions_B",
    "targets_BS",
    "units_U",
    "unit_rows_U",
)
_MAY_LACK = ("targets_BS", "units_U", "unit_rows_U")


def network_inputs(batch: MultiTaskBatch) -> dict:
    """Return the keywords of a network's forward for a batch."""
    inputs = {name: getattr(batch, name) for name in INPUTS}
    return {
        name: value for name, value in inputs.items() if value is not None or name not in _MAY_LACK
    }


def batch_losses(
    network: torch.nn.Module, outputs, batch: MultiTaskBatch, scaling: bool = True
) -> torch.Tensor:
    """Return each sequence's loss [B] by its head, float32; `MultiTaskNetwork.losses`.

    scaling: as in sequence_losses.
    """
    num_outputs_B = network.num_outputs[batch.task_ids_B]
    logits_BC = outputs.logits_BC
    if network.has_shapes:
        # Rows of other forms count as classes for a moment; their own losses replace these.
        form_B = network.forms[batch.task_ids_B]
        logits_BC = logits_BC.where((form_B == 0)[:, None], torch.zeros_like(logits_BC))
    losses_B = sequence_losses(logits_BC, batch.labels_B, num_outputs_B, scaling)
    if network.class_weights is not None:
        class_B = batch.labels_B.where(num_outputs_B > 1, torch.zeros_like(batch.labels_B)).long()
        losses_B = losses_B * network.class_weights[batch.task_ids_B, class_B]
    if network.has_shapes:
        losses_B = _shape_losses(network, outputs, batch, scaling, losses_B)
    if not network.has_options:
        return losses_B
    is_option_B = network.scores_options[batch.task_ids_B]
    options_B = option_losses(
        outputs.logits_BC[:, 0].where(is_option_B, torch.zeros_like(losses_B)),
        batch.labels_B,
        batch.weights_B,
        batch.task_ids_B,
        batch.questions_B,
    )
    return torch.where(is_option_B, options_B, losses_B)


def _shape_losses(
    network: torch.nn.Module, outputs, batch: MultiTaskBatch, scaling: bool, losses_B: torch.Tensor
) -> torch.Tensor:
    """Return losses [B] in which those of several labels, tags and answers are their own."""
    form_B = network.forms[batch.task_ids_B]
    weights_BC = None
    if network.class_weights is not None:
        weights_BC = network.class_weights[batch.task_ids_B]
    if batch.label_sets_BL is not None:
        own_B = form_B == FORMS.index("labels")
        sizes_B = network.num_outputs[batch.task_ids_B].where(own_B, torch.zeros_like(form_B))
        found_B = label_losses(outputs.logits_BC, batch.label_sets_BL, sizes_B, weights_BC, scaling)
        losses_B = torch.where(own_B, found_B, losses_B)
    if batch.units_U is None:
        return losses_B
    logits_UC, rows_U = outputs.unit_logits_UC, batch.unit_rows_U
    size = len(losses_B)
    for form, function in (("tags", tag_losses), ("answer", answer_losses)):
        own_B = form_B == FORMS.index(form)
        own_U = own_B[rows_U]
        weights = ()
        if form == "tags":
            classes_U = network.num_outputs[batch.task_ids_B[rows_U]]
            weights = (classes_U, None if weights_BC is None else weights_BC[rows_U])
        found_B = function(logits_UC, batch.unit_labels_U, rows_U, own_U, size, scaling, *weights)
        losses_B = torch.where(own_B, found_B, losses_B)
    return losses_B


def class_weights(heads: Sequence[HeadSpec]) -> torch.Tensor | None:
    """Return the weights of every task's classes [tasks, C], 1 beyond its own; None: all are 1."""
    if not any(spec.class_weights for spec in heads):
        return None
    weights = torch.ones((len(heads), max(spec.outputs for spec in heads)))
    for row, spec in zip(weights, heads, strict=True):
        row[: len(spec.class_weights)] = torch.tensor(spec.class_weights)
    return weights


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


def option_losses(
    scores_B: torch.Tensor,
    labels_B: torch.Tensor,
    weights_B: torch.Tensor,
    task_ids_B: torch.Tensor,
    questions_B: torch.Tensor,
) -> torch.Tensor:
    """Return losses [B], float32, whose sum over a question's options, weighted, is its loss.

    A question's loss is the cross-entropy of its options' scores over log(options). labels_B: 1
    for the right option; weights_B: 1 / options. An example that is drawn twice into a batch
    counts twice, as two questions with the same scores would.
    """
    if len(scores_B) == 0:
        return scores_B
    key_B = task_ids_B * (questions_B.max() + 1) + questions_B
    _, group_B = torch.unique(key_B, return_inverse=True)
    groups = int(group_B.max()) + 1
    zeros_Q = scores_B.new_zeros(groups)
    largest_Q = zeros_Q.scatter_reduce(0, group_B, scores_B.detach(), "amax", include_self=False)
    # index_put, unlike index_add, sums in one order on a GPU too.
    copies_Q = zeros_Q.index_put((group_B,), weights_B, accumulate=True)
    shifted_B = scores_B - largest_Q[group_B]
    sum_Q = zeros_Q.index_put((group_B,), shifted_B.exp(), accumulate=True) / copies_Q
    cross_entropy_B = sum_Q.log()[group_B] - shifted_B
    options_B = 1 / weights_B
    return labels_B * options_B * cross_entropy_B / torch.log(options_B.clamp(min=2))


def task_sums(
    losses_B: torch.Tensor, weights_B: torch.Tensor, task_ids_B: torch.Tensor, num_tasks: int
) -> torch.Tensor:
    """Return [2, tasks]: each task's weighted loss sum and its number of examples, detached."""
    rows = torch.stack([losses_B.detach() * weights_B, weights_B], dim=1)
    sums = rows.new_zeros((num_tasks, 2))
    # index_put, unlike index_add, sums in one order on a GPU too.
    return sums.index_put_((task_ids_B,), rows, accumulate=True).T
