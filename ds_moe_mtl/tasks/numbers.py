"""Which values are numbers: one rule for a task's kind, the order of its classes and its scores."""

import re
from decimal import Decimal
from numbers import Real

import numpy as np

LARGEST = float(np.finfo(np.float32).max)
"""Scores are trained on in float32."""

# Python's own float() takes "1_0", other alphabets' digits, "nan" and "infinity" as well.
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_WHOLE = re.compile(r"[+-]?[0-9]+")
_NOT_FINITE = re.compile(r"[+-]?(?:nan|inf|infinity)", re.IGNORECASE)


def number(value) -> float | None:
    """The number that a value is, or that a text spells in ASCII digits; None for anything else.

    What float32 cannot hold (NaN, infinite, 1e39) is no number, and True is none.
    """
    if isinstance(value, str):
        value = value.strip()
        if not _NUMBER.fullmatch(value):
            return None
    elif isinstance(value, bool | np.bool_) or not isinstance(value, Real | Decimal):
        return None
    try:
        found = float(value)
    except (OverflowError, ValueError):  # an int beyond float's range, a signalling NaN
        return None
    return found if abs(found) <= LARGEST else None


def is_whole(value) -> bool:
    """Whether a value is a whole number that is written as one: 1 and "1", not 1.0 and "1.0"."""
    if isinstance(value, str):
        return _WHOLE.fullmatch(value.strip()) is not None
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def is_not_finite(value) -> bool:
    """Whether a value is, or a text spells, NaN or an infinity: what a table has for "nothing"."""
    if isinstance(value, str):
        return _NOT_FINITE.fullmatch(value.strip()) is not None
    if isinstance(value, Decimal):
        return not value.is_finite()
    return isinstance(value, float | np.floating) and not np.isfinite(value)
