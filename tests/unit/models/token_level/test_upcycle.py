"""Dense transformers encoders made sparse in place, and run on packed tokens."""

import copy

import pytest
import torch
from torch.nn.utils import prune
from transformers import (
    BertConfig,
    BertModel,
    CamembertConfig,
    CamembertModel,
    ElectraConfig,
    ElectraModel,
    GPT2Config,
    GPT2Model,
    RobertaConfig,
    RobertaModel,
)

from ds_moe_mtl.models import MoELayer, routed_ffns, upcycle
from ds_moe_mtl.models.encoder import PackedEncoder
from tests.support.encoders import tiny_encoder
from tests.support.tiny import BERT

FAMILY = {
    "bert": (BertConfig, BertModel, {}),
    "roberta": (RobertaConfig, RobertaModel, {}),
    "camembert": (CamembertConfig, CamembertModel, {}),
    "electra": (ElectraConfig, ElectraModel, {"embedding_size": 16}),
}
LENGTHS = [9, 9, 6, 2]


def encoder_of(name: str, **more):
    config_class, model_class, own = FAMILY[name]
    torch.manual_seed(0)
    config = config_class(vocab_size=60, max_position_embeddings=40, **BERT, **own, **more)
    return model_class(config).eval()


def padded():
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 60, (4, 9), generator=generator)
    mask = (torch.arange(9) < torch.tensor(LENGTHS)[:, None]).long()
    return ids.where(mask.bool(), torch.ones_like(ids)), mask


@pytest.mark.parametrize("name", FAMILY)
def test_an_upcycled_encoder_with_preserve_is_the_dense_one_at_step_0(name):
    dense = encoder_of(name)
    sparse = upcycle(copy.deepcopy(dense), num_experts=4, num_gates=3, gate_scale="preserve")
    assert len(routed_ffns(sparse)) == 2
    assert all(isinstance(ffn.moe, MoELayer) for ffn in routed_ffns(sparse))
    ids, mask = padded()
    with torch.no_grad():
        expected = dense(input_ids=ids, attention_mask=mask).last_hidden_state
        found = sparse(
            input_ids=ids, attention_mask=mask, gate_ids=torch.tensor([0, 1, 2, 0])
        ).last_hidden_state
    real = mask.bool()
    torch.testing.assert_close(found[real], expected[real], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", FAMILY)
def test_the_packed_encoder_equals_the_padded_one(name):
    dense = encoder_of(name)
    ids, mask = padded()
    with torch.no_grad():
        expected = dense(input_ids=ids, attention_mask=mask).last_hidden_state[mask.bool()]
        lengths = torch.tensor(LENGTHS)
        found = PackedEncoder(dense)(
            ids[mask.bool()],
            torch.zeros(int(lengths.sum()), dtype=torch.long),
            torch.cat([torch.arange(n) for n in LENGTHS]),
            torch.cat([torch.zeros(1), lengths.cumsum(0)]).int(),
            [(0, 2), (2, 4)],
        )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_packed_gradients_equal_the_padded_ones():
    padded_model = encoder_of("bert")
    packed_model = PackedEncoder(copy.deepcopy(padded_model))
    ids, mask = padded()
    out = padded_model(input_ids=ids, attention_mask=mask).last_hidden_state
    out[mask.bool()].square().sum().backward()
    lengths = torch.tensor(LENGTHS)
    packed_model(
        ids[mask.bool()],
        torch.zeros(int(lengths.sum()), dtype=torch.long),
        torch.cat([torch.arange(n) for n in LENGTHS]),
        torch.cat([torch.zeros(1), lengths.cumsum(0)]).int(),
        [(0, 3), (3, 4)],
    ).square().sum().backward()
    theirs = dict(padded_model.named_parameters())
    for name, parameter in packed_model.transformer.named_parameters():
        if theirs[name].grad is not None:
            torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-4, atol=1e-4)


def test_gate_ids_are_needed_with_several_gates_and_not_with_one():
    ids, mask = padded()
    with pytest.raises(ValueError, match="one gate only"):
        upcycle(encoder_of("bert"))(input_ids=ids, attention_mask=mask)
    switch = upcycle(encoder_of("bert"), num_gates=1)
    assert switch(input_ids=ids, attention_mask=mask).last_hidden_state.shape == (4, 9, 32)


def test_a_failed_call_leaves_no_gate_ids_behind():
    model = upcycle(encoder_of("bert"), num_gates=2)
    ids, mask = padded()
    with pytest.raises(ValueError, match="must be in"):
        model(input_ids=ids, attention_mask=mask, gate_ids=torch.full((4,), 7))
    with pytest.raises(ValueError, match="one gate only"):
        model(input_ids=ids, attention_mask=mask)


def test_noise_makes_the_experts_differ_and_no_noise_leaves_copies():
    for noise, equal in ((0.0, True), (0.01, False)):
        layer = routed_ffns(upcycle(encoder_of("bert"), expert_noise=noise))[0].moe
        first, second = layer.experts[0].fc1.weight, layer.experts[1].fc1.weight
        assert torch.equal(first, second) is equal


def changed(change):
    """A BERT whose second FFN is not what upcycling takes it for."""
    model = encoder_of("bert")
    change(model.encoder.layer[1].intermediate)
    return model


def wrapped(ffn):
    ffn.dense = torch.nn.Sequential(ffn.dense)


def other_activation(ffn):
    ffn.intermediate_act_fn = torch.nn.Tanh()


def test_a_norm_that_stands_before_the_ffn_stays():
    dense = tiny_encoder("megatron-bert")
    sparse = upcycle(copy.deepcopy(dense), num_gates=1, gate_scale="preserve").eval()
    ids = torch.randint(5, 290, (2, 9))
    found, expected = sparse(ids).last_hidden_state, dense(ids).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: GPT2Model(GPT2Config(n_layer=1, n_embd=16, n_head=2)),
            "no layer whose FFN is that of",
        ),
        (lambda: upcycle(encoder_of("bert")), "upcycled already"),
        (lambda: encoder_of("bert", hidden_act="relu"), "hidden_act 'relu'"),
        (lambda: tiny_encoder("roberta-prelayernorm"), "the FFN holds LayerNorm"),
        (lambda: tiny_encoder("mobilebert"), "several FFNs"),
        (lambda: encoder_of("bert", is_decoder=True), "it has is_decoder = True"),
        (lambda: encoder_of("bert", chunk_size_feed_forward=4), "chunk_size_feed_forward = 4"),
        (lambda: changed(lambda ffn: wrapped(ffn)), "intermediate.dense is a Sequential"),
        (lambda: changed(lambda ffn: prune.l1_unstructured(ffn.dense, "weight", 0.5)), "_orig"),
        (lambda: changed(lambda ffn: ffn.register_forward_hook(lambda *call: None)), "has hooks"),
        (lambda: changed(other_activation), "FFN differs by .* from its linear maps"),
    ],
)
def test_models_that_cannot_be_upcycled_are_refused_and_left_as_they_were(make, words):
    model = make()
    names = [type(module).__name__ for module in model.modules()]
    with pytest.raises(ValueError, match=words) as refusal:
        upcycle(model)
    assert "\n" not in str(refusal.value)
    assert [type(module).__name__ for module in model.modules()] == names


@pytest.mark.parametrize("odd", [None, "bert-base", 3, BertModel])
def test_what_is_no_model_is_refused_in_one_line(odd):
    with pytest.raises(ValueError, match="upcycle takes a transformers model, such as BertModel"):
        upcycle(odd)
