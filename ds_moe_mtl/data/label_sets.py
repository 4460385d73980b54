"""Labels of examples that may have any number of them, as rows of yes and no.

N examples, L labels.
"""

import json
from collections.abc import Mapping, Sequence

import numpy as np

from ds_moe_mtl.data.faults import Faults
from ds_moe_mtl.data.rows import is_unicode, label_name, listed, shown
from ds_moe_mtl.tasks import TaskSpec
from ds_moe_mtl.tasks.numbers import is_not_finite, number

_WORDS = {"true": True, "yes": True, "false": False, "no": False}


def label_set_names(values: Sequence, column: str, separator: str, origin: str) -> list[list[str]]:
    """Return each example's labels by name, each once, from a column of lists.

    A text is a JSON list where it begins with "[", else labels with `separator` between them; an
    empty one has none. Raises UserError for what is no list of labels, with row and count.
    """
    faults = Faults(origin)
    found = []
    for row, value in enumerate(values):
        items = _items(value, separator)
        if items is None:
            faults.add(
                type(value),
                f"row {row} (from 0): column {column!r} holds {shown(value)}; "
                "allowed: a list of labels, of texts or numbers",
            )
            continue
        found.append(list(dict.fromkeys(label_name(item) for item in items)))
    faults.check()
    return found


def label_sets(spec: TaskSpec, columns: Mapping[str, list], origin: str) -> np.ndarray:
    """Return which of spec.labels each example has, int8 [N, L]. Raises UserError for others."""
    if spec.label_columns:
        return _yes_or_no(spec, columns, origin)
    place_of = {name: place for place, name in enumerate(spec.labels)}
    rows = label_set_names(columns[spec.label], spec.label, spec.separator, origin)
    sets_NL = np.zeros((len(rows), len(spec.labels)), dtype=np.int8)
    faults = Faults(origin)
    for row, names in enumerate(rows):
        for name in names:
            if name in place_of:
                sets_NL[row, place_of[name]] = 1
            else:
                faults.add(
                    name,
                    f"row {row} (from 0): label {name!r:.60} in column {spec.label!r} is not one "
                    f"of {listed(spec.labels)}",
                )
    faults.check()
    return sets_NL


def _items(value, separator: str) -> list | None:
    """Return the labels that a value lists; None for no list of texts and numbers."""
    if isinstance(value, str):
        text = value.strip()
        if not text.startswith("["):
            value = [item for item in map(str.strip, text.split(separator)) if item]
        else:
            try:
                value = json.loads(text)
            except ValueError:
                return None
    if not isinstance(value, list):
        return None
    return value if all(map(_is_label, value)) else None


def _is_label(item) -> bool:
    """Whether an item is a text or number that names a class: as of classifications, no NaN."""
    if not isinstance(item, str | int | float) or is_not_finite(item):
        return False
    return bool(label_name(item)) and is_unicode(label_name(item))


def _yes_or_no(spec: TaskSpec, columns: Mapping[str, list], origin: str) -> np.ndarray:
    faults = Faults(origin)
    rows = len(columns[spec.label_columns[0]])
    sets_NL = np.zeros((rows, len(spec.labels)), dtype=np.int8)
    for place, column in enumerate(spec.label_columns):
        for row, value in enumerate(columns[column]):
            answer = _answer(value)
            if answer is None:
                faults.add(
                    column,
                    f"row {row} (from 0): column {column!r} holds {shown(value)}; "
                    "allowed: true, false, yes, no, 1, 0",
                )
                continue
            sets_NL[row, place] = answer
    faults.check()
    return sets_NL


def _answer(value) -> bool | None:
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, str) and value.strip().lower() in _WORDS:
        return _WORDS[value.strip().lower()]
    found = number(value)
    return bool(found) if found in (0, 1) else None
