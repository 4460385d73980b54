"""Whatever a label column holds: it is read as it looks, or refused in one line."""

import json
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ds_moe_mtl.config import OwnTask, UserError
from ds_moe_mtl.data import own_spec
from ds_moe_mtl.tasks.numbers import is_not_finite, is_whole, number

quick = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
odd = st.sampled_from(
    ["1_0", "①", "nan", "Infinity", "1e400", "1.0", "01", "+1", "٣", "9" * 5000, "1.", ".5", "a\nb"]
)
labels = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | odd
holders = labels | st.lists(labels, max_size=2) | st.dictionaries(st.text(max_size=2), labels)


@quick
@given(st.floats(allow_nan=False, allow_infinity=False, width=32) | st.integers(-(10**30), 10**30))
def test_a_number_and_its_text_are_the_same_number(value):
    assert number(value) == number(str(value)) == number(f" {value}\n") == float(value)
    assert is_whole(value) == is_whole(str(value)) == isinstance(value, int)


@quick
@given(st.text())
def test_a_text_is_a_number_only_where_it_is_ascii_and_python_agrees(text):
    found = number(text)
    if found is not None:
        assert text.strip().isascii() and "_" not in text and float(text) == found
        assert math.isfinite(found) and not is_not_finite(text)


@pytest.mark.parametrize(
    "value", ["1_0", "①", "٣", "nan", "inf", "1e400", "1e39", "", ".", "e5", "0x10", "1,5", True]
)
def test_what_only_looks_like_a_number_is_none(value):
    assert number(value) is None


@quick
@given(
    st.lists(holders, min_size=1, max_size=4).flatmap(
        lambda few: st.lists(st.sampled_from(few), min_size=2, max_size=12)
    ),
    st.sampled_from([None, "classification", "regression", "text"]),
)
def test_a_column_makes_a_row_or_one_line_of_complaint(tmp_path, column, kind):
    path = tmp_path / "a.jsonl"
    rows = [json.dumps({"text": f"row {i}", "label": label}) for i, label in enumerate(column)]
    path.write_text("\n".join(rows))
    try:
        spec = own_spec(
            OwnTask(name="t", train=str(path), text=("text",), label="label", kind=kind)
        )
    except UserError as error:
        assert str(error).isprintable() and len(str(error)) < 1500
        return
    numbers = [number(label) for label in column]
    if spec.kind == "regression":
        assert None not in numbers
    if spec.kind == "classification":
        assert len(spec.labels) > 1 and not any(is_not_finite(label) for label in column)
        if all(map(is_whole, spec.labels)):
            assert sorted(spec.labels, key=float) == sorted(spec.labels, key=spec.labels.index)


@pytest.mark.parametrize("kind", [None, "classification", "multilabel"])
def test_a_label_as_long_as_a_page_does_not_fill_the_message(tmp_path, kind):
    path = tmp_path / "a.jsonl"
    path.write_text(
        "\n".join(json.dumps({"text": f"row {i}", "label": "9" * 5000}) for i in range(2))
    )
    row = OwnTask(name="t", train=str(path), text=("text",), label="label", kind=kind)
    try:
        own_spec(row.model_copy(update={"labels": ("8" * 5000, "7")}) if kind else row)
    except UserError as error:
        assert len(str(error)) < 600
        return
    raise AssertionError("one class, or labels that are not those named, were taken")
