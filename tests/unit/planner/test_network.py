"""Rings and exchanges where their seconds are known by hand."""

import math

import pytest

from ds_moe_mtl.planner.network import (
    Machine,
    exchange_seconds,
    has_hierarchy,
    hierarchy_pays_below,
    ring_bandwidth,
    ring_seconds,
)

NODE = Machine(8, 8, flops=1e12, memory=1e12, nvlink=100e9, network=10e9, latency=0.0)
NODES = NODE._replace(gpus=16)


def test_an_exchange_within_a_node_sends_all_but_its_own_share():
    within = exchange_seconds(8e9, 4, NODE, False)
    assert within == pytest.approx((8e9 * 3 / 4 / 100e9, 0))
    assert exchange_seconds(8e9, 4, NODES, True) == within  # no hierarchy in one node
    assert exchange_seconds(8e9, 1, NODE, False) == (0, 0)


def test_an_exchange_across_nodes_waits_for_the_network():
    assert exchange_seconds(16e9, 16, NODES, False) == pytest.approx((0, 16e9 * 8 / 16 / 10e9))
    two_hops = (16e9 * 7 / 8 / 100e9, 16e9 / 2 / 10e9)
    assert exchange_seconds(16e9, 16, NODES, True) == pytest.approx(two_hops)


@pytest.mark.parametrize("hierarchical", [False, True])
def test_ranks_that_share_network_cards_share_their_bandwidth(hierarchical):
    one_each = exchange_seconds(16e9, 16, NODES, hierarchical).across
    for cards, slower in ((8, 1), (4, 2), (1, 8), (16, 1)):
        found = exchange_seconds(16e9, 16, NODES._replace(nics=cards), hierarchical)
        assert found.across == pytest.approx(slower * one_each)


def test_of_two_hosts_of_two_ranks_half_of_all_rows_pass_the_one_card_of_each():
    hosts = Machine(4, 2, 1e12, 1e12, nvlink=1e9, network=12.5e6, latency=1e-3, nics=1)
    leaves = 2 * 1e6 * 2 / 4  # both ranks send half of their megabyte to the other host
    assert exchange_seconds(1e6, 4, hosts, False).across == pytest.approx(leaves / 12.5e6 + 3e-3)
    assert exchange_seconds(1e6, 2, hosts, False) == pytest.approx((0.5e6 / 1e9 + 1e-3, 0))
    alone = hosts._replace(per_node=1)
    assert exchange_seconds(1e6, 4, alone, False).across == pytest.approx(0.75e6 / 12.5e6 + 3e-3)


def test_a_group_that_no_node_holds_crosses_though_it_is_small():
    """Groups of 3 ranks on nodes of 8: ranks 6, 7 and 8 are on two nodes."""
    machine = NODE._replace(gpus=24)
    assert not has_hierarchy(3, machine)
    # Both partners of rank 8 are on the other node: two thirds of its rows leave, by its own card.
    assert exchange_seconds(3e9, 3, machine, False).across == pytest.approx(2e9 / 10e9)
    assert exchange_seconds(3e9, 3, machine, True) == exchange_seconds(3e9, 3, machine, False)
    # Rank 15 is the last of the second node, with its partners on the third: one card sends both's.
    one = exchange_seconds(3e9, 3, machine._replace(nics=1), False).across
    assert one == pytest.approx(4e9 / 10e9)


def test_hierarchy_pays_where_messages_are_many_and_small():
    slow = Machine(64, 8, 1e12, 1e12, 100e9, 10e9, latency=1e-4)
    bound = hierarchy_pays_below(64, slow)
    assert bound == pytest.approx(8 * 7 * 1e-4 * 100e9)
    for size, pays in ((0.99 * bound, True), (1.01 * bound, False)):
        flat, layered = (exchange_seconds(size, 64, slow, kind).total for kind in (False, True))
        assert (layered < flat) is pays


@pytest.mark.parametrize(
    ("change", "bound"),
    [
        ({"latency": 0.0}, 0.0),  # only the second pass over NVLink is left of the difference
        ({"gpus": 8}, 0.0),  # one node
        ({"per_node": 1}, 0.0),  # one rank a node: both are the same
        ({"gpus": 16, "per_node": 2, "nvlink": math.inf}, math.inf),
    ],
)
def test_hierarchy_never_pays_or_always(change, bound):
    machine = NODES._replace(**{"latency": 1e-5, **change})
    assert hierarchy_pays_below(machine.gpus, machine) == bound


def test_a_ring_moves_twice_the_others_shares():
    four = ring_seconds(8e9, NODE._replace(gpus=4), 2)
    assert four == pytest.approx((2 * 3 / 4 * 8e9 / 100e9, 0))
    assert ring_seconds(8e9, NODE._replace(gpus=1), 2) == (0, 0)
    assert ring_seconds(8e9, NODES, 1) == pytest.approx((0, 15 / 16 * 8e9 / 80e9))


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


@pytest.mark.parametrize(
    ("nics", "stride", "cards"),
    [
        (1, 1, 1),  # one ring, through the one card
        (1, 2, 1 / 2),  # two rings through it
        (1, 8, 1 / 8),
        (2, 1, 2),
        (2, 4, 1 / 2),
        (8, 1, 8),  # a card for each GPU, in other words
        (8, 2, 4),
        (16, 2, 4),  # more cards than GPUs help none
    ],
)
def test_rings_share_the_cards_that_a_node_has(nics, stride, cards):
    assert ring_bandwidth(NODES._replace(nics=nics), stride) == cards * 10e9


def test_a_ring_that_stays_within_its_node_takes_nothing_of_the_card_of_others():
    assert ring_bandwidth(NODE, 4) == 100e9
    assert ring_bandwidth(NODE._replace(nics=1), 4) == 100e9
    assert ring_bandwidth(NODES, 16) == 100e9  # one rank each: no ring at all
