"""The cost model where its answer is known by hand."""

import pytest

from ds_moe_mtl.planner.compute import Batch
from ds_moe_mtl.planner.cost import (
    Machine,
    Work,
    all_to_all_seconds,
    exchange_seconds,
    ring_bandwidth,
    ring_seconds,
    sent_bytes,
    step_cost,
)
from ds_moe_mtl.planner.flops import count_flops
from ds_moe_mtl.planner.levers import Levers
from ds_moe_mtl.planner.memory import Weights, count_weights
from ds_moe_mtl.planner.shape import SIZES

NODE = Machine(8, 8, flops=1e12, memory=1e12, nvlink=100e9, network=10e9, latency=0.0, share=1.0)
NODES = NODE._replace(gpus=16)
LARGE = SIZES["bert_large"]


def work_of(tokens: float, shape=LARGE, precision: str = "bf16", **more) -> Work:
    """Return a step of an MT-TaG model with 4 experts, its sequences of 128 tokens."""
    batch = Batch(tokens, tokens / 128, tokens * 128)
    flops = count_flops(shape, 128, 4, 8)
    work = Work(shape, flops, batch, count_weights(shape, 4, 8), precision, 4, piece=1 << 25)
    return work._replace(**more)


def test_an_exchange_within_a_node_sends_all_but_its_own_share():
    assert exchange_seconds(8e9, 4, NODE, False) == pytest.approx(8e9 * 3 / 4 / 100e9)
    assert exchange_seconds(8e9, 1, NODE, False) == 0


def test_an_exchange_across_nodes_waits_for_the_network():
    assert exchange_seconds(16e9, 16, NODES, False) == pytest.approx(16e9 * 8 / 16 / 10e9)
    two_hops = 16e9 * 7 / 8 / 100e9 + 16e9 / 2 / 10e9
    assert exchange_seconds(16e9, 16, NODES, True) == pytest.approx(two_hops)


def test_hierarchy_pays_where_messages_are_many_and_small():
    slow = Machine(64, 8, 1e12, 1e12, 100e9, 10e9, latency=1e-4)
    assert exchange_seconds(1e3, 64, slow, True) < exchange_seconds(1e3, 64, slow, False)
    assert exchange_seconds(1e12, 64, slow, True) > exchange_seconds(1e12, 64, slow, False)


def test_a_ring_moves_twice_the_others_shares():
    assert ring_seconds(8e9, NODE._replace(gpus=4), 2) == pytest.approx(2 * 3 / 4 * 8e9 / 100e9)
    assert ring_seconds(8e9, NODE._replace(gpus=1), 2) == 0


@pytest.mark.parametrize(
    ("gpus", "stride", "cards"),
    [
        (16, 1, 8),  # two whole nodes
        (16, 2, 4),  # ranks 0, 2, 4, ...: four in each node
        (16, 4, 2),
        (32, 16, 1),  # ranks 0 and 16: one in each of two nodes
        (12, 1, 4),  # the second node has four
        (12, 4, 1),  # ranks 0, 4 and 8: the second node has one of them
    ],
)
def test_a_ring_across_nodes_uses_the_network_cards_of_all_its_ranks_there(gpus, stride, cards):
    machine = NODE._replace(gpus=gpus)
    assert ring_bandwidth(machine, stride) == min(cards * 10e9, 100e9)
    assert ring_bandwidth(machine._replace(network=90e9), stride) == min(cards * 90e9, 100e9)


def test_replicas_within_a_node_never_meet_the_network():
    assert ring_bandwidth(NODE, 4) == 100e9
    assert ring_bandwidth(NODES, 16) == 100e9  # one rank each: no ring at all


def test_experts_of_bert_large_stay_where_they_are_on_two_nodes():
    """Worked by hand: 8 GPUs a node, NVLink 300 GB/s, a card of 40 GB/s for each GPU, 10 us.

    2 bytes a weight, 3 rounds (ZeRO 1). ep 1: all 939,243,536 - 16,400 weights (no heads here) over
    16 ranks, whose rings use min(8 x 40, 300) = 300 GB/s. ep 4: the rest over the same rings, a
    rank's 201,449,472 expert weights over 4 replicas, two in a node: 2 x 40 = 80 GB/s. With one
    card a ring, which is wrong, ep 1 would take 133 ms and ep 4 42.
    """
    machine = Machine(16, 8, 300e12, 3e12, 300e9, 40e9, 1e-5, share=1.0)
    work = work_of(4570)
    alone, spread = (step_cost(work, machine, 1, ep_size) for ep_size in (1, 4))
    rest, experts = 939_227_136 - 805_797_888, 805_797_888
    assert work.weights == (experts, rest)
    of_rest = 3 * (15 / 16 * 2 * rest / 300e9 + 15e-5)
    by_hand = of_rest + 3 * (15 / 16 * 2 * experts / 300e9 + 15e-5)
    assert alone.reduction == pytest.approx(by_hand) == pytest.approx(18.5e-3, abs=5e-5)
    by_hand = of_rest + 3 * (3 / 4 * 2 * experts / 4 / 80e9 + 3e-5)
    assert spread.reduction == pytest.approx(by_hand) == pytest.approx(14.4e-3, abs=5e-5)
    # What is saved, 4.1 ms, is less than what the exchanges take: 24 layers x (4 x rows + counts).
    rows = 4570 * 1024 * 2 * 3 / 4 / 300e9 + 3e-5
    exchanges = 24 * (4 * rows + (4 * 4 * 3 / 4 / 300e9 + 3e-5))
    assert spread.all_to_all == pytest.approx(exchanges) == pytest.approx(5.85e-3, abs=5e-5)
    assert alone.compute == spread.compute and alone.optimizer == pytest.approx(spread.optimizer)
    assert alone.total < spread.total


def test_every_micro_batch_and_sparse_layer_exchanges_rows_and_counts_and_waits_for_the_host():
    machine = NODE._replace(latency=1e-6, host_wait=1e-3)
    batch = Batch(1000, 10, 1e5, micro_batches=3)
    work = work_of(1000, levers=Levers(layers=5), batch=batch)
    rows = 1000 * 1024 * 2 / 2 / 100e9 + 1e-6
    counts = 4 * 4 / 2 / 100e9 + 1e-6
    expected = 3 * 5 * (4 * rows + counts + 1e-3)
    assert all_to_all_seconds(work, 2, machine, False) == pytest.approx(expected)
    assert all_to_all_seconds(work, 1, machine, False) == 0


def test_the_optimizer_moves_what_its_update_moves():
    work = work_of(1000, weights=Weights(800, 160))
    assert step_cost(work, NODE, 1, 2).optimizer == pytest.approx((20 + 100) * 58 / 1e12)
    assert step_cost(work, NODE, 0, 2).optimizer == pytest.approx((160 + 400) * 40 / 1e12)


def test_nothing_is_sent_by_one_rank():
    assert sent_bytes(1000, 6, 384, "bf16", 4, 1) == 0
    cost = step_cost(work_of(100, precision="fp32"), NODE._replace(gpus=1, per_node=1), 1, 1)
    assert cost.reduction == cost.all_to_all == 0 < cost.compute
