"""Stage two begins with a trained model's tensors: whose gate, which head, all the rest."""

import pytest
import torch

from ds_moe_mtl.models import HeadSpec, RoutingOptions, build_network
from ds_moe_mtl.models.transfer import continued_state, donors
from ds_moe_mtl.tasks import TaskSpec
from tests.support.families import PLACES, tiny
from tests.support.packed import packed_batch
from tests.support.tiny import differ_experts, spread_gates

SPECS = [HeadSpec("a", 2), HeadSpec("b", 3), HeadSpec("c", 1)]


def network_of(specs, embedding=0, seed=0, kind="mt_tag"):
    from transformers import BertConfig, BertModel

    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=20,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=16,
    )
    options = RoutingOptions(4, len(specs) if kind == "mt_tag" else 1, gate_embedding=embedding)
    return build_network(BertModel(config, add_pooling_layer=False), kind, specs, 0.0, options)


def trained(embedding=0, kind="mt_tag"):
    network = network_of(SPECS, embedding, kind=kind)
    if not embedding:
        spread_gates(network)
    differ_experts(network)
    options = RoutingOptions(4, 3 if kind == "mt_tag" else 1, gate_embedding=embedding)
    description = network.description(kind, options, [], {})
    return network, description, network.state_dict()


def gate_rows(state, gate, experts=4):
    (key,) = [k for k in state if k.endswith("layer.1.intermediate.moe.gate.wg.weight")]
    return state[key][gate * experts : (gate + 1) * experts]


@pytest.mark.parametrize(("name", "gate", "donor"), [("b", "own", 1), ("new", "c", 2)])
def test_the_gate_is_the_donors_and_the_rest_is_the_models(name, gate, donor):
    _, description, state = trained()
    network = network_of([HeadSpec(name, 3)], seed=9)
    found = continued_state(network, description, state, gate, "auto")
    network.load_state_dict(found)
    assert torch.equal(gate_rows(found, 0), gate_rows(state, donor))
    for key, tensor in found.items():
        if "gate.wg" not in key and "heads" not in key:
            assert torch.equal(tensor, state[key]), key


@pytest.mark.parametrize("form", [{"gate_scale": "paper"}, {"combine": "merged"}])
@pytest.mark.parametrize("kind", PLACES)
@torch.no_grad()
def test_old_tasks_answer_to_the_bit_beside_a_new_one_with_a_donors_gate(kind, form):
    def built(specs, seed):
        encoder = tiny(kind)
        torch.manual_seed(seed)
        options = RoutingOptions(4, len(specs), **form)
        return build_network(encoder, "mt_tag", specs, 0.0, options).eval(), options

    before, options = built(SPECS, seed=0)
    spread_gates(before, std=1.0)
    differ_experts(before)
    description = before.description("mt_tag", options, [], {})
    after, _ = built([HeadSpec("new", 2), *SPECS], seed=9)
    names = [spec.name for spec in SPECS]
    found = continued_state(
        after, description, before.state_dict(), {"new": "c"}, "auto", kept=names
    )
    after.load_state_dict(found)
    for number, spec in enumerate(SPECS):
        old, new = before(**packed_batch(number)), after(**packed_batch(number + 1))
        width = spec.outputs
        assert torch.equal(new.logits_BC[:, :width], old.logits_BC[:, :width])
    for old, new in zip(_gates(before), _gates(after), strict=True):
        assert torch.equal(new.weight.chunk(4)[0], old.weight.chunk(3)[2])


def test_a_random_gate_is_as_drawn_and_small():
    _, description, state = trained()
    network = network_of([HeadSpec("b", 3)], seed=9)
    drawn = gate_rows(network.state_dict(), 0).clone()
    found = continued_state(network, description, state, "random", "auto")
    assert torch.equal(gate_rows(found, 0), drawn) and drawn.std() < 0.002


@pytest.mark.parametrize(
    ("name", "head", "is_kept"),
    [("b", "keep", 1), ("b", "auto", 1), ("b", "new", 0), ("n", "auto", 0)],
)
def test_heads_are_kept_or_new(name, head, is_kept):
    _, description, state = trained()
    network = network_of([HeadSpec(name, 3)], seed=9)
    key = "heads.linears.0.weight"
    drawn = network.state_dict()[key].clone()
    found = continued_state(network, description, state, "a", head)[key]
    assert torch.equal(found, state["heads.linears.1.weight"] if is_kept else drawn)


@pytest.mark.parametrize(
    ("name", "outputs", "gate", "head", "words"),
    [
        ("n", 2, "own", "auto", "no task 'n'; allowed: a, b, c, random"),
        ("a", 2, "d", "auto", "'d'; allowed: a, b, c, random, own"),
        ("n", 2, "a", "keep", "no head for 'n'; it has: a, b, c"),
        ("b", 2, "own", "auto", "'b' has 3 outputs, the task 2"),
    ],
)
def test_what_the_model_does_not_have_is_told(name, outputs, gate, head, words):
    _, description, state = trained()
    with pytest.raises(ValueError, match=words):
        continued_state(network_of([HeadSpec(name, outputs)]), description, state, gate, head)


def rows_of(labels, kind="classification"):
    """Task b as it was trained (classes x, y, z) and as it is here."""
    there = TaskSpec("b", "classification", ("text",), labels=("x", "y", "z"))
    here = TaskSpec("b", kind, ("text",), labels=labels)
    return [there.to_dict()], [here]


def test_a_heads_rows_follow_the_names_of_their_classes():
    _, description, state = trained()
    description["tasks"], here = rows_of(("z", "x", "y"))
    network = network_of([HeadSpec("b", 3)], seed=9)
    found = continued_state(network, description, state, "own", "auto", here)
    for kind in ("weight", "bias"):
        mine, theirs = found[f"heads.linears.0.{kind}"], state[f"heads.linears.1.{kind}"]
        assert torch.equal(mine, theirs[[2, 0, 1]])


@pytest.mark.parametrize(
    ("labels", "kind", "words"),
    [
        (("x", "y", "w"), "classification", "other classes in the model: 'z' there only, 'w' here"),
        (
            ("x", "y"),
            "classification",
            "other classes in the model: 'z' there only, none here",
        ),
        (("x", "y", "z"), "span", "'b' is a classification in the model and a span here"),
        ((), "regression", "'b' is a classification in the model and a regression here"),
    ],
)
def test_a_task_of_other_classes_is_refused_unless_its_head_is_new(labels, kind, words):
    _, description, state = trained()
    description["tasks"], here = rows_of(labels, kind)
    network = network_of([HeadSpec("b", max(1, len(labels)), spans=kind == "span")], seed=9)
    for head in ("auto", "keep"):
        with pytest.raises(ValueError, match=f"{words}.*allowed: start.head=new"):
            continued_state(network, description, state, "own", head, here)
    drawn = network.state_dict()["heads.linears.0.weight"].clone()
    found = continued_state(network, description, state, "own", "new", here)
    assert torch.equal(found["heads.linears.0.weight"], drawn)


def test_the_head_that_scores_options_goes_over_to_another_task_with_options():
    specs = [HeadSpec("a", 2), HeadSpec("quiz", 1, shared="options")]
    before = network_of(specs)
    description = before.description("mt_tag", RoutingOptions(4, 2), [], {})
    network = network_of([HeadSpec("other", 1, shared="options")], seed=9)
    found = continued_state(network, description, before.state_dict(), "a", "auto")
    assert torch.equal(found["heads.linears.0.weight"], before.heads.linears[1].weight)


def test_a_switch_models_one_gate_goes_over_and_it_has_no_donors():
    _, description, state = trained(kind="mt_switch")
    network = network_of([HeadSpec("n", 2)], kind="mt_switch", seed=5)
    found = continued_state(network, description, state, "own", "auto")
    assert torch.equal(gate_rows(found, 0), gate_rows(state, 0)) and donors(description) == []


def test_a_generated_gate_goes_over_as_its_vector_and_the_shared_generator():
    before, description, state = trained(embedding=3)
    network = network_of([HeadSpec("n", 2)], embedding=3, seed=9)
    network.load_state_dict(continued_state(network, description, state, "b", "auto"))
    for old, new in zip(_gates(before), _gates(network), strict=True):
        torch.testing.assert_close(new.weight, old.weight[4:8])


def _gates(network):
    from ds_moe_mtl.models.token_level.direct_calls import routed_ffns

    return [ffn.moe.gate.wg for ffn in routed_ffns(network)]
