"""What recorded passes do not go with is refused by the configuration, in one line."""

import pytest

from ds_moe_mtl.config import UserError, load_config
from ds_moe_mtl.config.deepspeed import resolve_deepspeed

GRAPHS = ("train.precision=bf16", "train.fill_tokens=1024", "train.cuda_graphs=true")


@pytest.mark.parametrize(
    ("override", "allowed"),
    [
        ("train.fill_tokens=1", "1024"),
        ("train.precision=fp32", "bf16"),
        ("train.accumulation=2", "1"),
        ("train.activation_checkpointing=true", "false"),
        ("moe.ep_size=2", "1"),
        ("moe.dispatch=capacity", "dropless"),
        ("moe.combine=merged", "top1"),
        ("moe.route_by=sequence", "token"),
        ("moe.jitter=0.01", "0"),
        ("moe.router_z_loss=0.1", "0"),
        ("moe.expert_dropout=0.1", "0"),
        ("moe.tied_steps=3", "0"),
        ("moe.impl=torch", "triton"),
    ],
)
def test_recorded_passes_are_refused_with(override, allowed):
    with pytest.raises(UserError) as refused:
        load_config(None, [*GRAPHS, override])
    text = str(refused.value)
    key, _, value = override.partition("=")
    assert "train.cuda_graphs = true" in text and f"{key} = {value}" in text
    assert allowed in text.partition("allowed:")[2] and "\n" not in text


def test_a_dense_model_may_have_what_only_sparse_layers_mind():
    config = load_config(None, [*GRAPHS, "model.kind=mt_dense", "moe.jitter=0.01"])
    assert config.train.cuda_graphs


def test_recorded_passes_need_one_gpu():
    config = load_config(None, GRAPHS)
    resolve_deepspeed(config, 1, "cuda")
    for ranks, device, named in ((1, "cpu", "needs a GPU"), (2, "cuda", "on 2 ranks")):
        with pytest.raises(UserError, match=named):
            resolve_deepspeed(config, ranks, device)


def test_filled_tokens_are_refused_where_every_sequence_has_a_route():
    with pytest.raises(UserError, match="train.fill_tokens = 64 with model.kind = task_moe"):
        load_config(None, ["model.kind=task_moe", "train.fill_tokens=64"])
