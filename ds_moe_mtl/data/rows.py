"""Checks on the values of a split's columns, and its labels as numbers."""

from collections.abc import Sequence

import numpy as np

from ds_moe_mtl.config import UserError
from ds_moe_mtl.data.faults import Faults
from ds_moe_mtl.tasks import TaskSpec
from ds_moe_mtl.tasks.numbers import is_not_finite, number


def check_text(
    columns: dict[str, list], names: Sequence[str], origin: str, blank: bool = False
) -> None:
    """Raise UserError unless each of these columns holds text in every row, and not only blanks.

    blank: whether a column may hold nothing but blanks. The line has every kind of fault with its
    first row and the number of rows.
    """
    faults = Faults(origin)
    for name in names:
        for row, value in enumerate(columns[name]):
            if not isinstance(value, str):
                faults.add(
                    (name, type(value)),
                    f"row {row} (from 0): column {name!r} holds {shown(value)}, not text",
                )
            elif not is_unicode(value):
                faults.add(
                    (name, "surrogate"),
                    f"row {row} (from 0): column {name!r} holds half a character "
                    f"(a lone surrogate) in {shown(value)}",
                )
    faults.check()
    for name in names:
        if not blank and not any(value.strip() for value in columns[name]):
            raise UserError(f"{origin}: every text of column {name!r} is empty")


def right_options(columns: dict[str, list], options: str, label: str, origin: str) -> np.ndarray:
    """1 for the option that is the answer, 0 for the others, row by row; float32.

    Raises UserError that names the row of an answer that is no option, or one that is several.
    """
    right: list[bool] = []
    faults = Faults(origin)
    for row, (choices, answer) in enumerate(zip(columns[options], columns[label], strict=True)):
        if isinstance(choices, list) and all(isinstance(choice, str) for choice in choices):
            choices = [choice.strip() for choice in choices]  # P3's answers begin with blanks
        answer = answer.strip()
        if not isinstance(choices, list) or choices.count(answer) != 1:
            faults.add(
                type(choices),
                f"row {row} (from 0): the answer {shown(answer)} is not one of the "
                f"options {shown(choices)} (each once)",
            )
            continue
        right.extend(choice == answer for choice in choices)
    faults.check()
    return np.array(right, dtype=np.float32)


def label_numbers(spec: TaskSpec, values: Sequence, origin: str) -> np.ndarray:
    """Class numbers, scores, or the number of the right choice, float32 [rows].

    A published set's labels are names or class numbers; a user's own are names only.
    Raises UserError that names the first row and the number of rows of each label outside the
    label set.
    """
    if spec.kind == "regression":
        return scores(spec.label, values, origin)
    names = spec.choices if spec.kind == "ranking" else spec.labels
    number_of = {name: number for number, name in enumerate(names)}
    numbers = np.empty(len(values), dtype=np.float32)
    faults = Faults(origin)
    for row, value in enumerate(values):
        if spec.is_own or isinstance(value, str):
            found = number_of.get(label_name(value))
        else:
            is_number = isinstance(value, int) and 0 <= value < len(names)
            found = int(value) if is_number else None
        if found is None:
            faults.add(
                shown(value),
                f"row {row} (from 0): label {shown(value)} in column {spec.label!r} "
                f"is not one of {listed(names)}",
            )
            continue
        numbers[row] = found
    faults.check()
    return numbers


def scores(column: str, values: Sequence, origin: str) -> np.ndarray:
    """A regression's labels, float32 [rows].

    Raises UserError that names the first row of what is no number and of what float32 cannot hold.
    """
    faults = Faults(origin)
    found = np.empty(len(values), dtype=np.float32)
    for row, value in enumerate(values):
        score = number(value)
        if score is None:
            faults.add(type(value), f"row {row} (from 0): {not_a_score(column, value)}")
            continue
        found[row] = score
    faults.check()
    return found


def not_a_score(column: str, value) -> str:
    """In words that a value cannot be a score, nor a class where it is a table's word for none."""
    hint = ""
    if isinstance(value, str) and is_not_finite(value):
        hint = ", but what tables write for a missing one; a class needs another name"
    return f"label {shown(value)} in column {column!r} is not a finite number{hint}"


def is_unicode(text: str) -> bool:
    """Whether a text can be written down: JSON lets half of a surrogate pair through."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def label_name(value) -> str:
    """A label of a user's file as the class name it stands for."""
    return value.strip() if isinstance(value, str) else str(value)


def shown(value) -> str:
    """A value in a message, in 60 characters at most."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def listed(names: Sequence[str]) -> str:
    """Names in a message, ten at most, long ones cut."""
    shown = ", ".join(name if len(name) <= 60 else f"{name[:57]}..." for name in names[:10])
    return shown if len(names) <= 10 else f"{shown}, ... ({len(names)} in all)"
