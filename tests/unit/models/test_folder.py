"""A model folder of every family gives back its network, to the bit; what is none is refused."""

import json

import pytest
import torch

from ds_moe_mtl.models import HeadSpec, RoutingOptions, build_network
from ds_moe_mtl.models.description import CONFIG, encoder_depth, save_folder
from ds_moe_mtl.models.folder import load_folder
from ds_moe_mtl.models.task_level.task_router import RouterOptions
from tests.support.encoders import tiny_encoder
from tests.support.families import PLACES, tiny
from tests.support.packed import packed_batch
from tests.support.tiny import differ_experts, spread_gates, write_encoder

HEADS = [HeadSpec("one", 2), HeadSpec("two", 3, spans=True), HeadSpec("three", 2, form="tags")]
FORMS = {
    "routed": ("mt_tag", {"gate_scale": "paper", "shared_share": 0.25}),
    "merged": ("mt_tag", {"combine": "merged", "layers": "last_half"}),
    "switch": ("mt_switch", {"num_gates": 1, "route_by": "sequence"}),
    "dense": ("mt_dense", {}),
    "whole_layers": ("task_moe", {}),
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(write_encoder(tmp_path_factory.mktemp("bert")))


def saved(folder, tokenizer, encoder, form):
    """Write a network as a trained run does; return it, in eval mode, and its description."""
    kind, more = FORMS[form]
    if hasattr(encoder, "pooler"):
        encoder.pooler = None
    routing = RoutingOptions(**{"num_experts": 3, "num_gates": len(HEADS), **more})
    router = RouterOptions(experts=2) if kind == "task_moe" else None
    torch.manual_seed(5)
    vectors = torch.randn(len(HEADS), RouterOptions.vector_size) if router else None
    network = build_network(
        encoder, kind, HEADS, 0.1, routing, router=router, vectors=vectors
    ).eval()
    spread_gates(network, std=1.0)
    differ_experts(network)
    tasks = [{"name": spec.name} for spec in HEADS]
    description = network.description(kind, routing, tasks, {})
    save_folder(folder, description, network.state_dict(), tokenizer)
    return network, description


@torch.no_grad()
def outputs_of(network):
    """Return the outputs of every task, heads that read tokens included."""
    units = {"units_U": torch.tensor([0, 8, 9]), "unit_rows_U": torch.tensor([0, 1, 1])}
    found = [network(**packed_batch(task), **units) for task in range(len(HEADS))]
    return [out.logits_BC for out in found] + [out.unit_logits_UC for out in found]


@pytest.mark.parametrize(
    ("kind", "form"),
    [
        *((kind, form) for kind in ("bert", *PLACES) for form in FORMS if form != "whole_layers"),
        ("bert", "whole_layers"),
    ],
)
def test_a_folder_gives_the_network_back_to_the_bit(kind, form, tokenizer, tmp_path):
    network, description = saved(tmp_path, tokenizer, tiny(kind), form)
    again, stored = load_folder(tmp_path)
    assert stored == json.loads(json.dumps(description))
    assert stored["encoder_class"] == type(network.encoder.transformer).__name__
    for found, wanted in zip(outputs_of(again), outputs_of(network), strict=True):
        assert torch.equal(found, wanted)


def test_a_folder_in_16_bits_does_too(tokenizer, tmp_path):
    """Rotary frequencies are in no file: they have to be drawn in float32, and stay so."""
    network, description = saved(tmp_path, tokenizer, tiny("modernbert"), "routed")
    save_folder(tmp_path, description, network.bfloat16().state_dict(), tokenizer)
    again, _ = load_folder(tmp_path, dtype=None)
    assert next(again.parameters()).dtype == torch.bfloat16
    for found, wanted in zip(outputs_of(again), outputs_of(network), strict=True):
        assert torch.equal(found, wanted)


def test_what_config_says_that_transformers_or_the_weights_do_not_is_one_line(tokenizer, tmp_path):
    _, description = saved(tmp_path, tokenizer, tiny("modernbert"), "routed")
    encoder = description["encoder"]
    bert = tiny("bert").config.to_dict()
    for changed, said in (
        ({"encoder": {**encoder, "model_type": "hyperbert"}}, "model_type = 'hyperbert', which"),
        ({"encoder": {"hidden_size": 32}}, "model_type = None, which"),
        ({"encoder_class": "BertModel"}, "= BertModel, but transformers makes ModernBertModel"),
        ({"encoder": bert, "encoder_class": "BertModel"}, "model.safetensors does not fit"),
        ({"encoder": {**encoder, "intermediate_size": 48}}, "model.safetensors does not fit"),
        ({"encoder": {**encoder, "mlp_bias": True}}, "model.safetensors does not fit"),
        ({"encoder": {**encoder, "hidden_activation": "relu"}}, "'relu' is not supported"),
    ):
        (tmp_path / CONFIG).write_text(json.dumps({**description, **changed}))
        with pytest.raises(ValueError, match=said) as caught:
            load_folder(tmp_path)
        assert len(str(caught.value).splitlines()) == 1 and len(str(caught.value)) < 600


def test_the_depth_of_an_encoder_is_found_under_every_name():
    for kind in ("bert", "modernbert", "distilbert"):
        assert encoder_depth({"encoder": tiny_encoder(kind).config.to_dict()}) == 2
