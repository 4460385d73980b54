"""Encoders whose attention is code of their own: every configuration that is accepted."""

import copy

import pytest
import torch

from ds_moe_mtl.models.attention.choice import (
    PACKED_EAGER,
    PACKED_FLASH,
    PACKED_SDPA,
    PACKED_SHORT,
    attention_plan,
)
from ds_moe_mtl.models.attention.own import (
    by_distance,
    distances,
    nearest,
    plan_like,
    rows_by_distance,
)
from ds_moe_mtl.models.dropout import without_dropout
from ds_moe_mtl.models.encoder import PackedEncoder
from ds_moe_mtl.models.encoder_check import check_encoder
from tests.support.encoders import tiny_encoder
from tests.support.families import DISTANCES, tiny
from tests.support.flash_operators import flash_on_cpu
from tests.unit.models.families.test_families import (
    LENGTHS,
    network_inputs,
    network_of,
    packed_inputs,
    padded_batch,
    run_padded,
)

OWN = ("deberta-v2", "deberta", "mpnet", "megatron-bert", "rembert", "distilbert")
BOTH = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}
CONV = {"conv_kernel_size": 3, "conv_act": "gelu"}
V2 = {
    "plain": {},
    "absolute, scaled as if relative": {"pos_att_type": ["c2p", "p2c"]},
    "no terms": {"relative_attention": True, "pos_att_type": []},
    "c2p": {**DISTANCES, "pos_att_type": ["c2p"]},
    "p2c": {**DISTANCES, "pos_att_type": ["p2c"]},
    "by name": {**DISTANCES, "pos_att_type": "c2p|p2c"},
    "distances up to all positions": BOTH,
    "buckets": {**BOTH, "position_buckets": 8},
    "odd buckets": {**DISTANCES, "position_buckets": 5},
    "shared keys, c2p": {**DISTANCES, "share_att_key": True, "pos_att_type": ["c2p"]},
    "shared keys": {**DISTANCES, "share_att_key": True, "position_biased_input": True},
    "norm": {**DISTANCES, "norm_rel_ebd": "none|layer_norm"},
    "token types": {**DISTANCES, "type_vocab_size": 3},
    "narrow embeddings": {**DISTANCES, "embedding_size": 16, "position_biased_input": True},
    "convolution": {**DISTANCES, **CONV},
    "wide convolution of groups": {**CONV, "conv_kernel_size": 5, "conv_groups": 4},
}
V1 = {
    "plain": {},
    "absolute, scaled as if relative": {"pos_att_type": ["c2p", "p2c"]},
    "no terms": {"relative_attention": True, "pos_att_type": []},
    "c2p": {**DISTANCES, "pos_att_type": ["c2p"]},
    "p2c": {**DISTANCES, "pos_att_type": ["p2c"]},
    "distances up to all positions": BOTH,
    "token types": {**DISTANCES, "type_vocab_size": 3},
    "narrow embeddings": {**DISTANCES, "embedding_size": 16, "position_biased_input": True},
}
CASES = [("deberta-v2", name) for name in V2] + [("deberta", name) for name in V1]


def deberta(kind, name):
    return without_dropout(tiny_encoder(kind, **{"deberta-v2": V2, "deberta": V1}[kind][name]))


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_every_deberta_gives_transformers_states_and_gradients(kind, name):
    theirs = deberta(kind, name).train()
    ours = PackedEncoder(copy.deepcopy(theirs)).train()
    batch = padded_batch(theirs)
    expected, found = run_padded(theirs, *batch), ours(*packed_inputs(*batch))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2))
    (expected * weights).sum().backward()
    (found * weights).sum().backward()
    for (name, a), b in zip(theirs.named_parameters(), ours.transformer.parameters(), strict=True):
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in (a, b)]
        torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.parametrize("kind", ["deberta-v2", "deberta"])
@torch.no_grad()
def test_terms_of_distance_show_in_the_states(kind):
    """What the cases above compare is not the same whatever the distance."""
    model = tiny_encoder(kind, **DISTANCES)
    batch = padded_batch(model)
    before = PackedEncoder(copy.deepcopy(model))(*packed_inputs(*batch))
    model.encoder.rel_embeddings.weight.copy_(model.encoder.rel_embeddings.weight.flip(0))
    assert (PackedEncoder(model)(*packed_inputs(*batch)) - before).abs().max() > 0.01


@pytest.mark.parametrize("kind_of_network", ["mt_dense", "mt_tag", "task_moe"])
def test_a_deberta_with_a_convolution_is_accepted(kind_of_network):
    check_encoder(deberta("deberta-v2", "convolution"), "v2-xlarge", kind_of_network)


def test_heads_that_talk_are_refused_in_one_line():
    model = tiny_encoder("deberta", **DISTANCES, talking_head=True)
    with pytest.raises(ValueError, match="DebertaModel.*talking_head = True; allowed: False$"):
        check_encoder(model, "v1")


def test_an_mpnet_whose_pad_is_not_the_one_in_its_code_is_refused_in_one_line():
    with pytest.raises(ValueError, match="MPNetModel.*pad_token_id is 0; allowed: 1, "):
        check_encoder(tiny("mpnet", pad_token_id=0), "padded by zeros")


@pytest.mark.parametrize("kind", ["megatron-bert", "rembert"])
def test_a_decoder_is_refused(kind):
    with pytest.raises(ValueError, match="packed sequences differ"):
        check_encoder(tiny(kind, is_decoder=True), kind)


@pytest.mark.parametrize("length", [1, 2, 7])
def test_views_by_distance_hold_what_indexing_gives(length):
    generator = torch.Generator().manual_seed(0)
    apart = torch.arange(length)[:, None] - torch.arange(length)
    place = distances(length + 3, torch.device("cpu")).tolist()
    table = torch.randn(2, len(place), generator=generator)
    expected = table[:, [[place.index(int(d)) for d in row] for row in apart]]
    assert torch.equal(by_distance(nearest(table, length)), expected)
    rows = torch.randn(3, 2, length, 2 * length - 1, generator=generator)
    expected = rows.gather(-1, (length - 1 - apart).expand(3, 2, length, length))
    assert torch.equal(rows_by_distance(rows), expected)


@pytest.mark.parametrize("kind", ["megatron-bert", "rembert"])
@torch.no_grad()
def test_without_terms_of_distance_every_packed_attention_serves(kind):
    encoder = PackedEncoder(tiny(kind))
    inputs = packed_inputs(*padded_batch(encoder.transformer))
    found = []
    with flash_on_cpu():
        for encoder.attention in (PACKED_EAGER, PACKED_SDPA, PACKED_FLASH):
            found.append(encoder(*inputs))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-5, atol=1e-5)
        assert not torch.equal(other, found[0])  # it is another program


@pytest.mark.parametrize("kind", OWN)
def test_a_network_in_bfloat16_on_a_cpu_which_fills_batches_up_trains(kind):
    """Filled up are tokens and, inside attention, tokens and sequences that are all pads."""
    exact = without_dropout(network_of(kind, "mt_dense")).train()
    network = copy.deepcopy(exact).bfloat16()
    found = []
    for each in (exact, network):
        inputs, lengths = network_inputs(each)
        states = each.features(*inputs, gate=0, spans=False, lengths=lengths)
        states.float().square().sum().backward()
        found.append((states, {n: p.grad for n, p in each.named_parameters()}))
    (wanted, grads), (states, low_grads) = found
    assert (states - wanted).norm() < 0.05 * wanted.norm()
    for name, grad in grads.items():
        assert (grad is None) == (low_grads[name] is None), name
        if grad is not None:
            assert (low_grads[name] - grad).norm() < 0.1 * grad.norm() + 0.01, name


@pytest.mark.parametrize("kind", OWN)
def test_a_rank_without_examples_reaches_the_parameters_that_others_reach(kind):
    reached = []
    for sequences in (len(LENGTHS), 0):
        network = without_dropout(network_of(kind, "mt_dense")).train()
        (*tokens, ends, groups, tasks, spans), lengths = network_inputs(network)
        if not sequences:
            tokens, ends = [x[:0] for x in tokens], ends[:1]
            groups, tasks, spans, lengths = [], tasks[:0], spans[:0], []
        states = network.features(
            *tokens, ends, groups, tasks, spans, gate=0, spans=False, lengths=lengths
        )
        states.sum().backward()
        reached.append({n for n, p in network.named_parameters() if p.grad is not None})
    assert reached[0] == reached[1]


def test_a_plan_of_part_of_a_batch_is_of_the_kind_of_the_whole():
    where = (torch.device("cpu"), torch.float32)
    for name in (PACKED_EAGER, PACKED_FLASH, PACKED_SHORT):
        whole = attention_plan(name, [5, 3, 3], None, *where)
        part, wanted = plan_like(whole, [3, 3], *where), attention_plan(name, [3, 3], None, *where)
        assert type(part) is type(wanted)
