"""From batches to each sequence's outputs, and from those to a task's score."""

import numpy as np
import torch

from ds_moe_mtl.config import Diverged, UserError
from ds_moe_mtl.data import EncodedSplit, MultiTaskBatch
from ds_moe_mtl.models.network import Network
from ds_moe_mtl.tasks import TaskSpec
from ds_moe_mtl.tasks.text_metrics import score_text


@torch.no_grad()
def batch_outputs(
    network: Network, batch: MultiTaskBatch, num_outputs: int, device: torch.device
) -> tuple[np.ndarray, np.ndarray]:
    """Return (rows [B] of the task's split, float32 outputs [B, num_outputs]) of one batch.

    A network that generates gives its answers' tokens instead, int64 [B, longest].
    """
    answers = network.answers(batch.to(device), num_outputs)
    return batch.example_ids_B.numpy(), answers.cpu().numpy()


def assemble(
    pieces: list[tuple[np.ndarray, np.ndarray]], split: EncodedSplit, num_outputs: int
) -> np.ndarray:
    """Return the outputs of a whole split [N, C] in row order; every row must come exactly once."""
    rows = np.concatenate([rows for rows, _ in pieces])
    assert len(rows) == split.num_sequences and len(np.unique(rows)) == len(rows)
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

    With a metric of one class against another, "positive_class" too. tokenizer: reads generated
    answers. Raises Diverged where outputs are not finite, and UserError where the metric cannot
    score the answers.
    """
    from ds_moe_mtl.tasks.metrics import positive_class, score

    if spec.kind != "text" and not np.isfinite(outputs_NC).all():
        raise Diverged(
            f"the model's outputs for {spec.name} are not finite: the training diverged; "
            f"allowed: a smaller train.lr or a longer train.warmup"
        )
    try:
        if spec.kind == "text":
            value = score_text(
                spec.metric, decoded(outputs_NC, tokenizer), answers(split, tokenizer)
            )
        else:
            value = score(spec, outputs_NC, split.labels, split.questions, split.parts)
    except ValueError as error:
        raise UserError(f"{spec.name}: {error}") from error
    result = {"metric": spec.metric, "value": value, "examples": split.num_examples}
    positive = positive_class(spec)
    return result if positive is None else {**result, "positive_class": positive}
