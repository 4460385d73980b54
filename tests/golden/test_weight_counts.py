"""Upcycling adds the number of weights that counting by hand gives, for the paper's encoders."""

import pytest
import torch
from transformers import BertConfig, BertModel

from ds_moe_mtl.models import upcycle

SHAPES = {  # layers, hidden, intermediate, heads, weights that four experts add
    "minilm": (6, 384, 1536, 12, 21_268_224),
    "bert_base": (12, 768, 3072, 12, 170_007_552),
    "bert_large": (24, 1024, 4096, 16, 604_348_416),
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
