"""Whether an export answers as its source does: compared on dev rows, told, and stored.

N sequences of a task's dev rows, B of a batch, S tokens of the longest, C outputs.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from ds_moe_mtl.config import UserError
from ds_moe_mtl.config.files import write_json
from ds_moe_mtl.data import EncodedSplit, MultiTaskBatch, evaluation_batches
from ds_moe_mtl.evaluation.outputs import assemble, task_result
from ds_moe_mtl.evaluation.shapes import best_part
from ds_moe_mtl.tasks import TaskSpec
from ds_moe_mtl.tasks.shape_metrics import probabilities

FILE = "export.json"

TIE = 1e-5
"""Answers whose probabilities are as near as that are tied: rounding decides. Our choice."""

SCORE_TOLERANCE = 1e-4
"""By so much, of the largest score, a regression's may differ; our choice, far above rounding."""

TOKENS_PER_BATCH = 2048

_SCORES = ("regression", "options", "answer")
"""Kinds whose outputs are compared as they are: no probability says more than they do."""

_UNITS = {"tags": "words of dev rows", "answer": "tokens of dev rows"}
"""What is compared of kinds whose heads read more than one place of a row."""

Run = Callable[[MultiTaskBatch], torch.Tensor]
"""From a batch to its outputs [B, C], or [B, S, C] of a head that reads tokens."""


@dataclass(frozen=True)
class Agreement:
    """How an export's outputs differ from its source's on `rows` dev rows of a task.

    A row is a sequence, or a word or token where a head reads those (`unit`).
    largest_difference: of probabilities, or of scores. other_answers: rows, or questions, that
    are answered otherwise, ties apart; None for a regression. before, after: the metric in percent.
    """

    rows: int
    largest_difference: float
    other_answers: int | None
    ties: int
    metric: str
    before: float
    after: float
    scores: bool = False
    score_range: float = 1.0
    unit: str = "dev rows"

    @property
    def exact(self) -> bool:
        """Whether the export answers every row as its source does, to rounding."""
        if self.other_answers is None:
            return self.largest_difference <= SCORE_TOLERANCE * self.score_range
        return self.other_answers == 0

    def line(self, task: str) -> str:
        """Return it as a line for a person."""
        what = "scores" if self.scores else "probabilities"
        others = "" if self.other_answers is None else f", {self.other_answers:,} other answers"
        return (
            f"{task}: {self.rows:,} {self.unit}, {what} differ by at most "
            f"{self.largest_difference:.1e}{others}; {self.metric} {self.before:.2f} -> "
            f"{self.after:.2f}"
        )

    def to_dict(self) -> dict:
        """Return it as plain values."""
        return asdict(self)


def compare(
    spec: TaskSpec, split: EncodedSplit, wanted_NC: np.ndarray, found_NC: np.ndarray
) -> Agreement:
    """Return how outputs differ. Raises UserError for outputs that are not finite."""
    if not (np.isfinite(found_NC).all() and np.isfinite(wanted_NC).all()):
        raise UserError(f"{spec.name}: outputs are not finite: the training diverged")
    others, ties, scale = None, 0, 1.0
    if spec.kind in _SCORES:
        largest = float(np.abs(wanted_NC - found_NC).max())
        scale = max(1.0, float(np.abs(wanted_NC).max()))
        if spec.kind == "options":
            others, ties = _other_answers(wanted_NC[:, 0], found_NC[:, 0], split.questions)
        elif spec.kind == "answer":
            others, ties = _other_parts(spec, wanted_NC, found_NC, split)
    elif spec.kind == "multilabel":
        wanted, found = probabilities(wanted_NC), probabilities(found_NC)
        largest = float(np.abs(wanted - found).max())
        ends_L = np.array(spec.label_thresholds)
        differ_NL = (wanted >= ends_L) != (found >= ends_L)
        far_N = (differ_NL & (np.abs(wanted - ends_L) > TIE)).any(1)
        others, ties = int(far_N.sum()), int((differ_NL.any(1) & ~far_N).sum())
    else:
        wanted, found = _class_probabilities(wanted_NC), _class_probabilities(found_NC)
        largest = float(np.abs(wanted - found).max())
        if spec.kind == "ranking":
            others, ties = _other_answers(wanted_NC[:, 1], found_NC[:, 1], split.questions)
        else:
            row = np.arange(len(wanted))
            mine, theirs = wanted.argmax(1), found.argmax(1)
            lost = wanted[row, mine] - wanted[row, theirs]
            others, ties = int((lost > TIE).sum()), int(((mine != theirs) & (lost <= TIE)).sum())
    before, after = (
        task_result(spec, outputs, split)["value"] for outputs in (wanted_NC, found_NC)
    )
    scores = spec.kind in _SCORES
    unit = _UNITS.get(spec.kind, "dev rows")
    told = (spec.metric, before, after, scores, scale, unit)
    return Agreement(split.num_outputs, largest, others, ties, *told)


def outputs_of(run: Run, split: EncodedSplit, num_outputs: int) -> np.ndarray:
    """Return what `run` gives for every row of a split [N, C], in order.

    A row is a sequence; of a head that reads tokens, for which run gives [B, S, C], a unit.
    """
    pieces = []
    for batch in evaluation_batches(split, 0, tokens_per_batch=TOKENS_PER_BATCH):
        with torch.no_grad():
            found_BC = run(batch)
        rows = batch.example_ids_B
        if batch.unit_ids_U is not None:
            real_BS = torch.arange(found_BC.shape[1]) < torch.tensor(batch.lengths)[:, None]
            found_BC, rows = found_BC[real_BS][batch.units_U], batch.unit_ids_U
        pieces.append((rows.numpy(), found_BC[:, :num_outputs].float().numpy()))
    return assemble(pieces, split, num_outputs)


def padded(batch: MultiTaskBatch, pad_id: int, types: bool) -> dict[str, torch.Tensor]:
    """Return a packed batch as transformers takes it: [B, S] with pads on the right."""
    lengths = list(batch.lengths)

    def rows(values_T: torch.Tensor, filling: int) -> torch.Tensor:
        return pad_sequence(values_T.split(lengths), batch_first=True, padding_value=filling)

    inputs = {"input_ids": rows(batch.input_ids_T, pad_id)}
    inputs["attention_mask"] = rows(torch.ones_like(batch.input_ids_T), 0)
    if types:
        inputs["token_type_ids"] = rows(batch.token_type_ids_T, 0)
    return inputs


def tell(
    spec: TaskSpec, found: Agreement, say: Callable[[str], None], merged: bool = False
) -> dict:
    """Say how an export agrees and return it as plain values.

    merged: it was made otherwise than its source computes, so that other answers are expected.
    Raises UserError where an export that should answer alike does not.
    """
    if not merged and not found.exact:
        raise UserError(f"the export does not agree with its source: {found.line(spec.name)}")
    say(found.line(spec.name))
    return found.to_dict()


def write_about(output: Path, about: Mapping) -> None:
    """Write export.json: what was made of what, and how far it agrees."""
    write_json(output / FILE, dict(about))


def _class_probabilities(logits_NC: np.ndarray) -> np.ndarray:
    wide = logits_NC.astype(np.float64)
    powers = np.exp(wide - wide.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def _other_answers(
    wanted_N: np.ndarray, found_N: np.ndarray, questions_N: np.ndarray
) -> tuple[int, int]:
    """Return the questions whose best choice differs, and those where two were tied."""
    others = ties = 0
    starts = np.flatnonzero(np.diff(questions_N, prepend=-1))
    for wanted, found in zip(
        np.split(wanted_N, starts[1:]), np.split(found_N, starts[1:]), strict=True
    ):
        mine, theirs = wanted.argmax(), found.argmax()
        lost = wanted[mine] - wanted[theirs]
        others += int(lost > TIE)
        ties += int(mine != theirs and lost <= TIE)
    return others, ties


def _other_parts(
    spec: TaskSpec, wanted_U2: np.ndarray, found_U2: np.ndarray, split: EncodedSplit
) -> tuple[int, int]:
    """Return the contexts of which another part is the answer, and those where two were tied."""
    others = ties = 0
    for start, end in zip(split.unit_offsets[:-1], split.unit_offsets[1:], strict=True):
        scores_T2 = wanted_U2[start:end]
        mine, theirs = (
            best_part(scores[start:end], spec.longest_answer) for scores in (wanted_U2, found_U2)
        )
        if mine != theirs:
            both = [scores_T2[first, 0] + scores_T2[last, 1] for first, last in (mine, theirs)]
            near = both[0] - both[1] <= TIE * max(1.0, abs(both[0]))
            others, ties = others + (not near), ties + near
    return int(others), int(ties)
