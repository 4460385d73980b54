"""From batches to each sequence's outputs, and from those to a task's score."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from ds_moe_mtl.config import Diverged, UserError
from ds_moe_mtl.data import EncodedSplit, MultiTaskBatch
from ds_moe_mtl.evaluation.shapes import shape_facts, shape_score, tuned
from ds_moe_mtl.models.network import Network
from ds_moe_mtl.tasks import TOKEN_KINDS, TaskSpec
from ds_moe_mtl.tasks.text_metrics import score_text


@torch.no_grad()
def batch_outputs(
    network: Network, batch: MultiTaskBatch, num_outputs: int, device: torch.device
) -> tuple[np.ndarray, np.ndarray]:
    """Return (rows [B] of the task's split, float32 outputs [B, num_outputs]) of one batch.

    A network that generates gives its answers' tokens instead, int64 [B, longest]. Of a head that
    reads tokens the rows are the split's units.
    """
    answers = network.answers(batch.to(device), num_outputs)
    rows = batch.example_ids_B if batch.unit_ids_U is None else batch.unit_ids_U
    return rows.cpu().numpy(), answers.cpu().numpy()


def assemble(
    pieces: list[tuple[np.ndarray, np.ndarray]], split: EncodedSplit, num_outputs: int
) -> np.ndarray:
    """Return the outputs of a whole split [N, C] in row order; every row must come exactly once.

    A row is a sequence, or a unit of a head that reads tokens.
    """
    rows = np.concatenate([rows for rows, _ in pieces])
    assert len(rows) == split.num_outputs and len(np.unique(rows)) == len(rows)
    found_NC = np.concatenate([outputs for _, outputs in pieces])
    outputs_NC = np.empty_like(found_NC)
    outputs_NC[rows] = found_NC
    return outputs_NC


def decoded(tokens_NS: np.ndarray, tokenizer) -> list[str]:
    """Return generated tokens as text."""
    return tokenizer.batch_decode(tokens_NS.tolist(), skip_special_tokens=True)


def answers(split: EncodedSplit, tokenizer) -> list[str]:
    """Return the answers of a split's rows, as far as their tokens were kept (64)."""
    ends = split.target_offsets
    rows = [split.targets[a:b].tolist() for a, b in zip(ends[:-1], ends[1:], strict=True)]
    return tokenizer.batch_decode(rows, skip_special_tokens=True)


def task_result(
    spec: TaskSpec, outputs_NC: np.ndarray, split: EncodedSplit, tokenizer=None
) -> dict:
    """Return {"metric", "value" in percent, "examples"} of a task's outputs.

    Of a task with several metrics "metrics" too, all values by name; with a metric of one class
    against another "positive_class"; and "unseen_words" or "lost_answers", where words or answers
    were cut off. tokenizer: reads generated answers. Raises Diverged where outputs are not finite,
    and UserError where the metric cannot score the answers.
    """
    from ds_moe_mtl.tasks.metrics import positive_class

    if spec.kind != "text" and not np.isfinite(outputs_NC).all():
        raise Diverged(
            f"the model's outputs for {spec.name} are not finite: the training diverged; "
            f"allowed: a smaller train.lr or a longer train.warmup"
        )
    try:
        values = {
            metric: _value(spec, metric, outputs_NC, split, tokenizer)
            for metric in spec.all_metrics
        }
    except ValueError as error:
        raise UserError(f"{spec.name}: {error}") from error
    result = {"metric": spec.metric, "value": values[spec.metric], "examples": split.num_examples}
    if len(values) > 1:
        result["metrics"] = values
    positive = positive_class(spec)
    result |= {} if positive is None else {"positive_class": positive}
    return result | shape_facts(split)


def with_thresholds(
    specs: Sequence[TaskSpec],
    splits: Sequence[EncodedSplit],
    outputs: Mapping[str, np.ndarray],
    results: Mapping[str, dict],
) -> tuple[list[TaskSpec], dict[str, dict]]:
    """Return the rows with the thresholds that these dev outputs call for, and the results by them.

    outputs, results: by task. A result says that its thresholds were chosen: "thresholds" by
    label, and "value_at_half", the value at 0.5. Tasks without thresholds to choose stay.
    """
    rows, scored = [], dict(results)
    for spec, split in zip(specs, splits, strict=True):
        own = tuned(spec, outputs[spec.name], split)
        if own is not spec:
            scored[spec.name] = {
                **task_result(own, outputs[spec.name], split),
                "thresholds": dict(zip(own.labels, own.thresholds, strict=True)),
                "value_at_half": results[spec.name]["value"],
            }
        rows.append(own)
    return rows, scored


def _value(
    spec: TaskSpec, metric: str, outputs_NC: np.ndarray, split: EncodedSplit, tokenizer
) -> float:
    """Return one metric in percent. Raises ValueError where it cannot score the answers."""
    from ds_moe_mtl.tasks.metrics import score

    if spec.kind == "text":
        return score_text(metric, decoded(outputs_NC, tokenizer), answers(split, tokenizer))
    if spec.kind in ("multilabel", *TOKEN_KINDS):
        return shape_score(spec, metric, outputs_NC, split)
    one = replace(spec, metric=metric)
    return score(one, outputs_NC, split.labels, split.questions, split.parts)
