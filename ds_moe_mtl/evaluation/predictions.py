"""What the final model gave for every dev row, kept per run: scores can be made and compared later.

<run>/dev_predictions.npz    arrays of every task, no pickles; a run of single-task models has one
                             per part, <run>/<task>/dev_predictions.npz

N sequences of a task's dev split, C outputs of its head.
"""

import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from ds_moe_mtl.config import UserError
from ds_moe_mtl.config.files import whole_file
from ds_moe_mtl.data import EncodedSplit
from ds_moe_mtl.evaluation.outputs import answers, decoded
from ds_moe_mtl.evaluation.shapes import found_answers, gold_answers, gold_tags, tag_lists
from ds_moe_mtl.tasks import TaskSpec

FILE = "dev_predictions.npz"
FORMAT = 1
_ARRAYS = ("outputs", "labels", "questions", "parts", "rows")


@dataclass(frozen=True)
class TaskPredictions:
    """One task's dev rows: what the model gave and what is right.

    Logits of a classification are kept less the row's largest, so that 16 bits lose no decision;
    scores that are compared across rows, and those of labels, are kept in 32 bits. A task whose
    answers are generated has texts in outputs and labels, as has one with answers in a context
    (labels: JSON lists of those that are right) and one with tags (a row's, blanks between them).
    thresholds: of a task with several labels.
    """

    kind: str
    metric: str
    classes: tuple[str, ...]
    outputs: np.ndarray  # [N, C] or text [N]
    labels: np.ndarray  # [N]; of several labels int8 [N, L]
    questions: np.ndarray  # [N], the example a sequence belongs to
    parts: np.ndarray  # [N], the dev split it is from
    rows: np.ndarray  # uint32 [N], a checksum of the sequence and its label
    thresholds: tuple[float, ...] = ()

    @property
    def sha256(self) -> str:
        """What tells these dev rows, with their labels and order, from others."""
        digest = hashlib.sha256()
        for values in (self.rows, self.questions, self.parts):
            digest.update(np.ascontiguousarray(values).astype(np.int64).tobytes())
        return digest.hexdigest()[:16]


def collect_predictions(
    specs: Sequence[TaskSpec],
    splits: Sequence[EncodedSplit],
    outputs: Mapping[str, np.ndarray],
    tokenizer,
) -> dict[str, TaskPredictions]:
    """Return the predictions for every task's dev split; outputs: by task, in row order."""
    return {
        spec.name: _stored(task_predictions(spec, split, outputs[spec.name], tokenizer))
        for spec, split in zip(specs, splits, strict=True)
    }


def write_predictions(folder: Path, predictions: Mapping[str, TaskPredictions]) -> None:
    """Write a run's predictions into its folder, whole or not at all."""
    about = {
        name: {
            "kind": task.kind,
            "metric": task.metric,
            "classes": task.classes,
            "thresholds": task.thresholds,
        }
        for name, task in predictions.items()
    }
    arrays = {
        f"{name}/{array}": getattr(task, array)
        for name, task in predictions.items()
        for array in _ARRAYS
    }
    head = json.dumps({"format": FORMAT, "tasks": about})
    with whole_file(folder / FILE) as part:
        np.savez_compressed(part, about=np.array(head), **arrays)


def read_predictions(run: Path) -> dict[str, TaskPredictions]:
    """Return a run's predictions by task, those of its parts put together.

    Raises UserError for a folder without them.
    """
    files = [run / FILE] if (run / FILE).is_file() else sorted(run.glob(f"*/{FILE}"))
    if not files:
        raise UserError(f"{run}: no {FILE}; allowed: the folder of a finished run")
    found: dict[str, TaskPredictions] = {}
    for file in files:
        found |= _read(file)
    return found


def _read(file: Path) -> dict[str, TaskPredictions]:
    try:
        with np.load(file, allow_pickle=False) as stored:
            about = json.loads(str(stored["about"]))
            if about["format"] != FORMAT:
                raise UserError(f"{file}: format {about['format']}; allowed: {FORMAT}")
            return {
                name: TaskPredictions(
                    task["kind"],
                    task["metric"],
                    tuple(task["classes"]),
                    *(stored[f"{name}/{array}"] for array in _ARRAYS),
                    tuple(task.get("thresholds", ())),
                )
                for name, task in about["tasks"].items()
            }
    except UserError:
        raise
    except (ValueError, KeyError, EOFError, OSError, BadZipFile, zlib.error) as error:
        raise UserError(f"{file}: damaged or no file of predictions ({error})") from None


def _stored(task: TaskPredictions) -> TaskPredictions:
    """Return the predictions as they are kept; see TaskPredictions."""
    if task.kind not in ("classification", "span"):
        return task
    shifted_NC = task.outputs - task.outputs.max(axis=1, keepdims=True)
    return replace(task, outputs=shifted_NC.astype(np.float16))


def task_predictions(
    spec: TaskSpec, split: EncodedSplit, outputs: np.ndarray, tokenizer
) -> TaskPredictions:
    """Return one task's predictions, its outputs as exact as they are."""
    labels = split.labels
    if spec.kind == "text":
        outputs = np.array(decoded(outputs, tokenizer), dtype=np.str_)
        labels = np.array(answers(split, tokenizer), dtype=np.str_)
    elif spec.kind == "multilabel":
        labels = split.label_sets
    elif spec.kind == "tags":
        outputs = np.array(list(map(" ".join, tag_lists(spec, outputs, split))), dtype=np.str_)
        labels = np.array(list(map(" ".join, gold_tags(spec, split))), dtype=np.str_)
    elif spec.kind == "answer":
        found = [answer.text for answer in found_answers(spec, outputs, split)]
        outputs = np.array(found, dtype=np.str_)
        labels = np.array(list(map(json.dumps, gold_answers(split))), dtype=np.str_)
    return TaskPredictions(
        spec.kind,
        spec.metric,
        spec.labels,
        outputs,
        np.asarray(labels),
        np.asarray(split.questions, dtype=np.int32),
        np.asarray(split.parts),
        _checksums(split),
        spec.label_thresholds if spec.kind == "multilabel" else (),
    )


def _checksums(split: EncodedSplit) -> np.ndarray:
    """Return a checksum of each sequence's tokens, where segment 2 and spans begin, and labels."""
    ids = np.ascontiguousarray(split.input_ids)
    facts = [split.second_start[:, None], split.labels[:, None].view(np.int32)]
    if split.spans is not None:
        facts.append(split.spans.reshape(split.num_sequences, -1))
    if split.label_sets is not None:
        facts.append(split.label_sets)
    facts_NF = np.ascontiguousarray(np.concatenate(facts, axis=1).astype(np.int32))
    targets = split.target_offsets
    sums = np.empty(split.num_sequences, dtype=np.uint32)
    for row, (first, end) in enumerate(zip(split.offsets[:-1], split.offsets[1:], strict=True)):
        value = zlib.crc32(facts_NF[row], zlib.crc32(ids[first:end]))
        if targets is not None:
            answer = np.ascontiguousarray(split.targets[targets[row] : targets[row + 1]])
            value = zlib.crc32(answer, value)
        for name, ends in (("word_tags", "word_offsets"), ("golds", "gold_offsets")):
            values, ends = getattr(split, name), getattr(split, ends)
            if values is not None:
                value = zlib.crc32(np.ascontiguousarray(values[ends[row] : ends[row + 1]]), value)
        sums[row] = value
    return sums
