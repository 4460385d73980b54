"""What a caller hands over as examples, as columns: the same whatever holds them.

A list, a generator, an array, a column or a table is taken as what it holds; what is one text or
no text at all is refused, for its letters or keys would be answered as examples.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from numbers import Integral
from typing import Any

import numpy as np

from ds_moe_mtl.config import UserError
from ds_moe_mtl.data.faults import Faults
from ds_moe_mtl.tasks import TaskSpec


def columns_of(
    spec: TaskSpec, names: Sequence[str], examples: Iterable, numbers: Sequence[int] | None = None
) -> dict[str, list]:
    """Return {column: one value an example} for the input columns `names` of a task.

    numbers: what messages call the examples; None: their places.

    Raises UserError, one line, for what holds no examples, and for examples with missing, unknown
    or unfit values: each kind with the first example and the number of them.
    """
    columns: dict[str, list] = {name: [] for name in names}
    faults = Faults(spec.name)
    for number, example in enumerate(_each(spec, names, examples)):
        try:
            values = _values(spec, names, example)
            for name, value in zip(names, values, strict=True):
                columns[name].append(_checked(spec, name, value))
        except _Unfit as error:
            called = number if numbers is None else numbers[number]
            faults.add(error.kind, f"example {called} {error}")
    faults.check()
    return columns


class _Unfit(Exception):
    """An example that is none; the kind tells it from others."""

    def __init__(self, line: str, kind: str = "") -> None:
        super().__init__(line)
        self.kind = kind or line


def _each(spec: TaskSpec, names: Sequence[str], examples: Any) -> Iterator:
    """Return an iterator over the examples that a container holds, a table's as dicts."""
    refusal = UserError(
        f"{spec.name}: {_called(examples)} in place of examples; allowed: a list of {_shape(names)}"
    )
    if isinstance(examples, Mapping):
        raise UserError(
            f"{spec.name}: one dict in place of examples; allowed: a list of dicts, one an example"
        )
    if isinstance(examples, str | bytes | bytearray | Set) or _is_single(examples):
        raise refusal
    if hasattr(examples, "to_dicts"):  # a polars DataFrame
        return iter(examples.to_dicts())
    if hasattr(examples, "columns") and hasattr(examples, "to_dict"):  # a pandas DataFrame
        present = list(examples.columns)
        if len(set(present)) < len(present):
            raise UserError(f"{spec.name}: a table that has a column twice: {present}")
        return iter(examples.to_dict("records"))
    if hasattr(examples, "to_pylist"):  # a pyarrow Table or column
        return iter(examples.to_pylist())
    try:
        return iter(examples)
    except TypeError:
        raise refusal from None


def _is_single(examples: Any) -> bool:
    """Whether something that could be iterated over is one thing: an array without dimensions."""
    return getattr(examples, "shape", None) == ()


def _values(spec: TaskSpec, names: Sequence[str], example: Any) -> Sequence:
    """Return one value for each of the columns. Raises _Unfit for an example of another shape."""
    if isinstance(example, Mapping):
        missing = [name for name in names if name not in example]
        unknown = [key for key in example if key not in names and key not in spec.target_columns]
        if missing or unknown:
            said = [
                f"{word} {', '.join(map(repr, keys))}"
                for word, keys in (("lacks", missing), ("has the unknown", unknown))
                if keys
            ]
            raise _Unfit(f"{' and '.join(said)}; needed: {', '.join(names)}")
        return [example[name] for name in names]
    if isinstance(example, str):
        values = [example]
    elif isinstance(example, tuple | list) or (
        isinstance(example, np.ndarray) and example.ndim == 1
    ):
        # The one value of tags is a list of words: it stands for itself.
        values = [example] if spec.kind == "tags" and not _is_nested(example) else list(example)
    elif len(names) == 1:
        values = [example]
    else:
        raise _Unfit(f"is {_called(example)}; needed: {', '.join(names)}", _kind(example))
    if len(values) != len(names):
        raise _Unfit(f"has {len(values)} values; needed: {', '.join(names)}")
    return values


def _checked(spec: TaskSpec, name: str, value: Any) -> Any:
    """Return a value of a column as the task takes it. Raises _Unfit for another kind of value."""
    if name in spec.spans:
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise _Unfit(f"has {_called(value)} in {name!r}; allowed: a whole number", name)
        return int(value)
    is_words = spec.kind == "tags" and name in spec.text
    if is_words and isinstance(value, str):
        value = value.split()
    if is_words or (spec.kind == "options" and name in spec.choices):
        is_list = isinstance(value, tuple | list) or (
            isinstance(value, np.ndarray) and value.ndim == 1
        )
        if not is_list or not len(value) or not all(isinstance(item, str) for item in value):
            raise _Unfit(
                f"has {_called(value)} in {name!r}; allowed: a list of texts, at least one", name
            )
        return [str(item) for item in value]
    if not isinstance(value, str):
        raise _Unfit(f"has {_called(value)} in {name!r}; allowed: a text", f"{name} {_kind(value)}")
    return str(value)


def _is_nested(example: Sequence) -> bool:
    """Whether a tuple or list holds one list or tuple, and so is an example of one value."""
    return len(example) == 1 and isinstance(example[0], tuple | list | np.ndarray)


def _shape(names: Sequence[str]) -> str:
    if len(names) == 1:
        return f"texts ({names[0]})"
    return f"tuples or dicts of {', '.join(names)}"


def _kind(value: Any) -> str:
    return type(value).__name__


def _called(value: Any) -> str:
    """Return what a message calls a value: its type, and the value where that is short."""
    if value is None:
        return "None"
    kind = "a text" if isinstance(value, str) else f"a {_kind(value)}"
    shown = repr(value)
    return f"{kind} ({shown})" if len(shown) <= 40 and "\n" not in shown else kind
