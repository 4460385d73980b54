"""64 experts, and 64 tasks with a gate each, over two ranks: the result of one process."""

import json
from pathlib import Path

import pytest

from tests.support.launch import ROOT, run_ranks
from tests.support.steps import MARGIN, assert_same_training, train_tiny
from tests.support.tiny import write_tiny

MANY = 64
STEPS = 3


def many_tasks(folder: str) -> list[dict]:
    """Return 64 rows for `tasks`: the tiny data's three under other names, again and again."""
    tasks = json.loads(Path(folder, "tasks.json").read_text())
    return [{**tasks[i % len(tasks)], "name": f"task_{i:02}"} for i in range(MANY)]


def both_runs(folder: str, ep_size: int) -> list[dict]:
    """Return the run with 64 experts and the one with 64 tasks; called on each rank."""
    json_file = ROOT / "ds_configs/deepspeed/zero1.json"
    experts = {
        "moe": {"ep_size": ep_size, "num_experts": MANY},
        "train": {"steps": STEPS, "batch_size": 16},
    }
    tasks = {
        "run": {"seed": 4},  # one whose tokens keep the margin below
        "moe": {"ep_size": ep_size},
        "tasks": many_tasks(folder),
        "mixture": {"batching": "sub_batches", "sub_batches": 8},
        "train": {"steps": STEPS, "batch_size": 32, "limit_dev": 2},
    }
    return [train_tiny(folder, sections, json_file) for sections in (experts, tasks)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[int, list]:
    """Results by number of ranks."""
    folder = str(write_tiny(tmp_path_factory.mktemp("many")))
    return {
        ranks: run_ranks(both_runs, folder, ranks, ranks=ranks, time_limit=240) for ranks in (1, 2)
    }


@pytest.mark.parametrize(("which", "rows"), [(0, 3 * MANY), (1, 4 * MANY)])
def test_two_ranks_train_64_experts_and_64_gates_as_one_process_does(runs, which, rows):
    (alone,), (first, _) = runs[1], runs[2]
    alone, first = alone[which], first[which]
    assert MARGIN < alone["margin"] < float("inf")  # and it was measured
    assert_same_training(first, alone)
    gates = [tensor for name, tensor in alone["state"].items() if name.endswith("wg.weight")]
    assert len(gates) == 2 and all(len(gate) == rows for gate in gates)
