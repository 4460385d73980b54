"""A task of a merged model is a plain dense encoder, exactly."""

import pytest
import torch
from transformers import BertConfig, BertModel

from ds_moe_mtl.models import HeadSpec, RoutingOptions, build_network
from ds_moe_mtl.models.dense_export import dense_encoder
from tests.support.tiny import BERT, differ_experts, spread_gates

SPECS = [HeadSpec("a", 2), HeadSpec("b", 3), HeadSpec("c", 1)]
LENGTHS = torch.tensor([7, 5, 9])


def network_of(kind="mt_tag", pooler=False, **more):
    torch.manual_seed(0)
    config = BertConfig(vocab_size=40, max_position_embeddings=16, **BERT)
    gates = len(SPECS) if kind == "mt_tag" else 1
    options = RoutingOptions(4, gates, "preserve", **{"combine": "merged", **more})
    network = build_network(BertModel(config, add_pooling_layer=pooler), kind, SPECS, 0.1, options)
    if kind != "mt_dense":
        spread_gates(network, std=1.0)
        differ_experts(network)
    return network.eval()


def batch(task: int) -> dict:
    generator = torch.Generator().manual_seed(1)
    return {
        "input_ids_T": torch.randint(0, 40, (21,), generator=generator),
        "token_type_ids_T": torch.zeros(21, dtype=torch.long),
        "position_ids_T": torch.cat([torch.arange(n) for n in LENGTHS]),
        "cu_seqlens": torch.cat([torch.zeros(1), LENGTHS.cumsum(0)]).int(),
        "groups": None,
        "task_ids_B": torch.full((3,), task),
        "spans_B22": torch.zeros(3, 2, 2, dtype=torch.long),
    }


@pytest.mark.parametrize("kind", ["mt_tag", "mt_switch"])
@pytest.mark.parametrize("pooler", [False, True])
@torch.no_grad()
def test_the_dense_encoder_of_a_task_is_the_model_on_that_task(kind, pooler):
    network = network_of(kind, pooler)
    answers = []
    for task, spec in enumerate(SPECS):
        encoder = dense_encoder(network, spec.name)
        assert type(encoder) is BertModel
        assert not any("moe" in key for key in encoder.state_dict())
        ids = batch(task)["input_ids_T"]
        cls = []
        for sequence in ids.split(LENGTHS.tolist()):
            out = encoder(input_ids=sequence[None], attention_mask=torch.ones_like(sequence)[None])
            cls.append(out.pooler_output[0] if pooler else out.last_hidden_state[0, 0])
        logits = network.heads.head(("task", spec.name))(torch.stack(cls))
        expected = network(**batch(task)).logits_BC[:, : spec.outputs]
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
        answers.append(torch.stack(cls))
    same = torch.allclose(answers[0], answers[1], atol=1e-3)
    assert same is (kind == "mt_switch")  # one mixture for all, or one per task


def test_only_merged_models_and_their_own_tasks_have_a_dense_encoder():
    with pytest.raises(ValueError, match="no task 'd'; it has: a, b, c"):
        dense_encoder(network_of(), "d")
    for network in (network_of(combine="top1"), network_of("mt_dense")):
        with pytest.raises(ValueError, match="needs moe.combine = merged"):
            dense_encoder(network, "a")
