"""A tiny network and batches of few shapes, for passes that are recorded."""

import torch
from transformers import BertConfig, BertModel

from ds_moe_mtl.models import HeadSpec, RoutingOptions, build_network
from ds_moe_mtl.models.attention.choice import PACKED_SDPA
from tests.support.gpu import DEVICE
from tests.support.tiny import BERT, differ_experts, spread_gates

LENGTHS = {"first": [11, 9, 5, 2], "second": [10, 10, 6, 3, 3], "same tokens": [11, 8, 6, 2]}


def network_of(kind: str, dropout: float):
    """Return a tiny network in training, its gates spread and its experts apart."""
    config = BertConfig(
        vocab_size=60,
        max_position_embeddings=40,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        **BERT,
    )
    torch.manual_seed(0)
    options = RoutingOptions(num_gates=2 if kind == "mt_tag" else 1, gate_scale="preserve")
    heads = [HeadSpec("first", 2), HeadSpec("second", 3)]
    network = build_network(
        BertModel(config, add_pooling_layer=False), kind, heads, dropout, options
    )
    spread_gates(network)
    if kind != "mt_dense":
        differ_experts(network)
    if not torch.cuda.is_available():
        network.encoder.attention = PACKED_SDPA
    return network.train()


def batch_of(lengths: list[int], seed: int = 0) -> dict:
    """Return a network's inputs for sequences of these lengths."""
    draw = torch.Generator().manual_seed(seed)
    tokens = sum(lengths)
    batch = {
        "input_ids_T": torch.randint(5, 60, (tokens,), generator=draw),
        "token_type_ids_T": torch.zeros(tokens, dtype=torch.long),
        "position_ids_T": torch.cat([torch.arange(n) for n in lengths]),
        "cu_seqlens": torch.tensor([0, *lengths]).cumsum(0).int(),
        "task_ids_B": torch.arange(len(lengths)) % 2,
        "spans_B22": torch.full((len(lengths), 2, 2), -1),
    }
    return {"groups": None, "lengths": lengths, **{k: x.to(DEVICE) for k, x in batch.items()}}


def step(network, batch: dict) -> tuple[torch.Tensor, list, dict]:
    """Return outputs, counts and gradients of one training step's passes."""
    network.zero_grad(set_to_none=True)
    torch.manual_seed(7)
    outputs = network(**batch)
    outputs.logits_BC.clamp(min=-50).square().sum().backward()
    grads = {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}
    return outputs.logits_BC.detach(), [c.tolist() for c in outputs.counts], grads


def assert_same(found, expected, **tolerance) -> None:
    """Assert that two results of `step` are within a tolerance; counts are the same."""
    compare = torch.testing.assert_close
    compare(found[0], expected[0], **tolerance)
    assert found[1] == expected[1] and found[2].keys() == expected[2].keys()
    for name, grad in expected[2].items():
        compare(found[2][name], grad, **tolerance, msg=lambda text, name=name: f"{name}: {text}")
