"""The cost model where its answer is known by hand."""

import pytest

from ds_moe_mtl.planner.cost import Machine, exchange_seconds, ring_seconds, sent_bytes, step_cost
from ds_moe_mtl.planner.memory import Weights

NODE = Machine(8, 8, flops=1e12, memory=1e12, nvlink=100e9, network=10e9, latency=0.0)
NODES = NODE._replace(gpus=16)


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
    assert ring_seconds(8e9, 4, NODE, 2) == pytest.approx(2 * 3 / 4 * 8e9 / 100e9)
    assert ring_seconds(8e9, 1, NODE, 2) == 0


def test_parts_of_a_step_worked_by_hand():
    cost = step_cost(1e6, 1000, 6, 384, Weights(800, 160), 0, 2, "bf16", NODE)
    assert cost.compute == pytest.approx(1e6 * 1000 / 1e12)
    assert cost.optimizer == pytest.approx((160 + 400) * 28 / 1e12)
    reduction = 2 * 7 / 8 * 2 * 160 / 100e9 + 2 * 3 / 4 * 2 * 400 / 100e9
    assert cost.reduction == pytest.approx(reduction)
    assert cost.all_to_all == pytest.approx(4 * 6 * 1000 * 384 * 2 / 2 / 100e9)
    assert cost.total == pytest.approx(sum(cost))


def test_nothing_is_sent_by_one_rank():
    assert sent_bytes(1000, 6, 384, "bf16", 4, 1) == 0
    assert step_cost(1, 1, 6, 384, Weights(8, 8), 1, 1, "fp32", NODE._replace(gpus=1))[1:3] == (
        0,
        0,
    )
