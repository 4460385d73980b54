"""An upcycled model on disk loads as what it was, or not at all."""

import json

import pytest
import torch
from torch.nn.utils import prune
from transformers import (
    AutoModel,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
)

from ds_moe_mtl.models import (
    RoutingOptions,
    load_upcycled,
    routed_ffns,
    save_upcycled,
    upcycle,
)
from ds_moe_mtl.moe import to_deepspeed
from tests.support.tiny import BERT, differ_experts, spread_gates


def dense(model_class=BertModel, **more):
    torch.manual_seed(0)
    return model_class(BertConfig(vocab_size=60, initializer_range=0.2, **BERT), **more).eval()


def sparse(model):
    options = RoutingOptions(num_experts=3, num_gates=2, gate_scale="paper", router_z_loss=0.1)
    model = upcycle(model, options=options, expert_dropout=0.25)
    spread_gates(model)
    differ_experts(model)
    return model


@pytest.mark.parametrize(
    "make",
    [
        dense,
        lambda: dense(add_pooling_layer=False),
        lambda: dense(BertForSequenceClassification),
        lambda: dense(BertForMaskedLM),  # its decoder is tied to the embeddings
        lambda: dense().to(torch.bfloat16),
    ],
)
def test_a_loaded_model_answers_as_the_one_that_was_saved(make, tmp_path):
    model = sparse(make())
    save_upcycled(model, tmp_path / "model")
    loaded = load_upcycled(tmp_path / "model")
    assert type(loaded) is type(model) and loaded.dtype is model.dtype
    inputs = {"input_ids": torch.randint(5, 60, (2, 7)), "gate_ids": torch.tensor([0, 1])}
    assert torch.equal(loaded(**inputs)[0], model(**inputs)[0])
    layer, other = routed_ffns(loaded)[0].moe, routed_ffns(model)[0].moe
    assert layer.options == other.options and layer.experts[0].dropout == 0.25


def test_transformers_saves_no_upcycled_model_and_loads_none(tmp_path):
    classifier, inner = sparse(dense(BertForSequenceClassification)), dense()
    sparse(inner)
    around = dense(BertForSequenceClassification)
    around.bert = inner
    for model in (inner, classifier, classifier.bert, around):
        with pytest.raises(ValueError, match="is upcycled, and transformers would load it"):
            model.save_pretrained(tmp_path / "plain")
    assert not (tmp_path / "plain").exists()
    save_upcycled(inner, tmp_path / "model")
    for model_class in (AutoModel, BertModel, BertForSequenceClassification):
        with pytest.raises((ValueError, OSError)):
            model_class.from_pretrained(tmp_path / "model")
    dense().save_pretrained(tmp_path / "dense")
    assert BertModel.from_pretrained(tmp_path / "dense") is not None


def test_what_would_not_come_back_is_not_saved(tmp_path):
    pruned, around = sparse(dense()), dense(BertForSequenceClassification)
    prune.l1_unstructured(routed_ffns(pruned)[1].moe.experts[2].fc1, "weight", 0.5)
    sparse(around.bert)
    for model, words in (
        (pruned, "no plain FFN any more"),
        (around, "is not what upcycle"),
        (to_deepspeed(sparse(dense())), "an MoE layer is a TaskMoE"),
    ):
        with pytest.raises(ValueError, match=words):
            save_upcycled(model, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_damaged_or_foreign_folder_is_one_line(tmp_path):
    model = sparse(dense())
    save_upcycled(model, tmp_path / "model")
    dense().save_pretrained(tmp_path / "dense")
    config = json.loads((tmp_path / "model/config.json").read_text())
    weights = (tmp_path / "model/upcycled.safetensors").read_bytes()
    for name, described, tensors in (
        ("cut", config, weights[:1000]),
        ("more_experts", {**config, "routing": {**config["routing"], "num_experts": 4}}, weights),
        ("no_class", {**config, "model_class": "BertConfig"}, weights),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(described))
        (tmp_path / name / "upcycled.safetensors").write_bytes(tensors)
    for name in ("cut", "more_experts", "no_class", "dense", "nothing"):
        with pytest.raises(ValueError) as found:
            load_upcycled(tmp_path / name)
        assert "\n" not in str(found.value)
