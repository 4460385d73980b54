"""Both networks of many tasks are asked the same questions."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ds_moe_mtl.data.batch import collate
from ds_moe_mtl.evaluation.outputs import batch_outputs
from ds_moe_mtl.models import HeadSpec, build_network
from ds_moe_mtl.models.losses import network_inputs
from ds_moe_mtl.models.network import Network
from ds_moe_mtl.models.task_level.routed_bart import RoutedBart
from ds_moe_mtl.planner.shape import Shape, random_transformer
from tests.support.bart import write_bart
from tests.support.splits import split_of_lengths

SHAPE = Shape(layers=1, hidden=32, intermediate=64, heads=4, vocabulary=40, positions=64)


def with_heads(folder) -> Network:
    heads = [HeadSpec("two", 2), HeadSpec("three", 3)]
    return build_network(random_transformer(SHAPE, 0.0), "mt_dense", heads, 0.0).eval()


def with_text(folder) -> Network:
    from transformers import AutoModelForSeq2SeqLM

    bart = AutoModelForSeq2SeqLM.from_pretrained(write_bart(folder, layers=1))
    return RoutedBart(bart, 2, num_beams=1).eval()


@pytest.mark.parametrize(
    ("make", "attention", "dtype"), [(with_heads, "packed", "f4"), (with_text, "sdpa", "i8")]
)
def test_losses_answers_description_and_attention(make, attention, dtype, tmp_path):
    network = make(tmp_path)
    assert isinstance(network, Network)
    split = split_of_lengths([5, 4, 3])
    split.input_ids[:] = 5 + split.input_ids % 30
    batch = collate([(0, 0), (1, 1), (1, 2)], [split, split])
    if make is with_text:
        batch = replace(batch, targets_BS=torch.tensor([[5, 2], [6, 2], [7, 2]]))
    network.set_step(3)
    losses_B = network.losses(network(**network_inputs(batch)), batch)
    assert losses_B.shape == (3,) and losses_B.dtype == torch.float32 and (losses_B > 0).all()
    rows, answers = batch_outputs(network, batch, 2, torch.device("cpu"))
    assert rows.tolist() == batch.example_ids_B.tolist()
    assert answers.dtype == np.dtype(dtype) and len(answers) == 3
    assert dtype == "i8" or answers.shape == (3, 2)
    described = network.description("mt_dense", None, [{"name": "a"}], {"note": 1})
    assert (described["kind"], described["tasks"]) == ("mt_dense", [{"name": "a"}])
    assert attention in network.attention_on(torch.device("cpu"), torch.float32)
