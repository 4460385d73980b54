"""The memory formula: counted weights, and what each ZeRO stage leaves on a rank."""

import pytest
import torch
from transformers import BertConfig, BertModel

from ds_moe_mtl.models import memory, upcycle
from ds_moe_mtl.models.shape import SIZES

WEIGHTS = memory.Weights(experts=800, rest=160)


@pytest.mark.parametrize("size", SIZES)
def test_counted_weights_are_those_of_the_upcycled_model(size):
    shape = SIZES[size]
    config = BertConfig(
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.intermediate,
    )
    with torch.device("meta"):
        model = upcycle(BertModel(config, add_pooling_layer=False), num_experts=4, num_gates=8)
    experts = [p.numel() for name, p in model.named_parameters() if ".experts." in name]
    found = memory.count_weights(shape, num_experts=4, num_gates=8)
    assert found.experts == sum(experts)
    assert found.total == sum(parameter.numel() for parameter in model.parameters())


def test_one_rank_holds_16_bytes_a_weight_whatever_the_stage_and_the_precision():
    for stage, precision in ((0, "fp32"), (1, "bf16"), (2, "bf16"), (2, "fp32")):
        assert memory.state_bytes(WEIGHTS, stage, 1, 1, precision).total == 16 * 960


def test_experts_shard_over_their_own_group_and_the_rest_over_all_ranks():
    states = memory.state_bytes(WEIGHTS, zero_stage=2, world_size=8, ep_size=4, precision="bf16")
    whole, sharded = 160 + 800 / 4, 160 / 8 + 800 / 4 / 2
    assert states == (2 * whole, 2 * sharded, 12 * sharded)
    assert memory.state_bytes(WEIGHTS, 1, 8, 4, "bf16").gradients == 2 * whole


@pytest.mark.parametrize(("stage", "world", "ep"), [(3, 1, 1), (1, 2, 4)])
def test_what_cannot_run_has_no_figure(stage, world, ep):
    with pytest.raises(ValueError, match="zero_stage = 3|ep_size = 4"):
        memory.state_bytes(WEIGHTS, stage, world, ep, "bf16")
