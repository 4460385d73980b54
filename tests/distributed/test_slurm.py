"""The sbatch scripts on a real two-node Slurm: every interruption ends in a finished run.

Skipped, with the reason printed, where Slurm cannot be had; DS_MOE_MTL_SLURM=0 leaves it out, and
DS_MOE_MTL_SLURM=all preempts a training too.
"""

import json
import os
import shutil
from pathlib import Path

import pytest
import yaml

from tests.support.launch import ROOT, launch
from tests.support.slurm.cluster import Cluster, SlurmUnavailable
from tests.support.tiny import tiny_config, write_tiny

SINGLE = ROOT / "launchers" / "slurm" / "single_node.sbatch"
MULTI = ROOT / "launchers" / "slurm" / "multi_node.sbatch"
needs_all = pytest.mark.skipif(
    os.environ.get("DS_MOE_MTL_SLURM") != "all",
    reason="a minute: DS_MOE_MTL_SLURM=all runs it",
)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    try:
        cluster = Cluster(tmp_path_factory.mktemp("slurm"))
    except SlurmUnavailable as reason:
        pytest.skip(str(reason))
    yield cluster
    cluster.down()


class Job:
    """A submitted job of two ranks that run stoppable.py as their train.py."""

    def __init__(
        self, cluster: Cluster, folder: Path, script: Path, steps: int, seconds: float, requeues=5
    ):
        self.cluster, self.run, self.steps = cluster, folder / "run", steps
        self.run.mkdir(exist_ok=True)
        shutil.copy(ROOT / "tests" / "support" / "stoppable.py", folder / "train.py")
        tasks = ["--ntasks-per-node=2"] if script == SINGLE else []
        ours = [f"--export=ALL,TRAIN=python {folder / 'train.py'},MOST_REQUEUES={requeues}"]
        words = [*tasks, *ours, script, self.run, str(steps), str(seconds)]
        self.id = cluster.submit(*words, cwd=folder)

    def starts(self) -> list[dict]:
        """Return what each rank of each start logged, in order of restart and rank."""
        log = self.run / "log.jsonl"
        lines = map(json.loads, log.read_text().splitlines() if log.exists() else [])
        return sorted(lines, key=lambda s: (int(s["SLURM_RESTART_COUNT"] or 0), s["rank"]))

    def wait_for_ranks(self) -> None:
        """Return once both ranks of the first start have their signal handlers."""
        self.cluster.wait_until(self.id, lambda: len(self.starts()) == 2)

    def assert_finished(self) -> None:
        """Wait for its end; every step must have been made once."""
        self.cluster.wait_for_state(self.id, "COMPLETED")
        result = json.loads((self.run / "results.json").read_text())
        assert result == {"step": self.steps, "sum": 2 * self.steps}


def test_ranks_of_two_nodes_meet_on_the_first(cluster, tmp_path):
    job = Job(cluster, tmp_path, MULTI, steps=3, seconds=0)
    job.assert_finished()
    first, second = job.starts()
    assert (first["launcher"], first["SLURMD_NODENAME"]) == ("srun", "node0")
    assert (second["LOCAL_RANK"], second["SLURMD_NODENAME"]) == ("0", "node1")
    assert {first["MASTER_ADDR"], second["MASTER_ADDR"]} == {"node0"}
    assert first["MASTER_PORT"] == second["MASTER_PORT"]
    assert sorted(p.name for p in (tmp_path / "logs").iterdir()) == [
        f"{job.id}-0.log",
        f"{job.id}-1.log",
    ]


def test_signalled_job_requeues_itself_and_goes_on(cluster, tmp_path):
    # What --signal=TERM@300 does five minutes before the time limit.
    job = Job(cluster, tmp_path, SINGLE, steps=20, seconds=0.2)
    job.wait_for_ranks()
    cluster.ask("scancel", "--signal=TERM", job.id)
    job.assert_finished()
    assert cluster.job(job.id)["Restarts"] == "1"
    assert [start["LOCAL_RANK"] for start in job.starts()] == ["0", "1", "0", "1"]
    assert {start["LOCAL_WORLD_SIZE"] for start in job.starts()} == {"2"}
    assert {start["MASTER_ADDR"] for start in job.starts()} == {"127.0.0.1"}
    assert job.starts()[-1]["start"]["step"] > 0


def test_a_job_that_was_requeued_often_enough_ends(cluster, tmp_path):
    job = Job(cluster, tmp_path, SINGLE, steps=200, seconds=0.2, requeues=0)
    job.wait_for_ranks()
    cluster.ask("scancel", "--signal=TERM", job.id)
    cluster.wait_for_state(job.id, "FAILED")
    assert cluster.job(job.id)["Restarts"] == "0"
    assert "requeued 0 times" in (tmp_path / f"slurm-{job.id}.log").read_text()


def test_cancelled_job_checkpoints_stays_cancelled_and_is_resumed_by_the_next(cluster, tmp_path):
    job = Job(cluster, tmp_path, SINGLE, steps=20, seconds=0.2)
    job.wait_for_ranks()
    cluster.ask("scancel", job.id)
    cluster.wait_for_state(job.id, "CANCELLED")
    cluster.wait_until(job.id, (job.run / "checkpoint.json").exists)
    stopped = json.loads((job.run / "checkpoint.json").read_text())["step"]
    next_job = Job(cluster, tmp_path, SINGLE, steps=40, seconds=0)
    next_job.assert_finished()
    assert next_job.starts()[-1]["start"]["step"] == stopped
    assert cluster.job(job.id)["Restarts"] == "0"


def lose_a_node(cluster, job: str, folder: Path) -> None:
    cluster.ask("scontrol", "update", "nodename=node1", "state=down", "reason=test")
    cluster.wait_for_state(job, "PENDING")


def preempt(cluster, job: str, folder: Path) -> None:
    words = ("--partition=urgent", "--nodes=2", "--exclusive", "--wrap=true")
    cluster.wait_for_state(cluster.submit(*words, cwd=folder), "COMPLETED")


@pytest.mark.parametrize("disturb", [lose_a_node, pytest.param(preempt, marks=needs_all)])
def test_a_disturbed_training_equals_the_run_that_never_was(cluster, tmp_path, disturb):
    steps = 100
    plain, interrupted = tmp_path / "plain", tmp_path / "interrupted"
    config = tiny_config(
        write_tiny(tmp_path), train={"steps": steps, "keep_checkpoints": 1}, moe={"ep_size": 2}
    ).model_dump(mode="json")
    yaml_file = tmp_path / "tiny.yaml"
    yaml_file.write_text(yaml.safe_dump(config))
    run = launch([ROOT / "train.py", yaml_file, f"run.dir={plain}"], 2, "fork")
    assert run.returncode == 0, run.text

    job = cluster.submit(MULTI, yaml_file, f"run.dir={interrupted}", cwd=tmp_path)

    def wait_for_new_steps() -> None:
        before = len(logged(interrupted))
        cluster.wait_until(job, lambda: len(logged(interrupted)) >= before + 3)

    wait_for_new_steps()
    disturb(cluster, job, tmp_path)
    cluster.wait_for_state(job, "COMPLETED")

    assert cluster.job(job)["Restarts"] == "1"
    assert [row["step"] for row in logged(interrupted)] == list(range(1, steps + 1))
    assert [row["loss"] for row in logged(interrupted)] == [row["loss"] for row in logged(plain)]
    results = [json.loads((run / "results.json").read_text()) for run in (plain, interrupted)]
    assert results[0]["tasks"] == results[1]["tasks"]


def logged(run: Path) -> list[dict]:
    """Return the whole lines of a run's metrics.jsonl."""
    file = run / "metrics.jsonl"
    text = file.read_text() if file.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
