"""Commands as processes of their own: several at a time, each after what it needs.

A job's command is one that goes on where it was, so that the same list of jobs can be run again.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ds_moe_mtl.config import UserError
from ds_moe_mtl.ranks.statuses import STOPPED
from ds_moe_mtl.ranks.stop import StopRequest

# What a launcher has left in our environment is about us, not about the processes we start.
_RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
Say = Callable[[str], None]


@dataclass(frozen=True)
class Job:
    """One command's arguments. needs: names of jobs that end before it starts."""

    name: str
    arguments: tuple[str, ...]
    needs: tuple[str, ...] = ()


@dataclass
class _Running:
    job: Job
    slot: int
    log: Path
    process: subprocess.Popen


def run_jobs(
    jobs: Sequence[Job], command: Sequence[str], at_once: int, logs: Path, say: Say
) -> int:
    """Run every job, `at_once` at a time, and return 0, or 75 when asked to stop.

    command: the words before a job's arguments. logs: the folder of what each prints. A need that
    is no job of the list is taken for met. Where there are several GPUs, jobs are dealt to them. A
    signal is passed on to the running jobs, which make a checkpoint. Raises UserError with the last
    line of a job that fails; the others are stopped.
    """
    logs.mkdir(parents=True, exist_ok=True)
    stop = StopRequest(say)
    waiting, running = list(jobs), []
    names = {job.name for job in jobs}
    unmet = set(names)
    began = time.monotonic()
    try:
        while (waiting or running) and not stop.signal_name:
            for ended in [one for one in running if one.process.poll() is not None]:
                if stop.signal_name:
                    break  # Ctrl-C reaches the jobs as well: what they end with is no failure
                running.remove(ended)
                unmet.discard(ended.job.name)
                if ended.process.returncode == STOPPED:
                    say(f"{ended.job.name} was stopped; start it again to continue")
                    return STOPPED
                _check(ended)
                minutes = (time.monotonic() - began) / 60
                say(f"{minutes:6.1f} min: {ended.job.name} done, {len(unmet)} of {len(jobs)} left")
            slots = sorted(set(range(at_once)) - {one.slot for one in running})
            ready = [job for job in waiting if not unmet.intersection(job.needs)]
            for job, slot in zip(ready, slots, strict=False):
                waiting.remove(job)
                running.append(_start(job, command, slot, at_once, logs))
            time.sleep(0.1)
    finally:
        for one in running:
            if one.process.poll() is None:
                one.process.send_signal(signal.SIGTERM)  # a run makes a checkpoint
        for one in running:
            one.process.wait()
    return STOPPED if stop.signal_name else 0


def job_environment(slot: int, at_once: int) -> dict[str, str]:
    """Return the environment of a job in one of `at_once` slots: its share of cores and GPUs."""
    environment = {key: value for key, value in os.environ.items() if key not in _RANKS}
    threads = max(1, len(os.sched_getaffinity(0)) // at_once)
    environment.setdefault("OMP_NUM_THREADS", str(threads))
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count() if named is None else 0
    devices = [name for name in named.split(",") if name] if named else list(map(str, range(count)))
    if len(devices) > 1:
        environment["CUDA_VISIBLE_DEVICES"] = devices[slot % len(devices)]
    return environment


def _check(ended: _Running) -> None:
    status = ended.process.returncode
    if status:
        lines = ended.log.read_text().strip().splitlines() or ["(nothing printed)"]
        raise UserError(f"{ended.job.name} ended with status {status}: {lines[-1]} ({ended.log})")


def _start(job: Job, command: Sequence[str], slot: int, at_once: int, logs: Path) -> _Running:
    name = "".join(letter if letter.isalnum() or letter in ".-%" else "_" for letter in job.name)
    path = logs / f"{name}.log"
    with path.open("a") as log:
        process = subprocess.Popen(
            [*command, *job.arguments],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=job_environment(slot, at_once),
        )
    return _Running(job, slot, path, process)
