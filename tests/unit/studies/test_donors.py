"""The gate a new task begins with: held-out loss of a linear probe on a few examples."""

import numpy as np
import pytest

from ds_moe_mtl.config import UserError
from ds_moe_mtl.studies.donors import _folds, donor_losses, held_out_loss
from tests.support.splits import spec_of_size, split_of_lengths
from tests.unit.models.test_transfer import trained


def split_with(labels):
    import dataclasses

    split = split_of_lengths([3 + n % 4 for n in range(len(labels))])
    ids = np.arange(len(split.input_ids), dtype=np.int32) % 20
    return dataclasses.replace(split, input_ids=ids, labels=np.asarray(labels, dtype=np.float32))


def test_features_that_tell_the_classes_apart_have_the_lower_loss():
    random = np.random.default_rng(0)
    labels = np.arange(60) % 2
    split, spec = split_with(labels), spec_of_size("task")
    folds = _folds(spec, split, 0)
    noise = random.normal(size=(60, 5))
    telling = noise + 3 * labels[:, None]
    assert held_out_loss(spec, telling, split, folds) < 0.2
    assert 0.9 < held_out_loss(spec, noise, split, folds) < 1.2  # a constant reaches 1


def test_folds_part_the_examples_with_every_class_in_each():
    split, spec = split_with([0] * 30 + [1] * 10), spec_of_size("task")
    folds = _folds(spec, split, 0)
    assert sorted(np.concatenate(folds).tolist()) == list(range(40)) and len(folds) == 5
    assert all(split.labels[fold].sum() == 2 for fold in folds)


def test_one_example_of_a_class_is_too_few():
    with pytest.raises(UserError, match="two examples of each class of 'task'"):
        _folds(spec_of_size("task"), split_with([0, 0, 0, 1]), 0)


def test_every_gate_and_new_ones_are_compared_best_first(tmp_path):
    from ds_moe_mtl.models.description import save_folder
    from tests.support.tiny import write_encoder

    network, description, state = trained()
    save_folder(tmp_path / "model", description, state, tokenizer(write_encoder(tmp_path / "e")))
    split = split_with([0, 1] * 15)
    losses = donor_losses(tmp_path / "model", spec_of_size("task"), split, 0)
    assert set(losses) == {"a", "b", "c", "random"}
    assert list(losses.values()) == sorted(losses.values()) and len(set(losses.values())) == 4
    assert donor_losses(tmp_path / "model", spec_of_size("task"), split, 0) == losses


def tokenizer(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)
