"""A request to stop that comes in a dev evaluation: obeyed within a batch, and nothing is lost."""

import json
import os
import signal
from pathlib import Path

import pytest
from torch import distributed as dist

from ds_moe_mtl.engine.checkpoints import list_checkpoints
from ds_moe_mtl.training.hooks import Hook
from tests.support.ends import differences, rows_of
from tests.support.launch import ROOT, run_ranks
from tests.support.tiny import tiny_config, write_tiny

STEPS, EVERY, BATCHES = 6, 2, 3  # batches of an evaluation: one for each task
STOPPED_RANK = 1
CASES = {"selected": ("dev_score", [4, 6]), "last": ("last", [6])}
"""Which model is kept, and the steps in whose evaluations the run is stopped, one at a start."""


class SignalInDev(Hook):
    """Sends one rank SIGTERM in the first dev batch after a step; counts the batches there."""

    def __init__(self, run, step: int, batches: list[int]) -> None:
        self.next, self.step, self.batches = run.first_step, step, batches
        batches.append(0)
        run.engine.module.register_forward_hook(self._called)

    def before_step(self, state) -> None:
        self.next = state.step + 1

    def _called(self, network, *_) -> None:
        if not network.training and self.next == self.step:
            self.batches[-1] += 1
            if dist.get_rank() == STOPPED_RANK and self.batches[-1] == 1:
                signal.raise_signal(signal.SIGTERM)


def stop_in_dev(folder: str, name: str, select: str, steps: list[int]) -> dict:
    """Return the statuses of a run's starts, the batches of the stopped evaluations, the rows."""
    from ds_moe_mtl.ranks.rendezvous import rendezvous
    from ds_moe_mtl.training.train import train

    run = Path(folder) / name
    settings = {"steps": STEPS, "eval_every": EVERY, "select": select, "lr": 0.02}
    config = tiny_config(
        Path(folder),
        run={"dir": str(run)},
        train=settings,
        deepspeed=str(ROOT / "ds_configs/deepspeed/zero1.json"),
    )
    ranks, statuses, batches, left = rendezvous(os.environ), [], [], []
    for step in [*steps, None]:
        hooks = [lambda run, step=step: SignalInDev(run, step, batches)] if step else []
        statuses.append(train(config, ranks, lambda line: None, last=False, hooks=hooks))
        newest = list_checkpoints(run / "checkpoints")[0].name
        left.append((newest, [row["step"] for row in rows_of(run)]))
        dist.barrier()
    return {"statuses": statuses, "batches": batches, "left": left}


def run_all(folder: str) -> dict:
    """Return each case's stopped run; beside it stands one that was never stopped."""
    found = {}
    for name, (select, steps) in CASES.items():
        stop_in_dev(folder, f"{name}_whole", select, [])
        found[name] = stop_in_dev(folder, name, select, steps)
    return found


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> tuple[Path, list[dict]]:
    folder = write_tiny(tmp_path_factory.mktemp("stopped"))
    return folder, run_ranks(run_all, str(folder), ranks=2, time_limit=300)


@pytest.mark.parametrize("case", CASES)
def test_all_ranks_leave_the_evaluation_after_one_batch_with_a_checkpoint(stopped, case):
    steps = CASES[case][1]
    for rank in stopped[1]:
        assert rank[case]["statuses"] == [75] * len(steps) + [0]
        assert rank[case]["batches"] == [1] * len(steps) and BATCHES > 1
        for step, (newest, written) in zip(steps, rank[case]["left"], strict=False):
            assert newest == f"step_{step:08d}"
            assert written == list(range(1, step))  # that step's row waits for its scores


@pytest.mark.parametrize("case", CASES)
def test_the_next_start_makes_the_evaluation_and_ends_as_if_never_stopped(stopped, case):
    folder, _ = stopped
    assert differences(folder / case, folder / f"{case}_whole") == []
    assert not (folder / case / "owed.json").exists()
    results = json.loads((folder / case / "results.json").read_text())
    scored = [row["step"] for row in rows_of(folder / case) if "dev/same" in row]
    assert scored == [2, 4, 6] and results["steps"] == STEPS
