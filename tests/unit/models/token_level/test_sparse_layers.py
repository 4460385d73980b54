"""Which layers have experts: by name, by number; the rest of the model knows."""

import json

import pytest
import torch
from transformers import BertConfig, BertModel

from ds_moe_mtl.models import HeadSpec, RoutingOptions, build_network, routed_ffns, upcycle
from ds_moe_mtl.models.description import save_folder
from ds_moe_mtl.models.families import ffn_layers
from ds_moe_mtl.models.folder import load_folder
from ds_moe_mtl.models.token_level.sparse_layers import sparse_layers
from tests.support.tiny import BERT, differ_experts, spread_gates


class NoTokenizer:
    """Stands where a tokenizer is saved."""

    def save_pretrained(self, folder) -> None:
        pass


def encoder(layers=4):
    torch.manual_seed(0)
    sizes = {**BERT, "num_hidden_layers": layers}
    return BertModel(BertConfig(vocab_size=40, max_position_embeddings=16, **sizes)).eval()


@pytest.mark.parametrize(
    ("layers", "depth", "numbers"),
    [
        ("all", 3, (0, 1, 2)),
        ("last_half", 4, (2, 3)),
        ("last_half", 5, (2, 3, 4)),
        ("last_half", 1, (0,)),
        ("every_other", 6, (1, 3, 5)),
        ("every_other", 5, (1, 3)),
        ((3, 0), 4, (0, 3)),
    ],
)
def test_names_and_lists_stand_for_numbers_from_0(layers, depth, numbers):
    assert sparse_layers(layers, depth) == numbers


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ((1, 4), "moe.layers: 4 with an encoder of 4 layers; allowed: numbers from 0 to 3"),
        ((), "an empty list"),
        ("first", "moe.layers = 'first'; allowed: all, last_half, every_other"),
    ],
)
def test_layers_that_are_not_there_are_refused(layers, words):
    with pytest.raises(ValueError, match=words):
        upcycle(encoder(), options=RoutingOptions(layers=layers))


def test_every_other_layer_of_one_is_refused():
    with pytest.raises(ValueError, match="none of 1 layers"):
        sparse_layers("every_other", 1)


def test_only_the_chosen_layers_have_experts_and_step_0_is_dense():
    dense = encoder()
    ids = torch.randint(0, 40, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = dense(input_ids=ids).last_hidden_state
        options = RoutingOptions(4, 3, "preserve", layers="every_other")
        sparse = upcycle(dense, options=options)
        found = sparse(input_ids=ids, gate_ids=torch.tensor([0, 2])).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert len(routed_ffns(sparse)) == 2
    has_experts = [hasattr(layer.intermediate, "moe") for layer in ffn_layers(sparse)[1]]
    assert has_experts == [False, True, False, True]
    with pytest.raises(ValueError, match="upcycled already"):
        upcycle(sparse, options=options)


@pytest.mark.parametrize(
    "more",
    [
        {"layers": (0, 3)},
        {"layers": "last_half", "shared_share": 0.5},
        {"combine": "merged"},
    ],
)
def test_a_model_folder_keeps_the_form_and_predicts_the_same(tmp_path, more):
    options = RoutingOptions(4, 2, "preserve", **more)
    specs = [HeadSpec("a", 2), HeadSpec("b", 3)]
    network = build_network(encoder(), "mt_tag", specs, 0.0, options)
    spread_gates(network)
    differ_experts(network)
    description = network.description("mt_tag", options, [], {})
    save_folder(tmp_path, description, network.state_dict(), NoTokenizer())
    loaded, read = load_folder(tmp_path)
    assert read == json.loads(json.dumps(description))
    assert [len(routed_ffns(n)) for n in (loaded, network)] == [len(routed_ffns(network))] * 2
    lengths = torch.tensor([4, 7])
    batch = {
        "input_ids_T": torch.arange(11),
        "token_type_ids_T": torch.zeros(11, dtype=torch.long),
        "position_ids_T": torch.cat([torch.arange(4), torch.arange(7)]),
        "cu_seqlens": torch.cat([torch.zeros(1), lengths.cumsum(0)]).int(),
        "groups": None,
        "task_ids_B": torch.tensor([1, 0]),
        "spans_B22": torch.zeros(2, 2, 2, dtype=torch.long),
    }
    with torch.no_grad():
        answers = [n.eval()(**batch) for n in (network, loaded)]
    assert torch.equal(answers[0].logits_BC, answers[1].logits_BC)
    assert len(answers[1].counts) == len(routed_ffns(network))
