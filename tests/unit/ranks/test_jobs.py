"""Jobs as processes: their order, their share of the machine, failures, and signals."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ds_moe_mtl.config import UserError
from ds_moe_mtl.ranks.jobs import Job, job_environment, run_jobs
from tests.support.paths import ROOT

PROGRAM = (sys.executable, "-m", "ds_moe_mtl")
LISTS = ("tasks",)  # the quickest command there is
FAILS = ("tasks", "--nonsense")


@pytest.fixture(autouse=True)
def handlers():
    """Put the signal handlers back that a run of jobs sets."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_job_starts_after_those_it_needs_and_each_has_a_log(tmp_path):
    lines = []
    jobs = [Job("last", LISTS, ("first", "gone")), Job("first", LISTS), Job("a / b", LISTS)]
    assert run_jobs(jobs, PROGRAM, 2, tmp_path / "logs", lines.append) == 0
    done = [line.split(": ")[1].split(" done")[0] for line in lines]
    assert sorted(done) == ["a / b", "first", "last"]
    assert done.index("first") < done.index("last") and "0 of 3 left" in lines[-1]
    logs = {path.name: path.read_text() for path in (tmp_path / "logs").iterdir()}
    assert sorted(logs) == ["a___b.log", "first.log", "last.log"]
    assert all("rte" in text for text in logs.values())


def test_a_job_that_fails_is_told_with_its_last_line_and_ends_the_rest(tmp_path):
    jobs = [Job("bad", FAILS), Job("never", LISTS, ("bad",))]
    with pytest.raises(UserError) as error:
        run_jobs(jobs, PROGRAM, 1, tmp_path, lambda line: None)
    assert str(error.value).startswith("bad ended with status 2: error: unrecognized arguments")
    assert str(tmp_path / "bad.log") in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "never.log").exists()


def test_jobs_share_cores_and_gpus_and_take_no_ranks_environment(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    monkeypatch.setenv("MASTER_PORT", "29500")
    cores = len(os.sched_getaffinity(0))
    found = [job_environment(slot, 3) for slot in range(3)]
    assert [one["CUDA_VISIBLE_DEVICES"] for one in found] == ["4", "7", "4"]
    assert {one["OMP_NUM_THREADS"] for one in found} == {str(max(1, cores // 3))}
    assert not any("MASTER_PORT" in one for one in found)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert job_environment(0, 3)["OMP_NUM_THREADS"] == "5"


def test_a_signal_is_passed_on_and_the_status_is_75(tmp_path):
    waits = tmp_path / "fifo"  # a command that reads it waits for somebody who writes
    os.mkfifo(waits)
    script = (
        "import sys; from pathlib import Path; from ds_moe_mtl.ranks.jobs import *; "
        "job = Job('waits', ('crossfit', 'tune', 'direct', '--output', sys.argv[1])); "
        "program = (sys.executable, '-m', 'ds_moe_mtl'); "
        "sys.exit(run_jobs([job], program, 1, Path(sys.argv[2]), print))"
    )
    command = [sys.executable, "-c", script, str(waits), str(tmp_path / "logs")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    parent = subprocess.Popen(command, cwd=ROOT, env=environment)
    try:
        writer = _open_when_read(waits, 120)
        parent.send_signal(signal.SIGTERM)
        assert parent.wait(60) == 75
        with pytest.raises(BrokenPipeError):
            os.write(writer, b"x")  # nobody reads any more
    finally:
        parent.kill()


def _open_when_read(fifo: Path, seconds: float) -> int:
    """Return the writing end of a FIFO, once there is a reader."""
    end = time.monotonic() + seconds
    while True:
        try:
            return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            assert time.monotonic() < end, "the job never started"
            time.sleep(0.2)
