"""The bytes that all-to-all really sends are those of the formula."""

import pytest
from torch import distributed as dist

from ds_moe_mtl.moe.layer import TaskMOELayer
from ds_moe_mtl.planner.traffic import all_to_all_bytes, remote_rows
from tests.support.launch import ROOT, run_ranks
from tests.support.steps import start_tiny
from tests.support.tiny import write_tiny

EXPERTS, HIDDEN, LAYERS, STEPS = 8, 32, 2, 3
CASES = {2: [(2, "fp32")], 4: [(2, "fp32"), (4, "bf16")]}
"""Ranks -> (ep_size, precision)."""


def sent_and_routed(folder: str, cases: list) -> list[dict]:
    """Return, for every case, what this rank sent in training and where its tokens went."""
    return [one_case(folder, *case) for case in cases]


def one_case(folder: str, ep_size: int, precision: str) -> dict:
    sections = {
        "moe": {"ep_size": ep_size, "num_experts": EXPERTS},
        "train": {"steps": STEPS, "batch_size": 13, "precision": precision},
    }
    run = start_tiny(folder, sections, ROOT / "ds_configs/deepspeed/zero1.json")
    network, sent, counts = run.engine.module, [], []
    exchange = dist.all_to_all_single

    def counted(output, rows, output_sizes=None, input_sizes=None, group=None, async_op=False):
        if network.training:
            ranks = dist.get_world_size(group)
            sizes = input_sizes or [len(rows) // ranks] * ranks
            others = sum(sizes) - sizes[dist.get_rank(group)]
            sent.append(others * rows[:1].numel() * rows.element_size())
        return exchange(output, rows, output_sizes, input_sizes, group, async_op)

    def note(layer, arguments, output):
        if network.training:
            counts.append(layer.exp_counts.tolist())

    for module in network.modules():
        if isinstance(module, TaskMOELayer):
            module.register_forward_hook(note)
    dist.all_to_all_single = counted
    try:
        run.go()
    finally:
        dist.all_to_all_single = exchange
    return {"sent": sent, "counts": counts}


@pytest.fixture(scope="module", params=CASES)
def found(request, tmp_path_factory) -> tuple[int, list]:
    folder = str(write_tiny(tmp_path_factory.mktemp("traffic")))
    ranks = request.param
    return ranks, run_ranks(sent_and_routed, folder, CASES[ranks], ranks=ranks, time_limit=240)


def test_every_rank_sends_the_bytes_of_the_formula(found):
    ranks, results = found
    for case, (ep_size, precision) in enumerate(CASES[ranks]):
        for rank in range(ranks):
            of_rank = [result[case] for result in results]
            expected = planned(of_rank, rank, ep_size, {"fp32": 4, "bf16": 2}[precision])
            assert sum(of_rank[rank]["sent"]) == expected > 0
            assert len(of_rank[rank]["sent"]) == 5 * LAYERS * STEPS


def planned(of_rank: list[dict], rank: int, ep_size: int, element_bytes: int) -> float:
    """Return the formula's bytes for one rank, from the counts that all ranks' layers had."""
    place, first = rank % ep_size, rank - rank % ep_size
    rows_out = [remote_rows(counts, place, ep_size) for counts in of_rank[rank]["counts"]]
    others = [of_rank[r]["counts"] for r in range(first, first + ep_size) if r != rank]
    local = slice(place * EXPERTS // ep_size, (place + 1) * EXPERTS // ep_size)
    rows_in = [sum(sum(c[local]) for c in calls) for calls in zip(*others, strict=True)]
    assert len(rows_out) == len(rows_in) == LAYERS * STEPS
    return all_to_all_bytes(rows_out, rows_in, HIDDEN, element_bytes, EXPERTS, ep_size)
