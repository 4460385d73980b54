"""An encoder's layers on our kernels, in Triton's interpreter: the numbers and names of torch's."""

import copy
import pickle
from collections import Counter

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    RobertaConfig,
    RobertaModel,
    XLMRobertaXLConfig,
    XLMRobertaXLModel,
)

from ds_moe_mtl.config import UserError
from ds_moe_mtl.models import HeadSpec, RoutingOptions, build_network
from ds_moe_mtl.models.attention.choice import (
    PACKED_SDPA,
    PACKED_SHORT,
    packed_attention,
)
from ds_moe_mtl.models.fused import JointSelfAttention, NormedOutput, forms, set_kernels
from ds_moe_mtl.models.kernels import TORCH, EncoderKernels, check_kernels, kernels_on
from moe_kernels.implementation import interpreting
from tests.support.launches import counted_launches
from tests.support.tiny import tiny_config, write_tiny

CPU = torch.device("cpu")
LENGTHS = (17, 1)
SMALL = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
}
needs_interpreter = pytest.mark.skipif(not interpreting(), reason="Triton's interpreter is off")


def network_of(kind="mt_dense", dropout=0.0, layers=1):
    torch.manual_seed(0)
    rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    transformer = BertModel(BertConfig(**SMALL | rates, num_hidden_layers=layers))
    return build_network(
        transformer, kind, [HeadSpec("a", 2)], dropout, RoutingOptions(num_gates=2)
    )


def batch():
    tokens = sum(LENGTHS)
    return {
        "input_ids_T": 5 + torch.arange(tokens) % 50,
        "token_type_ids_T": torch.zeros(tokens, dtype=torch.long),
        "position_ids_T": torch.cat([torch.arange(n) for n in LENGTHS]),
        "cu_seqlens": torch.tensor([0, *LENGTHS]).cumsum(0).int(),
        "groups": None,
        "task_ids_B": torch.zeros(2, dtype=torch.long),
        "spans_B22": torch.full((2, 2, 2), -1),
        "lengths": LENGTHS,
    }


def step(network, seed=1):
    """Return the logits and all gradients by name."""
    torch.manual_seed(seed)
    network.zero_grad()
    logits = network(**batch()).logits_BC
    logits.square().sum().backward()
    grads = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    return {"logits": logits.detach()} | grads


@needs_interpreter
@pytest.mark.parametrize("kind", ["mt_dense", "mt_tag"])
def test_a_network_on_our_kernels_gives_what_it_gives_on_torchs(kind):
    plain, ours = network_of(kind), network_of(kind)
    ours.use_kernels("triton")
    expected, found = step(plain), step(ours)
    assert ours.attention_on(CPU, torch.float32) == PACKED_SHORT
    assert (
        ours.kernels_on(CPU, torch.float32) == "short attention + residual norm + joint projection"
    )
    kinds = [type(module) for module in ours.modules()]
    assert (kinds.count(NormedOutput), kinds.count(JointSelfAttention)) == (2, 1)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=2e-4, atol=2e-5, msg=name)


@needs_interpreter
def test_dropout_is_drawn_anew_and_repeats_under_activation_checkpointing():
    plain, ours = network_of(dropout=0.3), network_of(dropout=0.3)
    for network in (plain, ours):
        network.use_kernels("triton")
    ours.checkpoint_activations()
    first, again, other = step(plain, seed=1), step(ours, seed=1), step(plain, seed=2)
    assert not torch.equal(first["logits"], other["logits"])
    for name, value in first.items():
        torch.testing.assert_close(again[name], value, msg=name)
    with torch.no_grad():
        outs = [plain.eval()(**batch()).logits_BC for _ in range(2)]
    assert torch.equal(*outs)


@needs_interpreter
def test_what_a_layer_starts_forward_and_backward(monkeypatch):
    """Of two sequences in two blocks, with dropout, and weights that lie apart (3 copies)."""
    counted, found = counted_launches(monkeypatch), []
    for layers in (1, 2):
        network = network_of(dropout=0.1, layers=layers)
        network.use_kernels("triton")
        with counted:
            network(**batch()).logits_BC.sum().backward()
        found.append(Counter(counted.names))
        counted.names.clear()
    attention = {"attend_kernel": 2, "attend_grad_kernel": 2, "random_": 3}
    norms = dict.fromkeys(
        ("residual_norm_kernel", "residual_norm_grad_kernel", "sum_parts_kernel", "add"), 2
    )
    products = {"addmm": 4, "mm": 8, "sum": 4, "cat": 3, "gelu": 1, "gelu_backward": 1}
    assert found[1] - found[0] == attention | norms | products


def test_a_changed_encoder_keeps_its_names_and_can_be_changed_back():
    network = network_of()
    before = network.encoder.transformer.state_dict()
    classes = [type(module) for module in network.modules()]
    set_kernels(network.encoder.transformer, EncoderKernels(True, True, True))
    after = copy.deepcopy(network).encoder.transformer.state_dict()
    assert before.keys() == after.keys()
    assert (
        pickle.loads(pickle.dumps(network)).encoder.transformer.state_dict().keys() == after.keys()
    )
    set_kernels(network.encoder.transformer, TORCH)
    assert [type(module) for module in network.modules()] == classes


def test_what_does_not_do_as_bert_does_is_left_alone():
    roberta = RobertaModel(RobertaConfig(**SMALL, num_hidden_layers=2))
    assert forms(roberta) == EncoderKernels(True, True, True)
    roberta.encoder.layer[0].attention.self.key = nn.Sequential(nn.Linear(32, 32))
    set_kernels(roberta, EncoderKernels(True, True, True))
    joint = [
        isinstance(layer.attention.self, JointSelfAttention) for layer in roberta.encoder.layer
    ]
    assert joint == [False, True]
    before_norm = XLMRobertaXLModel(
        XLMRobertaXLConfig(**SMALL, num_hidden_layers=1)
    )  # its norms stand elsewhere
    assert forms(before_norm) == EncoderKernels(True, False, True)
    network = build_network(before_norm, "mt_dense", [HeadSpec("a", 2)], 0.0)
    with pytest.raises(ValueError, match="XLMRobertaXLModel do not do as BERT's"):
        network.use_kernels("triton")


def test_torchs_own_kernels_run_where_ours_are_not_verified():
    gpu = torch.device("cuda")
    for option in ("auto", "torch"):
        assert kernels_on(option, CPU, torch.float32, 64) == TORCH
    assert packed_attention(CPU, torch.float32, 64, "torch") == PACKED_SDPA
    with pytest.raises(ValueError, match="up to 128; allowed: auto, torch"):
        kernels_on("triton", CPU, torch.float32, 256)
    with pytest.raises(ValueError, match="it takes 16 bits"):
        kernels_on("triton", gpu, torch.float32, 64)


def test_kernels_that_cannot_run_are_a_mistake_of_the_users(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    write_tiny(tmp_path)
    with pytest.raises(
        UserError, match="train.encoder_kernels = triton cannot run here: .* a GPU; allowed"
    ):
        check_kernels(tiny_config(tmp_path, train={"encoder_kernels": "triton"}), "cpu")
    with pytest.raises(UserError, match="moe.impl: "):
        check_kernels(tiny_config(tmp_path, moe={"impl": "cuda"}), "cpu")
    check_kernels(tiny_config(tmp_path), "cpu")
