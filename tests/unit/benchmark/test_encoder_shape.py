"""Shapes that are counted in the model itself: every family's, and what has no shape."""

import pytest
import torch
from transformers import AutoConfig

from ds_moe_mtl.benchmark.encoder_shape import build, known_config, shape_of, with_layers
from ds_moe_mtl.config import UserError
from ds_moe_mtl.models import HeadSpec, RoutingOptions, build_network
from ds_moe_mtl.planner.flops import count_parameters
from ds_moe_mtl.planner.levers import Levers
from ds_moe_mtl.planner.shape import SIZES, bert_config
from tests.support.families import KINDS, tiny

HEADS = [HeadSpec("two", 2), HeadSpec("three", 3)]


@pytest.mark.parametrize("model_type", KINDS)
def test_counted_weights_are_those_of_the_network(model_type):
    shape = shape_of(tiny(model_type).config)
    heads = [(shape.hidden, 2), (shape.hidden, 3)]
    for kind, layers, experts in (
        ("mt_dense", "all", 0),
        ("mt_tag", "all", 4),
        ("mt_tag", (1,), 4),
    ):
        transformer = tiny(model_type)
        pooler = getattr(transformer, "pooler", None) is not None
        options = RoutingOptions(4, 2, layers=layers)
        network = build_network(transformer, kind, HEADS, 0.0, options)
        levers = Levers(layers=None if layers == "all" else 1)
        counts = count_parameters(shape, experts, 2, heads, pooler, levers)
        sizes = {name: parameter.numel() for name, parameter in network.named_parameters()}
        assert counts.total == sum(sizes.values())
        assert counts.experts == sum(size for name, size in sizes.items() if ".experts." in name)
        assert counts.gates == sum(size for name, size in sizes.items() if ".wg." in name)


@pytest.mark.parametrize("name", SIZES)
def test_a_berts_counted_shape_counts_as_its_sizes_do(name):
    counted = shape_of(bert_config(SIZES[name]))
    for pooler in (False, True):
        run = 4, 8, [(counted.hidden, 2)], pooler
        assert count_parameters(counted, *run) == count_parameters(SIZES[name], *run)


def test_modernberts_shape_says_what_is_not_berts():
    shape = shape_of(known_config("modernbert_base"))
    assert (shape.layers, shape.hidden, shape.intermediate, shape.heads) == (22, 768, 1152, 12)
    assert shape.gated and not shape.biased and shape.token_types == 0
    assert (shape.local, shape.window) == (14, 64)  # one layer in three sees all, from the first
    assert shape.projected == 4 * 768**2 and shape.masks == 1


def test_grouped_keys_and_values_have_narrower_maps():
    config = AutoConfig.for_model("eurobert", num_key_value_heads=3)
    assert shape_of(config).projected == 768 * (2 * 768 + 2 * 192)
    assert shape_of(config).attention_width == 768


def test_a_configuration_is_cut_to_its_first_layers_and_stays_as_it_was():
    config = known_config("modernbert_base")
    with torch.device("meta"):
        short = build(with_layers(config, 3), 0.0, pooler=False)
    kinds = [layer.attention_type for layer in short.layers]
    assert kinds == ["full_attention", "sliding_attention", "sliding_attention"]
    assert config.num_hidden_layers == 22 == len(config.layer_types)


@pytest.mark.parametrize("model_type", ["bart", "t5", "albert", "gpt2"])
def test_a_model_type_that_is_no_encoder_of_ours_is_refused_by_name(model_type):
    with pytest.raises(UserError, match=f"model_type {model_type} has no plan: ") as caught:
        shape_of(AutoConfig.for_model(model_type))
    assert "\n" not in str(caught.value)
