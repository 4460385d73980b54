"""The gate a new task begins with: held-out loss of a linear probe on a few examples."""

import dataclasses

import numpy as np
import pytest

from ds_moe_mtl.config import UserError
from ds_moe_mtl.models.description import save_folder
from ds_moe_mtl.studies.donors import donor_losses, held_out_loss
from tests.support.splits import spec_of_size, split_of_lengths
from tests.support.tiny import write_encoder
from tests.unit.models.test_transfer import trained


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The folder of a small trained model with the gates a, b and c."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("donors")
    _, description, state = trained()
    tokenizer = AutoTokenizer.from_pretrained(write_encoder(folder / "encoder"))
    save_folder(folder / "model", description, state, tokenizer)
    return folder / "model"


def split_with(labels):
    split = split_of_lengths([3 + n % 4 for n in range(len(labels))])
    ids = np.arange(len(split.input_ids), dtype=np.int32) % 20
    return dataclasses.replace(split, input_ids=ids, labels=np.asarray(labels, dtype=np.float32))


def test_features_that_tell_the_classes_apart_have_the_lower_loss():
    random = np.random.default_rng(0)
    labels = np.arange(60) % 2
    split, spec = split_with(labels), spec_of_size("task")
    folds = [np.arange(start, 60, 5) for start in range(5)]
    noise = random.normal(size=(60, 5))
    telling = noise + 3 * labels[:, None]
    assert held_out_loss(spec, telling, split, folds) < 0.2
    assert 0.9 < held_out_loss(spec, noise, split, folds) < 1.2  # a constant reaches 1


def test_two_examples_of_a_class_are_enough_and_one_is_too_few(model):
    # The probe always meets both classes, or it could not say how likely the rare one is.
    losses = donor_losses(model, spec_of_size("task"), split_with([0] * 30 + [1] * 2), 0)
    assert all(np.isfinite(loss) for loss in losses.values())
    with pytest.raises(UserError, match="two examples of each class of 'task'"):
        donor_losses(model, spec_of_size("task"), split_with([0, 0, 0, 1]), 0)


def test_every_gate_and_new_ones_are_compared_best_first(model):
    split = split_with([0, 1] * 15)
    losses = donor_losses(model, spec_of_size("task"), split, 0)
    assert set(losses) == {"a", "b", "c", "random"}
    assert list(losses.values()) == sorted(losses.values()) and len(set(losses.values())) == 4
    assert donor_losses(model, spec_of_size("task"), split, 0) == losses
