"""ZeRO's step in one pass against DeepSpeed's own: the same gradients, the same weights after."""

import pytest
import torch

from tests.support.launch import run_ranks
from tests.support.tiny import write_tiny
from tests.support.zero_steps import both_updates

CASES = [
    {"precision": "bf16", "zero": "zero1", "clip": 0.0},
    {"precision": "bf16", "zero": "zero2", "clip": 0.0, "accumulation": 2},
    {"precision": "bf16", "zero": "zero2", "clip": 0.0, "ep_size": 2},
    {"precision": "fp32", "zero": "zero1", "clip": 0.0, "accumulation": 2},
    {"precision": "fp32", "zero": "zero2", "clip": 0.0},
    {"precision": "bf16", "zero": "zero1", "clip": 0.05},
    {"precision": "fp32", "zero": "zero1", "clip": 0.05, "ep_size": 2},
    {"precision": "bf16", "zero": "zero1", "clip": 0.0, "optimizer": "Adam"},
]
"""Where not given: ep_size and accumulation 1, AdamW. ep_size is at most the ranks."""

RUNS = [(ranks, case) for ranks in (1, 2) for case in CASES if case.get("ep_size", 1) <= ranks]


def run_name(run: tuple[int, dict]) -> str:
    """Return a run as pytest shows it."""
    ranks, case = run
    return f"world{ranks}-" + "-".join(str(value) for value in case.values())


@pytest.fixture(scope="module")
def updates(tmp_path_factory):
    folder = write_tiny(tmp_path_factory.mktemp("zero_update"))
    found = []
    for ranks in (1, 2):
        cases = [case for of, case in RUNS if of == ranks]
        results = run_ranks(both_updates, str(folder), cases, ranks=ranks, time_limit=240)
        found += zip(*results, strict=True)
    return found


@pytest.mark.parametrize("number", range(len(RUNS)), ids=[run_name(run) for run in RUNS])
def test_the_step_is_deepspeeds(updates, number):
    for found in updates[number]:
        assert found["replaced"] and found["pieces"] > 2
        norms = torch.tensor(found["norms"]), torch.tensor(found["their_norms"])
        torch.testing.assert_close(*norms, rtol=1e-6, atol=0)
        assert found["moved"]
        clips = RUNS[number][1]["clip"] > 0
        assert not clips or min(found["norms"]) > RUNS[number][1]["clip"]
        for ours, theirs in zip(found["tensors"], found["their_tensors"], strict=True):
            if clips:  # by a norm that differs in its last bits
                torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
            else:
                assert torch.equal(ours, theirs)
