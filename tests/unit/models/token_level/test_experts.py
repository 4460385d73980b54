"""Experts that are more than a pair of nn.Linear are called, with all that hangs on them."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from transformers import BertConfig, BertModel

from ds_moe_mtl.models import FeedForward, MoELayer, RoutingOptions, routed_ffns, upcycle
from ds_moe_mtl.models.token_level.context import kept_routes
from ds_moe_mtl.models.token_level.experts import activation_of, ffn_weights
from tests.support.ffn_forms import FORMS, ffn_formula
from tests.support.tiny import BERT

HIDDEN, INNER, EXPERTS = 16, 24, 3


class Adapted(nn.Module):
    """A linear layer with an adapter beside it, which keeps the look of a linear layer."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.more = base, nn.Linear(base.in_features, base.out_features, bias=False)
        self.weight, self.bias = base.weight, base.bias

    def forward(self, x):
        return self.base(x) + self.more(x)


class Louder(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class WithBias(nn.Module):
    """An expert of Megatron's kind, which hands its bias on."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(HIDDEN, HIDDEN)

    def forward(self, x):
        return self.inner(x), self.inner.bias


def adapted(expert):
    expert.fc1 = Adapted(expert.fc1)


def overridden(expert):
    expert.fc2.__class__ = Louder


def hooked(expert):
    expert.fc1.register_forward_hook(lambda module, args, output: output + 1)


def hooked_itself(expert):
    expert.register_forward_pre_hook(lambda module, args: (3 * args[0],))


def with_a_forward_of_its_own(expert):
    plain = expert.fc2.forward
    expert.fc2.forward = lambda x: plain(x) - 1


def pruned(expert):
    prune.l1_unstructured(expert.fc1, "weight", 0.5)
    expert.fc1.weight_orig.data *= 2  # as an optimizer's step would: `weight` is stale until called


def parametrised(expert):
    parametrizations.weight_norm(expert.fc1)
    expert.fc1.parametrizations.weight.original0.data *= 2


def quantised(expert):
    torch.ao.quantization.quantize_dynamic(expert, {nn.Linear}, torch.qint8, inplace=True)


CHANGES = [
    adapted,
    overridden,
    hooked,
    hooked_itself,
    with_a_forward_of_its_own,
    pruned,
    parametrised,
    quantised,
]


def layer_of(expert=None) -> MoELayer:
    torch.manual_seed(0)
    expert = FeedForward(HIDDEN, INNER) if expert is None else expert
    layer = MoELayer(HIDDEN, expert, RoutingOptions(EXPERTS, 1, "preserve")).eval()
    for parameter in layer.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return layer


def loop(layer, x) -> torch.Tensor:
    """Return each token's own expert called on it alone."""
    with kept_routes() as routes, torch.no_grad():
        layer(x)
        expert_T = routes[0].expert_T.tolist()
        assert len(set(expert_T)) == EXPERTS
        outs = [layer.experts[e](row[None]) for e, row in zip(expert_T, x[0], strict=True)]
    return torch.cat([out[0] if isinstance(out, tuple) else out for out in outs])[None]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_is_put_into_an_expert_runs(change):
    layer, x = layer_of(), torch.randn(1, 40, HIDDEN)
    before = layer(x)[0]
    for expert in layer.experts:
        change(expert)
    # Quantised layers take float32 alone, and a row's scale is that of the rows beside it.
    close = {"rtol": 0.1, "atol": 0.1}
    if change is not quantised:
        layer, x, close = layer.double(), x.double(), {"rtol": 1e-12, "atol": 1e-12}
    found = layer(x)[0]
    assert not torch.allclose(found.float(), before, atol=1e-3)
    torch.testing.assert_close(found, loop(layer, x), **close)
    layer(x[:, :1])  # most experts get no row


def test_one_changed_expert_is_enough_and_plain_ones_need_no_call():
    layer, x, ran = layer_of(), torch.randn(1, 40, HIDDEN), []
    handle = layer.experts[1].fc2.register_forward_pre_hook(lambda *_: ran.append(1))
    expected = layer(x)[0]
    handle.remove()
    torch.testing.assert_close(layer(x)[0], expected, rtol=1e-6, atol=1e-6)
    assert ran == [1]
    handle = nn.modules.module.register_module_forward_pre_hook(lambda *_: ran.append(1))
    layer(x)
    handle.remove()
    assert len(ran) > EXPERTS


def test_an_expert_that_hands_its_bias_on_counts_with_its_output():
    layer, x = layer_of(WithBias()), torch.randn(1, 40, HIDDEN)
    torch.testing.assert_close(layer(x)[0], loop(layer, x), rtol=1e-5, atol=1e-6)


def test_pruned_gates_route_by_what_is_left_of_them_and_train():
    layer, x = layer_of(), torch.randn(1, 40, HIDDEN)
    gates = layer.gate.wg
    prune.l1_unstructured(gates, "weight", 0.3)
    for _ in range(2):
        gates.weight_orig.data.mul_(1.5)
        with kept_routes() as routes:
            layer(x)[0].sum().backward()
        logits = x[0] @ (gates.weight_orig * gates.weight_mask).T
        assert torch.equal(routes[0].expert_T.long(), logits.argmax(dim=1))
    assert gates.weight_orig.grad.abs().sum() > 0


def test_wrapped_gates_are_refused():
    layer = layer_of()
    layer.gate.wg = Adapted(layer.gate.wg)
    with pytest.raises(ValueError, match="gate.wg is a Adapted: gates cannot be wrapped"):
        layer(torch.randn(1, 4, HIDDEN))


def tiny_sparse() -> nn.Module:
    torch.manual_seed(0)
    model = upcycle(BertModel(BertConfig(vocab_size=60, **BERT)), num_gates=1).eval()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model


@pytest.mark.filterwarnings("ignore")
def test_dynamic_quantisation_of_a_whole_model_changes_experts_and_leaves_gates():
    model, ids = tiny_sparse(), torch.randint(60, (3, 9))
    other = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear}, torch.qint8)
    expert = routed_ffns(other)[0].moe.experts[0]
    assert type(expert.fc1) is not nn.Linear
    assert torch.equal(routed_ffns(other)[0].moe.gate.wg(), routed_ffns(model)[0].moe.gate.wg())
    expected, found = model(ids)[0], other(ids)[0]
    assert 0 < (found - expected).abs().mean() < 0.1 * expected.abs().mean()


def test_an_offloaded_model_answers_as_one_that_is_not():
    accelerate = pytest.importorskip("accelerate")
    model, ids = tiny_sparse(), torch.randint(60, (3, 9))
    other = accelerate.cpu_offload(copy.deepcopy(model), execution_device=torch.device("cpu"))
    assert all(parameter.is_meta for parameter in other.parameters())
    assert torch.equal(other(ids)[0], model(ids)[0])


@pytest.mark.parametrize(("activation", "bias"), FORMS)
def test_an_ffn_is_its_formula_alone_and_as_every_expert_of_a_layer(activation, bias):
    torch.manual_seed(0)
    ffn = FeedForward(HIDDEN, INNER, activation, bias=bias).double()
    x = torch.randn(1, 40, HIDDEN, dtype=torch.float64)
    (w1, b1), (w2, b2) = ((linear.weight, linear.bias) for linear in (ffn.fc1, ffn.fc2))
    assert ffn.inner == INNER and (b1 is not None) == (b2 is not None) == bias
    expected = ffn_formula(x, w1, b1, w2, b2, activation)
    layer = MoELayer(HIDDEN, ffn, RoutingOptions(EXPERTS, 1, "preserve")).double()
    torch.testing.assert_close(ffn(x), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer(x)[0], expected, rtol=1e-12, atol=1e-12)
    kinds = ffn_weights(list(layer.experts))
    assert [kind is None for kind in kinds] == [False, not bias, False, not bias, False]


def test_transformers_names_of_activations():
    assert activation_of("gelu_new") == "gelu_tanh"
    gated = {name: activation_of(name, gated=True) for name in ("gelu", "gelu_new", "silu")}
    assert gated == {"gelu": "geglu", "gelu_new": "geglu_tanh", "silu": "swiglu"}
    assert activation_of("swish", gated=True) == "swiglu"
    with pytest.raises(ValueError, match="^hidden_act 'silu' is not supported; allowed: .'gelu'"):
        activation_of("silu")
    with pytest.raises(ValueError, match="hidden_act of a gated FFN 'relu' is not supported"):
        activation_of("relu", gated=True)


def test_a_bias_that_some_experts_lack_has_them_called():
    layer, x = layer_of(), torch.randn(1, 40, HIDDEN).double()
    layer = layer.double()
    layer.experts[1].fc2.bias = None
    assert ffn_weights(list(layer.experts)) is None
    torch.testing.assert_close(layer(x)[0], loop(layer, x), rtol=1e-12, atol=1e-12)


def test_dropout_of_a_gated_ffn_drops_neurons():
    torch.manual_seed(0)
    ffn = FeedForward(HIDDEN, INNER, "swiglu", dropout=0.5, bias=False)
    ffn.fc2.weight.data = torch.eye(INNER)  # what stands before it is seen
    x = torch.rand(400, HIDDEN) + 0.1
    kept = ffn(x) / ffn.eval()(x)
    assert set(kept.round(decimals=3).unique().tolist()) == {0.0, 2.0}
    assert 0.45 < (kept == 0).float().mean() < 0.55
