"""The cost model where its answer is known by hand."""

import pytest

from ds_moe_mtl.planner.compute import Batch
from ds_moe_mtl.planner.cost import Work, all_to_all_seconds, sent_bytes, step_cost
from ds_moe_mtl.planner.flops import count_flops
from ds_moe_mtl.planner.levers import Levers
from ds_moe_mtl.planner.memory import Weights, count_weights
from ds_moe_mtl.planner.network import Machine
from ds_moe_mtl.planner.shape import SIZES

NODE = Machine(8, 8, flops=1e12, memory=1e12, nvlink=100e9, network=10e9, latency=0.0, share=1.0)
LARGE = SIZES["bert_large"]


def work_of(tokens: float, shape=LARGE, precision: str = "bf16", **more) -> Work:
    """Return a step of an MT-TaG model with 4 experts, its sequences of 128 tokens."""
    batch = Batch(tokens, tokens / 128, tokens * 128)
    flops = count_flops(shape, 128, 4, 8)
    work = Work(shape, flops, batch, count_weights(shape, 4, 8), precision, 4, piece=1 << 25)
    return work._replace(**more)


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
    assert all_to_all_seconds(work, 2, machine, False) == pytest.approx((expected, 0))
    assert all_to_all_seconds(work, 1, machine, False) == (0, 0)


@pytest.mark.parametrize(
    ("gpus", "ep_size", "hierarchical", "ring_crosses", "exchange_crosses"),
    [
        (8, 4, False, False, 0.0),
        (16, 1, False, True, 0.0),  # no exchange
        (16, 4, False, True, 0.0),  # experts within a node
        (16, 16, False, True, 1.0),
        (16, 16, True, True, None),  # one hop of two
    ],
)
def test_what_crosses_nodes_is_told_apart(
    gpus, ep_size, hierarchical, ring_crosses, exchange_crosses
):
    work = work_of(4096)._replace(num_experts=16)
    cost = step_cost(work, NODE._replace(gpus=gpus), 1, ep_size, hierarchical)
    assert cost.reduction_network == (cost.reduction if ring_crosses else 0)
    assert cost.network == cost.reduction_network + cost.all_to_all_network
    assert cost.total == cost.compute + cost.reduction + cost.all_to_all + cost.optimizer
    if exchange_crosses is not None:
        assert cost.all_to_all_network == exchange_crosses * cost.all_to_all
        return
    rows, counts = 4096 * 1024 * 2, 4 * 16  # bytes; all four transfers of rows, and the counts
    assert cost.all_to_all_network == pytest.approx(24 * (4 * rows + counts) / 2 / 10e9)
    within = cost.all_to_all - cost.all_to_all_network
    assert within == pytest.approx(24 * (4 * rows + counts) * 7 / 8 / 100e9)


def test_the_optimizer_moves_what_its_update_moves():
    work = work_of(1000, weights=Weights(800, 160))
    assert step_cost(work, NODE, 1, 2).optimizer == pytest.approx((20 + 100) * 58 / 1e12)
    assert step_cost(work, NODE, 0, 2).optimizer == pytest.approx((160 + 400) * 40 / 1e12)


def test_nothing_is_sent_by_one_rank():
    assert sent_bytes(1000, 6, 384, "bf16", 4, 1) == 0
    cost = step_cost(work_of(100, precision="fp32"), NODE._replace(gpus=1, per_node=1), 1, 1)
    assert cost.reduction == cost.all_to_all == 0 < cost.compute
