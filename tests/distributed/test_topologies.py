"""The same run on 1, 2 and 4 ranks, experts on 1, 2 or 4 of them, ZeRO 0, 1, 2: one result."""

import pytest

from tests.support.launch import ROOT, run_ranks
from tests.support.steps import train_tiny
from tests.support.tiny import write_tiny

CASES = {
    1: [(1, "zero0", 1), (1, "zero1", 1), (1, "zero1", 2)],
    2: [(1, "zero0", 1), (1, "zero1", 1), (2, "zero1", 1), (2, "zero2", 1), (2, "zero1", 2)],
    4: [(1, "zero1", 1), (2, "zero1", 1), (4, "zero1", 1), (4, "zero2", 1)],
}
"""Ranks -> (ep_size, ZeRO, accumulation)."""

MARGIN = 1e-4
"""Least gap between two experts' logits: float32 rounding (1e-6 here) then flips no token."""


def all_cases(folder: str, cases: list) -> list[dict]:
    """Return every case's run; called on each rank."""
    results = []
    for ep_size, zero, accumulation in cases:
        sections = {
            "moe": {"ep_size": ep_size},
            "train": {"steps": 3, "accumulation": accumulation},
            "mixture": {"batching": "sub_batches", "sub_batches": 3},
        }
        results.append(train_tiny(folder, sections, ROOT / f"ds_configs/deepspeed/{zero}.json"))
    return results


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = write_tiny(tmp_path_factory.mktemp("topologies"))
    found = {}
    for ranks, cases in CASES.items():
        results = run_ranks(all_cases, str(folder), cases, ranks=ranks, time_limit=240)
        for number, case in enumerate(cases):
            found[(ranks, *case)] = [of_rank[number] for of_rank in results]
    return found


REFERENCE, *OTHERS = [(ranks, *case) for ranks, cases in CASES.items() for case in cases]


@pytest.mark.parametrize("case", OTHERS, ids=lambda c: f"world{c[0]}-ep{c[1]}-{c[2]}-acc{c[3]}")
def test_losses_norms_and_weights_do_not_depend_on_the_topology(runs, case):
    first = runs[REFERENCE]
    assert min(result["margin"] for result in first) > MARGIN
    expected, found = first[0], runs[case][0]
    for want, got in zip(expected["rows"], found["rows"], strict=True):
        for key in ("loss", "grad_norm", *(k for k in want if k.startswith(("loss/", "dev/")))):
            assert got[key] == pytest.approx(want[key], rel=2e-5, abs=1e-6), (want["step"], key)
    for name, tensor in expected["state"].items():
        # Adam's first steps move each weight by about lr = 1e-3, whatever its gradient's size:
        # where a gradient is rounding alone, so is its sign. Hence the mean, not the largest.
        error = (found["state"][name] - tensor).abs().mean()
        assert error < 2e-5, (name, float(error))
