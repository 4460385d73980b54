"""Every encoder that is carried: packed as padded, routed as dense, blind to its neighbours."""

import copy

import pytest
import torch

from ds_moe_mtl.models.dropout import without_dropout
from ds_moe_mtl.models.encoder import PackedEncoder
from ds_moe_mtl.models.encoder_check import check_encoder
from ds_moe_mtl.models.families import FAMILIES, family_of
from ds_moe_mtl.models.heads import HeadSpec
from ds_moe_mtl.models.multitask import build_network
from ds_moe_mtl.models.token_level.gating import RoutingOptions
from tests.support.families import KINDS, SHOWN, encoder_table, tiny
from tests.support.launch import ROOT

LENGTHS = [13, 9, 9, 2]
GROUPS = [(0, 2), (2, 4)]
PRESERVE = RoutingOptions(num_experts=3, num_gates=2, gate_scale="preserve")


def padded_batch(model):
    """Return (ids, mask, token types) [4, 13]; pads hold id 1."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 60, (len(LENGTHS), max(LENGTHS)), generator=generator)
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    types = torch.arange(max(LENGTHS)).expand_as(ids) % max(1, family_of(model).token_types(model))
    return ids.where(mask, torch.ones_like(ids)), mask, types


def run_padded(model, ids, mask, types):
    """Return transformers' own hidden states of the real tokens [T, D]."""
    more = {"token_type_ids": types} if family_of(model).token_types(model) else {}
    return model(input_ids=ids, attention_mask=mask.long(), **more).last_hidden_state[mask]


def packed_inputs(ids, mask, types):
    ends = torch.tensor([0, *LENGTHS]).cumsum(0).int()
    positions = torch.cat([torch.arange(length) for length in LENGTHS])
    return ids[mask], types[mask], positions, ends, GROUPS, LENGTHS


@pytest.mark.parametrize("kind", KINDS)
def test_packed_states_and_gradients_are_those_of_transformers_own_padded_forward(kind):
    theirs = without_dropout(tiny(kind)).train()
    ours = PackedEncoder(copy.deepcopy(theirs)).train()
    batch = padded_batch(theirs)
    expected = run_padded(theirs, *batch)
    found = ours(*packed_inputs(*batch))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2))
    (expected * weights).sum().backward()
    (found * weights).sum().backward()
    gradients = dict(theirs.named_parameters())
    seen = 0
    for name, parameter in ours.transformer.named_parameters():
        if gradients[name].grad is not None:
            torch.testing.assert_close(parameter.grad, gradients[name].grad, rtol=1e-4, atol=1e-4)
            seen += 1
    assert seen > 10


@pytest.mark.parametrize("kind", SHOWN)
def test_a_family_is_the_one_that_is_told_and_accepted_for_every_kind_of_model(kind):
    dropouts = dict.fromkeys(("hidden_dropout_prob", "attention_dropout"), 0.1)
    model = tiny(kind, **dropouts)
    assert family_of(model).name == KINDS[kind].family
    for model_kind in ("mt_dense", "mt_tag", "task_moe"):
        check_encoder(model, kind, model_kind)


@pytest.mark.parametrize("kind", SHOWN)
def test_in_training_a_sequence_does_not_depend_on_the_tokens_beside_it(kind):
    encoder = PackedEncoder(without_dropout(tiny(kind))).train()
    ids, mask, types = padded_batch(encoder.transformer)
    found = encoder(*packed_inputs(ids, mask, types))
    generator = torch.Generator().manual_seed(4)
    others = torch.randint(5, 60, ids.shape, generator=generator)
    for row in range(len(LENGTHS)):
        changed = others.index_copy(0, torch.tensor([row]), ids[row : row + 1])
        places = mask.nonzero()[:, 0] == row
        again = encoder(*packed_inputs(changed, mask, types))
        assert torch.equal(again[places], found[places])
        assert not torch.allclose(again[~places], found[~places])


@pytest.mark.parametrize("kind", SHOWN)
@torch.no_grad()
def test_in_bfloat16_packed_states_are_as_near_float32s_as_transformers_own(kind):
    model = tiny(kind)
    batch = padded_batch(model)
    exact = run_padded(model, *batch)
    theirs = run_padded(model.bfloat16(), *batch)
    ours = PackedEncoder(model)(*packed_inputs(*batch))
    errors = [float((found.float() - exact).square().mean().sqrt()) for found in (ours, theirs)]
    assert errors[0] <= 1.5 * errors[1]


@pytest.mark.parametrize("kind", SHOWN)
@torch.no_grad()
def test_every_dropout_draws_and_follows_the_seed(kind):
    encoder = PackedEncoder(without_dropout(tiny(kind))).train()
    inputs = packed_inputs(*padded_batch(encoder.transformer))
    plain = encoder(*inputs)
    family = family_of(encoder.transformer)
    for name, module in encoder.transformer.named_modules():
        if not isinstance(module, torch.nn.Dropout) or name.endswith(family.no_dropout or "-"):
            continue
        module.p = 0.3
        runs = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            runs.append(encoder(*inputs))
        assert torch.equal(runs[0], runs[1]), name
        assert not torch.equal(runs[0], runs[2]) and not torch.equal(runs[0], plain), name
        module.p = 0.0


@pytest.mark.parametrize("kind", SHOWN)
@torch.no_grad()
def test_a_copy_runs_by_itself_and_the_encoder_stays_transformers_for_others(kind):
    model = tiny(kind)
    batch = padded_batch(model)
    expected = run_padded(model, *batch)
    encoder = PackedEncoder(copy.deepcopy(model)).eval()
    found = encoder(*packed_inputs(*batch))
    other = copy.deepcopy(encoder)
    for parameter in encoder.parameters():
        parameter.zero_()
    assert torch.equal(other(*packed_inputs(*batch)), found)
    assert not encoder(*packed_inputs(*batch)).any()
    if "packed_attention" in vars(other.transformer):  # its attention has a way of its own
        assert torch.equal(run_padded(other.transformer, *batch), expected)


def network_of(kind, model_kind, **more):
    heads = [HeadSpec("one", 2), HeadSpec("two", 3)]
    torch.manual_seed(3)
    return build_network(tiny(kind, **more), model_kind, heads, 0.0, PRESERVE)


def network_inputs(network):
    batch = padded_batch(network.encoder.transformer)
    ids, types, positions, ends, groups, lengths = packed_inputs(*batch)
    spans = torch.full((len(LENGTHS), 2, 2), -1)
    return (ids, types, positions, ends, groups, torch.tensor([0, 1, 0, 1]), spans), lengths


@pytest.mark.parametrize("kind", SHOWN)
def test_the_sparse_network_with_preserve_is_the_dense_one_at_step_0(kind):
    dense, sparse = (network_of(kind, name).eval() for name in ("mt_dense", "mt_tag"))
    inputs, lengths = network_inputs(dense)
    with torch.no_grad():
        hidden = [
            network.features(*inputs, gate=0, spans=False, lengths=lengths)
            for network in (dense, sparse)
        ]
    torch.testing.assert_close(hidden[1], hidden[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model_kind", ["mt_tag", "mt_dense"])
@pytest.mark.parametrize("kind", [kind for kind in SHOWN if kind != "mpnet"])
def test_checkpointed_layers_give_the_same_gradients(kind, model_kind):
    plain, checkpointed = (without_dropout(network_of(kind, model_kind)).train() for _ in range(2))
    checkpointed.checkpoint_activations()
    inputs, lengths = network_inputs(plain)
    for network in (plain, checkpointed):
        network.features(*inputs, gate=1, spans=False, lengths=lengths).square().sum().backward()
    pairs = zip(plain.named_parameters(), checkpointed.named_parameters(), strict=True)
    for (name, a), (_, b) in pairs:
        assert (a.grad is None) == (b.grad is None), name
        if a.grad is not None:
            assert torch.equal(a.grad, b.grad), name


def test_checkpointing_is_refused_where_transformers_has_none():
    with pytest.raises(ValueError, match="activation_checkpointing = true.*MPNetModel; allowed"):
        network_of("mpnet", "mt_tag").checkpoint_activations()


def test_readme_lists_the_encoders_that_are_tested_here():
    readme = (ROOT / "README.md").read_text()
    assert "\n".join(encoder_table()) in readme
    assert {family.name for family in FAMILIES} == {kind.family for kind in KINDS.values()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_of_pads_inside_a_text_takes_the_place_that_transformers_gives_it(kind):
    theirs = without_dropout(tiny(kind))
    ours = PackedEncoder(copy.deepcopy(theirs)).eval()
    ids, mask, types = padded_batch(theirs)
    ids[0, 4], ids[2, 0] = 1, 1
    with torch.no_grad():
        expected = run_padded(theirs, ids, mask, types)
        found = ours(*packed_inputs(ids, mask, types))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
