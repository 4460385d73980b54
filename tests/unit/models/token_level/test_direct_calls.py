"""An upcycled transformers model called by itself: its gate ids, its threads, its losses."""

import copy
import pickle
import threading

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, BertModel

from ds_moe_mtl.models import GateCall, RoutingOptions, auxiliary_loss, call_scope, upcycle
from tests.support.tiny import BERT, differ_experts, spread_gates

GATES = 3


def sparse(model_class=BertModel, dropout: float = 0.0, **options):
    """Return a tiny upcycled model whose gates and experts differ."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=60,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        initializer_range=0.2,
        **BERT,
    )
    options = RoutingOptions(**{"num_gates": GATES, **options})
    model = upcycle(model_class(config), options=options).eval()
    spread_gates(model)
    differ_experts(model)
    return model


def inputs() -> dict:
    mask = torch.ones(4, 9, dtype=torch.long)
    mask[0, 6:] = 0
    ids = torch.randint(5, 60, (4, 9), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": mask}


def states(model, gate: int) -> torch.Tensor:
    return model(**inputs(), gate_ids=torch.full((4,), gate)).last_hidden_state.detach()


def in_threads(*functions):
    """Run the functions at the same time; return what they raised."""
    errors, start = [], threading.Barrier(len(functions))

    def run(function):
        try:
            start.wait()
            function()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def test_threads_in_one_model_are_routed_by_their_own_gates():
    model = sparse()
    expected = [states(model, gate) for gate in range(GATES)]
    assert not torch.allclose(expected[0], expected[1], atol=1e-3)

    def work(gate: int):
        for _ in range(50):
            assert torch.equal(states(model, gate), expected[gate])

    assert not in_threads(*(lambda gate=gate: work(gate) for gate in range(GATES)))


def test_a_model_called_inside_another_ones_call_has_a_call_of_its_own():
    outer, inner = sparse(), sparse()
    expected = states(inner, 2), states(outer, 1)
    found = []

    def call_the_other(*_):
        found.append(states(inner, 2))

    handle = outer.encoder.layer[0].register_forward_hook(call_the_other)
    assert torch.equal(states(outer, 1), expected[1]) and torch.equal(found[0], expected[0])
    handle.remove()
    with call_scope(outer).use(GateCall(torch.full((4,), 1))) as call:
        assert torch.equal(states(inner, 2), expected[0])
        outer(**inputs())
    assert len(call.counts) == 2 and call_scope(outer).call is None


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_of_a_model_answers_alike_and_has_calls_of_its_own(copied):
    model = sparse()
    other = copied(model)
    assert call_scope(other) is not call_scope(model)
    assert torch.equal(states(other, 2), states(model, 2))


def test_gate_ids_given_twice_are_refused_and_an_interrupted_call_is_over():
    model = sparse()
    scope, gates = call_scope(model), torch.zeros(4, dtype=torch.long)
    with scope.use(GateCall(gates)), pytest.raises(ValueError, match="given twice"):
        model(**inputs(), gate_ids=gates)
    handle = model.encoder.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        model(**inputs(), gate_ids=gates)
    handle.remove()
    states(model, 1)
    assert scope.call is None


def interrupt(*_):
    raise KeyboardInterrupt


def trained(model, reentrant: bool | None, in_thread: bool = False) -> dict:
    """Return a step's gradients; the backward pass in a thread of its own where asked for."""
    model = copy.deepcopy(model).train()
    if reentrant is not None:
        model.activation_checkpointing_enable({"use_reentrant": reentrant})
    torch.manual_seed(7)
    out = model(**inputs(), gate_ids=torch.tensor([0, 1, 2, 1])).last_hidden_state
    loss = out[inputs()["attention_mask"].bool()].square().sum() + auxiliary_loss(model)
    assert not (in_threads(loss.backward) if in_thread else loss.backward())
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("in_thread", [False, True])
@pytest.mark.parametrize(
    ("reentrant", "options"),
    [(False, {}), (True, {}), (False, {"load_balance_loss": 0.5, "router_z_loss": 0.1})],
)
def test_transformers_activation_checkpointing_changes_no_gradient(reentrant, options, in_thread):
    model = sparse(dropout=0.1, **options)
    plain, saving = trained(model, None), trained(model, reentrant, in_thread)
    assert plain.keys() == saving.keys() and any("wg" in name for name in plain)
    for name, gradient in plain.items():
        torch.testing.assert_close(saving[name], gradient, rtol=1e-5, atol=1e-7, msg=name)


def test_reentrant_checkpointing_that_would_lose_the_auxiliary_losses_is_refused():
    with pytest.raises(ValueError, match="use_reentrant=True loses"):
        trained(sparse(load_balance_loss=0.5), True)


@pytest.mark.parametrize("return_dict", [True, False])
@pytest.mark.parametrize("checkpointing", [True, False])
def test_auxiliary_losses_are_in_the_loss_that_transformers_computes(return_dict, checkpointing):
    labels, losses, gradients = torch.tensor([0, 1, 1, 0]), [], []
    for weight in (0.0, 10.0):
        model = sparse(BertForSequenceClassification, load_balance_loss=weight).train()
        if checkpointing:
            model.activation_checkpointing_enable()
        out = model(
            **inputs(),
            labels=labels,
            return_dict=return_dict,
            gate_ids=torch.tensor([0, 1, 2, 1]),
        )
        losses.append(out.loss if return_dict else out[0])
        losses[-1].backward()
        gradients.append(model.bert.encoder.layer[0].intermediate.moe.gate.wg.weight.grad)
    torch.testing.assert_close(losses[1], losses[0] + auxiliary_loss(model))
    assert auxiliary_loss(model) >= 20  # 10 a layer, where the loads are even
    with torch.no_grad():
        again = model(**inputs(), labels=labels, gate_ids=torch.tensor([0, 1, 2, 1])).loss
    torch.testing.assert_close(again, losses[1])
    assert not torch.allclose(*gradients, atol=1e-4)


def test_each_thread_reads_the_auxiliary_loss_of_its_own_call():
    model = sparse(load_balance_loss=1.0)
    expected = []
    for gate in range(GATES):
        states(model, gate)
        expected.append(auxiliary_loss(model).detach())
    assert len(set(map(float, expected))) == GATES

    def work(gate: int):
        with pytest.raises(ValueError, match="not been called in this thread"):
            auxiliary_loss(model)
        for _ in range(30):
            states(model, gate)
            assert torch.equal(auxiliary_loss(model).detach(), expected[gate])

    assert not in_threads(*(lambda gate=gate: work(gate) for gate in range(GATES)))
    with pytest.raises(ValueError, match="BertModel has no MoE layer"):
        auxiliary_loss(BertModel(BertConfig(vocab_size=60, **BERT)))
