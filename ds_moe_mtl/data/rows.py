"""Checks on the values of a split's columns, and its labels as numbers."""

import math
from collections.abc import Sequence

import numpy as np

from ds_moe_mtl.config import UserError
from ds_moe_mtl.tasks import TaskSpec

LARGEST_SCORE = float(np.finfo(np.float32).max)


def check_text(columns: dict[str, list], names: Sequence[str], origin: str) -> None:
    """Raise UserError unless each of these columns holds text in every row, and not only blanks."""
    for name in names:
        values = columns[name]
        for row, value in enumerate(values):
            if not isinstance(value, str):
                raise UserError(
                    f"{origin}: row {row} (from 0): column {name!r} holds {_shown(value)}, not text"
                )
            if not _is_unicode(value):
                raise UserError(
                    f"{origin}: row {row} (from 0): column {name!r} holds half a character "
                    f"(a lone surrogate) in {_shown(value)}"
                )
        if not any(value.strip() for value in values):
            raise UserError(f"{origin}: every text of column {name!r} is empty")


def right_options(columns: dict[str, list], options: str, label: str, origin: str) -> np.ndarray:
    """1 for the option that is the answer, 0 for the others, row by row; float32.

    Raises UserError that names the row of an answer that is no option, or one that is several.
    """
    right: list[bool] = []
    for row, (choices, answer) in enumerate(zip(columns[options], columns[label], strict=True)):
        if isinstance(choices, list) and all(isinstance(choice, str) for choice in choices):
            choices = [choice.strip() for choice in choices]  # P3's answers begin with blanks
        answer = answer.strip()
        if not isinstance(choices, list) or choices.count(answer) != 1:
            raise UserError(
                f"{origin}: row {row} (from 0): the answer {_shown(answer)} is not one of the "
                f"options {_shown(choices)} (each once)"
            )
        right.extend(choice == answer for choice in choices)
    return np.array(right, dtype=np.float32)


def label_numbers(spec: TaskSpec, values: Sequence, origin: str) -> np.ndarray:
    """Class numbers, scores, or the number of the right choice, float32 [rows].

    A published set's labels are names or class numbers; a user's own are names only.
    Raises UserError that names the row of a label outside the label set.
    """
    if spec.kind == "regression":
        return np.array(
            [score(spec.label, row, value, origin) for row, value in enumerate(values)], "f4"
        )
    names = spec.choices if spec.kind == "ranking" else spec.labels
    number_of = {name: number for number, name in enumerate(names)}
    numbers = np.empty(len(values), dtype=np.float32)
    for row, value in enumerate(values):
        if spec.is_own or isinstance(value, str):
            number = number_of.get(label_name(value))
        else:
            is_number = isinstance(value, int) and 0 <= value < len(names)
            number = int(value) if is_number else None
        if number is None:
            raise UserError(
                f"{origin}: row {row} (from 0): label {_shown(value)} in column {spec.label!r} "
                f"is not one of {_listed(names)}"
            )
        numbers[row] = number
    return numbers


def score(column: str, row: int, value, origin: str) -> float:
    """A regression's label. Raises UserError that names the row of one float32 cannot hold."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not abs(number) <= LARGEST_SCORE:  # NaN is not, either
        raise UserError(
            f"{origin}: row {row} (from 0): label {_shown(value)} in column {column!r} "
            "is not a finite number"
        )
    return number


def label_name(value) -> str:
    """A label of a user's file as the class name it stands for."""
    return value.strip() if isinstance(value, str) else str(value)


def _is_unicode(text: str) -> bool:
    """Whether a text can be written down: JSON lets half of a surrogate pair through."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(value) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:10])
    return shown if len(names) <= 10 else f"{shown}, ... ({len(names)} in all)"
