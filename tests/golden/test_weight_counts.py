"""Upcycling adds the number of weights that counting by hand gives, for the paper's encoders."""

import pytest
import torch
from transformers import BertConfig, BertModel

from ds_moe_mtl.benchmark.encoder_shape import build, known_config, shape_of
from ds_moe_mtl.models import upcycle
from ds_moe_mtl.planner.flops import count_parameters
from ds_moe_mtl.planner.shape import KNOWN_ENCODERS

SHAPES = {  # layers, hidden, intermediate, heads, weights that four experts add
    "minilm": (6, 384, 1536, 12, 21_268_224),
    "bert_base": (12, 768, 3072, 12, 170_007_552),
    "bert_large": (24, 1024, 4096, 16, 604_348_416),
}

FAMILIES = {  # weights: dense, with the pooler where there is one; sparse, 4 experts and 8 gates
    "modernbert_base": (149_014_272, 324_732_672),
    "modernbert_large": (394_781_696, 1_072_817_152),
    "eurobert_210m": (211_766_016, 466_864_896),
    "nomic_bert": (136_731_648, 391_830_528),
    "xlm_roberta_xl": (3_482_485_760, 9_142_571_520),
}


def config_of(name: str) -> BertConfig:
    layers, hidden, inner, heads, _ = SHAPES[name]
    return BertConfig(
        num_hidden_layers=layers,
        hidden_size=hidden,
        intermediate_size=inner,
        num_attention_heads=heads,
    )


@pytest.mark.parametrize("name", SHAPES)
def test_three_more_copies_of_every_ffn_have_the_published_number_of_weights(name):
    with torch.device("meta"):
        model = BertModel(config_of(name))
    in_ffns = sum(
        parameter.numel()
        for layer in model.encoder.layer
        for parameter in (*layer.intermediate.parameters(), *layer.output.dense.parameters())
    )
    assert 3 * in_ffns == SHAPES[name][-1]


def test_upcycling_minilm_adds_them_and_the_gates_of_eight_tasks():
    model = BertModel(config_of("minilm"))
    dense = sum(parameter.numel() for parameter in model.parameters())
    upcycle(model, num_experts=4, num_gates=8)
    gates = sum(p.numel() for name, p in model.named_parameters() if name.endswith("wg.weight"))
    assert gates == 73_728
    added = sum(parameter.numel() for parameter in model.parameters()) - dense - gates
    assert added == SHAPES["minilm"][-1]


def test_every_known_encoder_has_its_row():
    assert [*FAMILIES] == [*KNOWN_ENCODERS]


@pytest.mark.parametrize("name", FAMILIES)
def test_upcycled_encoders_of_other_families_have_the_weights_worked_out(name):
    config, (dense, sparse) = known_config(name), FAMILIES[name]
    with torch.device("meta"):
        assert sum(p.numel() for p in build(config, 0.0, pooler=True).parameters()) == dense
        model = upcycle(build(config, 0.0, pooler=False), num_experts=4, num_gates=8)
    assert sum(parameter.numel() for parameter in model.parameters()) == sparse
    counted = count_parameters(shape_of(config), 4, 8)
    gates = shape_of(config).layers * 8 * 4 * config.hidden_size
    assert (counted.total, counted.gates) == (sparse, gates)


def test_modernbert_base_has_the_weights_of_its_paper_by_hand():
    """Table of tokens and its norm; 22 layers of four D x D, GeGLU's 3 D F, two norms; one last
    norm, none before the first layer's attention."""
    layer = 4 * 768**2 + 3 * 768 * 1152 + 2 * 768
    assert FAMILIES["modernbert_base"][0] == 50_368 * 768 + 768 + 22 * layer
    added = 22 * (3 * 3 * 768 * 1152 + 8 * 4 * 768)
    assert FAMILIES["modernbert_base"][1] == FAMILIES["modernbert_base"][0] + added
