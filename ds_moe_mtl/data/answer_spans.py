"""Answers that are a part of a text: where they stand, and the text's tokens as units."""

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ds_moe_mtl.data.faults import Faults
from ds_moe_mtl.data.rows import shown
from ds_moe_mtl.tasks import TaskSpec
from ds_moe_mtl.tasks.numbers import is_whole

FIRST, LAST = 1, 2
"""Bits of a unit's label: the token is the answer's first, and its last."""


class Gold(NamedTuple):
    """A row's right answers, and the first one's characters [start, end) in the context."""

    texts: list[str]
    start: int
    end: int


def golds(spec: TaskSpec, columns: Mapping[str, list], origin: str) -> list[Gold]:
    """Return each row's answer. Raises UserError for what is none, with row and count.

    An answer is a text, with its first character in the column spec.answer_start or occurring in
    the context once; or SQuAD's {"text": [...], "answer_start": [...]}, of which training takes
    the first and scoring whichever is nearest.
    """
    contexts, values = columns[spec.text[1]], columns[spec.label]
    starts = columns[spec.answer_start] if spec.answer_start else [None] * len(values)
    faults = Faults(origin)
    found = []
    for row, (context, value, start) in enumerate(zip(contexts, values, starts, strict=True)):
        gold, fault = _gold(context, value, start, bool(spec.answer_start))
        if gold is None:
            faults.add(fault.split(":")[0], f"row {row} (from 0): {fault}")
        else:
            found.append(gold)
    faults.check()
    return found


class ContextUnits:
    """Finds the tokens of each context, one sequence after the other."""

    def __init__(self, contexts: Sequence[str], right: Sequence[Gold] | None) -> None:
        """right: None where nobody knows the answers."""
        self._contexts, self._right = contexts, right
        self._places: list[np.ndarray] = []
        self._chars: list[np.ndarray] = []
        self._labels: list[np.ndarray] = []

    def add(self, row: int, encoding) -> None:
        """Take a row's encoding, of the tokenizers library; rows come in order."""
        spans = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
        part = np.array([-1 if part is None else part for part in encoding.sequence_ids])
        places = np.flatnonzero((part == 1) & (spans[:, 1] > spans[:, 0]))
        chars = spans[places]
        labels = np.zeros(len(places), dtype=np.int32)
        if self._right is not None:
            gold = self._right[row]
            touching = np.flatnonzero((chars[:, 0] < gold.end) & (chars[:, 1] > gold.start))
            # An answer may end in characters of which no token is made (an accent, a blank).
            whole = len(chars) and (chars[-1, 1] >= gold.end or not encoding.overflowing)
            if len(touching) and whole:  # else it was cut
                labels[touching[0]] |= FIRST
                labels[touching[-1]] |= LAST
        self._places.append(places.astype(np.int32))
        self._chars.append(chars.astype(np.int32))
        self._labels.append(labels)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays of an EncodedSplit."""
        arrays = {
            "unit_places": np.concatenate(self._places),
            "unit_offsets": np.cumsum([0, *map(len, self._places)], dtype=np.int64),
            "unit_labels": np.concatenate(self._labels),
            "unit_chars": np.concatenate(self._chars),
            **_stored("context", self._contexts),
        }
        if self._right is not None:
            arrays |= _stored("gold", [json.dumps(gold.texts) for gold in self._right])
        return arrays


def stored_texts(content: np.ndarray, offsets: np.ndarray) -> list[str]:
    """Return the texts that an EncodedSplit keeps as bytes."""
    raw = content.tobytes()
    return [raw[a:b].decode() for a, b in zip(offsets[:-1], offsets[1:], strict=True)]


def _stored(name: str, texts: Sequence[str]) -> dict[str, np.ndarray]:
    raw = [text.encode() for text in texts]
    return {
        f"{name}s": np.frombuffer(b"".join(raw), dtype=np.uint8),
        f"{name}_offsets": np.cumsum([0, *map(len, raw)], dtype=np.int64),
    }


def _gold(context: str, value, start, has_start: bool) -> tuple[Gold | None, str]:
    """Return (the answer, "") or (None, what is wrong)."""
    texts, first = [value], start
    if isinstance(value, dict):
        texts, starts = value.get("text"), value.get("answer_start")
        if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
            return (
                None,
                f"no answer: {shown(value)}; allowed: a text, or SQuAD's text, answer_start",
            )
        first = starts[0] if starts else None
        has_start = True
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        return None, "an empty answer: questions without one are not supported"
    text = texts[0]
    if not has_start:
        times = context.count(text)
        if times != 1:
            return None, (
                f"the answer occurs {times} times in its context: {shown(text)}; allowed: once, or "
                "a column answer_start with its first character"
            )
        first = context.index(text)
    elif not is_whole(first):
        return None, f"answer_start is no whole number: {shown(first)}"
    first = int(first)
    if first < 0 or context[first : first + len(text)] != text:
        there = context[max(0, first) : max(0, first) + len(text)]
        return None, (
            f"the answer is not at its answer_start: {shown(text)} at character {first}, where the "
            f"context has {shown(there)}"
        )
    lead = len(text) - len(text.lstrip())
    return Gold([one.strip() for one in texts], first + lead, first + len(text.rstrip())), ""
