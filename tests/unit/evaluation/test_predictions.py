"""Predictions of dev rows: kept whole and small, read without pickles, scored as they were."""

import numpy as np
import pytest

from ds_moe_mtl.config import UserError
from ds_moe_mtl.data import encode_columns
from ds_moe_mtl.evaluation.bootstrap import weighted_score
from ds_moe_mtl.evaluation.predictions import (
    FILE,
    collect_predictions,
    read_predictions,
    write_predictions,
)
from ds_moe_mtl.evaluation.units import units_of
from ds_moe_mtl.tasks import TaskSpec, get_task
from ds_moe_mtl.tasks.metrics import score
from tests.support.paths import minilm_tokenizer
from tests.support.predictions import score_predictions

CLASSES = TaskSpec("kinds", "classification", ("text",), labels=("x", "y", "z"), metric="macro_f1")
NUMBERS = TaskSpec("numbers", "regression", ("text",), metric="spearman")


def an_evaluation(rows=60, seed=0):
    """What predictions are made from, with outputs of three kinds of task."""
    draw = np.random.default_rng(seed)
    texts = [f"a text with number {draw.integers(40)}" for _ in range(rows)]
    copa = {
        "premise": texts,
        "choice1": texts[::-1],
        "choice2": texts,
        "question": ["cause", "effect"] * (rows // 2),
        "label": draw.integers(2, size=rows).tolist(),
    }
    columns = [
        {"text": texts, "label": [CLASSES.labels[i] for i in draw.integers(3, size=rows)]},
        {"text": texts, "label": draw.normal(size=rows).round(1).tolist()},
        {name: copa[name] for name in get_task("copa").columns},
    ]
    specs = [CLASSES, NUMBERS, get_task("copa")]
    splits = [
        encode_columns(spec, values, minilm_tokenizer(), None, "made up")
        for spec, values in zip(specs, columns, strict=True)
    ]
    outputs = {
        spec.name: draw.normal(size=(split.num_sequences, spec.num_outputs)).astype(np.float32)
        for spec, split in zip(specs, splits, strict=True)
    }
    outputs["kinds"][:20] = 7 + 1e-4 * outputs["kinds"][:20]  # closer than 16 bits can tell apart
    return specs, splits, outputs, minilm_tokenizer()


def test_what_is_read_back_scores_as_the_run_did(tmp_path):
    specs, splits, outputs, tokenizer = an_evaluation()
    write_predictions(tmp_path, collect_predictions(specs, splits, outputs, tokenizer))
    found = read_predictions(tmp_path)
    assert list(found) == ["kinds", "numbers", "copa"]
    for spec, split in zip(specs, splits, strict=True):
        out = outputs[spec.name]
        expected = score(spec, out, split.labels, split.questions, split.parts)
        assert score_predictions(found[spec.name]) == pytest.approx(expected, abs=1e-9), spec.name
        units = units_of(found[spec.name])
        ones = np.ones((1, len(units.truth_U)))
        assert 100 * weighted_score(units, ones)[0] == pytest.approx(expected, abs=1e-5)
        assert len(units.truth_U) == split.num_examples == len(np.unique(units.ids_U))
    assert found["kinds"].classes == ("x", "y", "z") and found["kinds"].outputs.itemsize == 2


def test_the_same_rows_have_the_same_checksum_and_others_another(tmp_path):
    again = collect_predictions(*an_evaluation())["kinds"]
    assert collect_predictions(*an_evaluation())["kinds"].sha256 == again.sha256
    other = collect_predictions(*an_evaluation(seed=1))["kinds"]
    assert other.sha256 != again.sha256
    shared = np.intersect1d(units_of(again).ids_U, units_of(other).ids_U)
    assert 0 < len(shared) < 60  # the same texts with the same labels are the same units


def test_the_parts_of_a_single_task_run_are_put_together(tmp_path):
    predictions = collect_predictions(*an_evaluation())
    for name, task in predictions.items():
        (tmp_path / name).mkdir()
        write_predictions(tmp_path / name, {name: task})
    assert set(read_predictions(tmp_path)) == {"kinds", "numbers", "copa"}


def test_a_folder_without_predictions_and_a_damaged_file_are_refused(tmp_path):
    with pytest.raises(UserError, match=f"no {FILE}; allowed: the folder of a finished run"):
        read_predictions(tmp_path)
    write_predictions(tmp_path, collect_predictions(*an_evaluation()))
    whole = (tmp_path / FILE).read_bytes()
    for damaged in (b"", b"no zip", whole[: len(whole) // 2]):
        (tmp_path / FILE).write_bytes(damaged)
        with pytest.raises(UserError, match="damaged or no file of predictions"):
            read_predictions(tmp_path)
    np.savez(tmp_path / "x.npz", about=np.array([{"a": 1}], dtype=object))  # a pickle
    (tmp_path / "x.npz").rename(tmp_path / FILE)
    with pytest.raises(UserError, match="damaged or no file of predictions"):
        read_predictions(tmp_path)
