"""One decision for a sequence: its closed form, every gradient, packed as padded."""

import copy

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel

from ds_moe_mtl.models import FeedForward, HeadSpec, MoELayer, RoutingOptions, build_network
from ds_moe_mtl.models.token_level.context import kept_routes
from tests.support.tiny import BERT, differ_experts, spread_gates

HIDDEN, TASKS = 16, torch.tensor([0, 2, 1, 2])


def layer_of(gate_scale="preserve", **options):
    torch.manual_seed(0)
    options = {"route_by": "sequence", **options}
    layer = MoELayer(HIDDEN, FeedForward(HIDDEN, 24), RoutingOptions(4, 3, gate_scale, **options))
    nn.init.normal_(layer.gate.wg.weight)
    for parameter in layer.experts.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return layer


def inputs():
    mask = torch.ones(4, 6)
    mask[1, 3:] = 0
    mask[2, 1:] = 0
    return torch.randn(4, 6, HIDDEN, generator=torch.Generator().manual_seed(3)), mask


@pytest.mark.parametrize("gate_scale", ["paper", "preserve"])
def test_output_and_gradients_equal_a_float64_loop_over_sequences(gate_scale):
    layer, (x, mask) = layer_of(gate_scale), inputs()
    exact = copy.deepcopy(layer).double()
    x.requires_grad_()
    y, _, counts = layer(x, gate_ids=TASKS, used_token=mask)
    assert (y[mask == 0] == 0).all()
    y.sin().sum().backward()

    x64 = x.detach().double().requires_grad_()
    total, wanted_counts = 0, torch.zeros(4, dtype=torch.long)
    for example, task, real in zip(x64, TASKS.tolist(), mask, strict=True):
        tokens = example[real > 0]
        weight = exact.gate.wg.weight[4 * task : 4 * task + 4]
        prob = torch.softmax(weight @ tokens.mean(0), dim=0)
        expert = int(prob.argmax())
        scale = prob[expert]
        if gate_scale == "preserve":
            scale = scale / scale.detach()
        wanted_counts[expert] += len(tokens)
        total = total + (scale * exact.experts[expert](tokens)).sin().sum()
    total.backward()
    assert torch.equal(counts.long(), wanted_counts)
    torch.testing.assert_close(x.grad.double(), x64.grad, rtol=1e-4, atol=1e-5)
    for (name, mine), other in zip(layer.named_parameters(), exact.parameters(), strict=True):
        wanted = torch.zeros_like(other) if other.grad is None else other.grad
        torch.testing.assert_close(mine.grad.double(), wanted, rtol=1e-4, atol=1e-5, msg=name)


def test_packed_sequences_are_the_padded_ones_and_what_follows_them_is_none():
    layer, (x, mask) = layer_of(), inputs()
    padded = layer(x, gate_ids=TASKS, used_token=mask)[0][mask > 0]
    lengths = mask.sum(1).long()
    after = 3
    packed = torch.cat([x[mask > 0], 1e3 * torch.ones(after, HIDDEN)])[None]
    ids = torch.cat([TASKS.repeat_interleave(lengths), torch.zeros(after).long()])[None]
    real = torch.cat([torch.ones(int(lengths.sum())), torch.zeros(after)])[None]
    starts = torch.cat([torch.zeros(1), lengths.cumsum(0)]).int()
    found = layer(packed, gate_ids=ids, used_token=real, cu_seqlens=starts)[0][0]
    torch.testing.assert_close(found[:-after], padded)
    assert (found[-after:] == 0).all()


def test_all_tokens_of_a_sequence_have_one_expert_and_auxiliary_losses_count_sequences():
    layer = layer_of(load_balance_loss=1.0)
    x, mask = inputs()
    with kept_routes() as routes:
        _, loss, _ = layer(x, gate_ids=TASKS, used_token=mask)
    expert = routes[0].expert_T.view(4, 6)
    assert all(len(row[real > 0].unique()) == 1 for row, real in zip(expert, mask, strict=True))
    assert (expert[mask == 0] == -1).all()
    means = [row[real > 0].mean(0) for row, real in zip(x, mask, strict=True)]
    logits = torch.stack(
        [layer.gate.wg.weight[4 * t : 4 * t + 4] @ m for t, m in zip(TASKS, means, strict=True)]
    )
    share = torch.bincount(logits.argmax(1), minlength=4) / 4
    torch.testing.assert_close(loss, 4 * (share * logits.softmax(1).mean(0)).sum())


def test_a_network_routes_each_packed_sequence_as_if_it_were_alone():
    torch.manual_seed(0)
    config = BertConfig(vocab_size=40, max_position_embeddings=16, **BERT)
    options = RoutingOptions(4, 2, "preserve", route_by="sequence")
    specs = [HeadSpec("a", 2), HeadSpec("b", 3)]
    network = build_network(BertModel(config), "mt_tag", specs, 0.0, options).eval()
    spread_gates(network)
    differ_experts(network)
    lengths = torch.tensor([4, 7, 2])

    def batch(sequences):
        own = lengths[sequences]
        starts = torch.cat([torch.zeros(1), lengths.cumsum(0)]).long()
        return {
            "input_ids_T": torch.cat([torch.arange(starts[s], starts[s + 1]) for s in sequences]),
            "token_type_ids_T": torch.zeros(int(own.sum()), dtype=torch.long),
            "position_ids_T": torch.cat([torch.arange(n) for n in own]),
            "cu_seqlens": torch.cat([torch.zeros(1), own.cumsum(0)]).int(),
            "groups": None,
            "task_ids_B": torch.tensor([1, 0, 1])[sequences],
            "spans_B22": torch.zeros(len(sequences), 2, 2, dtype=torch.long),
        }

    with torch.no_grad():
        together = network(**batch([0, 1, 2])).logits_BC
        alone = torch.cat([network(**batch([s])).logits_BC for s in range(3)])
        none = network(
            **batch([0])
            | {k: v[:0] for k, v in batch([0]).items() if k[-2:] == "_T"}
            | {
                "cu_seqlens": torch.zeros(1, dtype=torch.int32),
                "task_ids_B": torch.zeros(0, dtype=torch.long),
                "spans_B22": torch.zeros(0, 2, 2, dtype=torch.long),
            }
        )
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    assert len(none.logits_BC) == 0


def test_gates_that_start_spread_are_orthogonal_and_of_one_norm():
    torch.manual_seed(0)
    layer = MoELayer(HIDDEN, FeedForward(HIDDEN, 24), RoutingOptions(4, 3, gate_init="spread"))
    for gate in layer.gate.wg.weight.split(4):
        torch.testing.assert_close(gate @ gate.T, torch.eye(4), rtol=1e-5, atol=1e-5)
    x = torch.randn(1, 3000, HIDDEN)
    with kept_routes() as routes:
        _, _, counts = layer(x, gate_ids=torch.tensor([1]))
    assert (counts > 600).all()  # a quarter each, within 5 standard deviations
    assert routes[0].prob_T.mean() > 0.4  # small gates: 0.25
