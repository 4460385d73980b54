"""A table whose cells are coloured by their numbers, in steps that are classes of page.css."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEVELS = 20
"""Steps from nothing to the whole colour; page.css has q0 to q20, and n1 to n20 for below 0."""


@dataclass(frozen=True)
class Cell:
    """What a cell says, and the class of its colour."""

    text: str
    level: str


@dataclass(frozen=True)
class Heat:
    """corner: what the rows are; across: what the columns are; groups: (name, columns) above."""

    corner: str
    across: str
    groups: tuple[tuple[str, int], ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    long_columns: bool = False  # names instead of numbers: written from bottom to top


def heat(
    corner: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values: np.ndarray,
    scale: float,
    form: str,
    across: str = "",
    groups: Sequence[tuple[str, int]] = (),
    shades: np.ndarray | None = None,
    long_columns: bool = False,
) -> Heat:
    """Return a table of values [rows, columns]. scale: the value with the whole colour.

    form: of a value, as "{:.2f}". shades: what colours a cell, where it is not its value.
    """
    shades = values if shades is None else shades
    return Heat(
        corner,
        across,
        tuple(groups),
        tuple(columns),
        tuple(
            (name, _cells(row, shade, scale, form))
            for name, row, shade in zip(rows, values, shades, strict=True)
        ),
        long_columns,
    )


def _cells(row: np.ndarray, shade: np.ndarray, scale: float, form: str) -> tuple[Cell, ...]:
    pairs = zip(row, shade, strict=True)
    return tuple(Cell(form.format(value), _level(by / scale)) for value, by in pairs)


def _level(share: float) -> str:
    step = round(LEVELS * min(1.0, abs(float(share))))
    return f"{'n' if share < 0 and step else 'q'}{step}"
