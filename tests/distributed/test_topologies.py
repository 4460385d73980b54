"""The same run on 1, 2 and 4 ranks, experts on 1, 2 or 4 of them, ZeRO 0, 1, 2: one result."""

import pytest

from tests.support.launch import ROOT, run_ranks
from tests.support.steps import MARGIN, assert_same_training, train_tiny
from tests.support.tiny import write_tiny

FREE, GENERATED, LEVERS = "free", "generated", "levers"
FORMS = {
    FREE: {},
    GENERATED: {"gate_embedding": 2},
    LEVERS: {"shared_share": 0.5, "layers": "last_half", "route_by": "sequence"},
}
CASES = {
    1: [
        *((1, "zero0", 1, FREE), (1, "zero1", 1, FREE), (1, "zero1", 2, FREE)),
        (1, "zero0", 1, GENERATED),
        (1, "zero0", 1, LEVERS),
    ],
    2: [
        *((1, "zero0", 1, FREE), (1, "zero1", 1, FREE), (2, "zero1", 1, FREE)),
        *((2, "zero2", 1, FREE), (2, "zero1", 2, FREE)),
        (2, "zero1", 1, GENERATED),
        (2, "zero1", 1, LEVERS),
    ],
    4: [
        *((1, "zero1", 1, FREE), (2, "zero1", 1, FREE), (4, "zero1", 1, FREE)),
        (4, "zero2", 1, FREE),
    ],
}
"""Ranks -> (ep_size, ZeRO, accumulation, form of the sparse layers)."""


def all_cases(folder: str, cases: list) -> list[dict]:
    """Return every case's run; called on each rank."""
    results = []
    for ep_size, zero, accumulation, form in cases:
        sections = {
            "moe": {"ep_size": ep_size, **FORMS[form]},
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


ALL = [(ranks, *case) for ranks, cases in CASES.items() for case in cases]
REFERENCES = {form: (1, 1, "zero0", 1, form) for form in FORMS}
OTHERS = [case for case in ALL if case not in REFERENCES.values()]


def case_name(case: tuple) -> str:
    """Return a case as pytest shows it."""
    ranks, ep_size, zero, accumulation, form = case
    return f"world{ranks}-ep{ep_size}-{zero}-acc{accumulation}-{form}"


@pytest.mark.parametrize("case", OTHERS, ids=case_name)
def test_losses_norms_and_weights_do_not_depend_on_the_topology(runs, case):
    first = runs[REFERENCES[case[-1]]]
    assert MARGIN < min(result["margin"] for result in first) < float("inf")  # and it was measured
    assert_same_training(runs[case][0], first[0])
