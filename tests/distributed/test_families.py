"""Every family trains on 1 rank as on 2, with its experts on one of them or on both."""

import pytest

from tests.support.families import write_family
from tests.support.launch import ROOT, run_ranks
from tests.support.steps import assert_same_training, train_tiny

SHOWN = ("bert", "deberta", "eurobert", "modernbert")
"""One for each attention and FFN; tests/unit/models/families has all."""

CASES = {1: [(1, "zero0")], 2: [(1, "zero2"), (2, "zero1")]}
"""Ranks -> (ep_size, ZeRO)."""

MARGIN = 2e-5
"""Least gap between two experts' logits; float32 rounding is 1e-6 here."""


def all_cases(folders: dict, cases: list) -> dict:
    """Return every case's run for every family; called on each rank."""
    results = {}
    for kind, folder in folders.items():
        for number, (ep_size, zero) in enumerate(cases):
            sections = {
                "moe": {"ep_size": ep_size},
                "train": {"steps": 2, "activation_checkpointing": zero == "zero2"},
            }
            deepspeed = ROOT / f"ds_configs/deepspeed/{zero}.json"
            results[kind, number] = train_tiny(folder, sections, deepspeed)
    return results


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folders = {kind: str(write_family(tmp_path_factory.mktemp(kind), kind)) for kind in SHOWN}
    found = {}
    for ranks, cases in CASES.items():
        results = run_ranks(all_cases, folders, cases, ranks=ranks, time_limit=240)
        for (kind, number), run in results[0].items():
            found[(kind, ranks, *cases[number])] = run
    return found


OTHERS = [(2, *case) for case in CASES[2]]


@pytest.mark.parametrize("kind", SHOWN)
@pytest.mark.parametrize("case", OTHERS, ids=lambda case: f"world{case[0]}-ep{case[1]}-{case[2]}")
def test_losses_norms_and_weights_are_those_of_one_rank(runs, kind, case):
    one = runs[(kind, 1, *CASES[1][0])]
    assert MARGIN < one["margin"] < float("inf")
    assert_same_training(runs[(kind, *case)], one)
