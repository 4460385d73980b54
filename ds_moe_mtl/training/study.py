"""The second paper's comparison at small scale, as processes that can be stopped and resumed.

OUTPUT/vectors.npz                 text vectors of all tasks
OUTPUT/seed<k>/<system>/           an upstream run
OUTPUT/seed<k>/<system>.jsonl      few-shot tuning of the unseen tasks from it
OUTPUT/seed<k>/direct.jsonl        few-shot tuning of the encoder alone
OUTPUT/logs/                       what each process printed

A finished run or tuned task is never done again, so the same command goes on where it was.
"""

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ds_moe_mtl.config import RunConfig, UserError, load_config
from ds_moe_mtl.tasks.text2text import SEEDS
from ds_moe_mtl.training.tune import DIRECT

STEPS = 40
"""Our choice for a study of minutes; the paper tunes for 1,000 steps."""

TUNE_BATCH = 8
SYSTEMS = ("vanilla", "average", "random_task", "learned")
FURTHER = ("random_instance",)
STAGE_1 = "stage1"
_COMMAND = (
    "import os, sys; from ds_moe_mtl.cli import main; status = main(sys.argv[1:]); "
    "sys.stdout.flush(); sys.stderr.flush(); os._exit(status)"
)
Say = Callable[[str], None]


@dataclass(frozen=True)
class Layout:
    """Where a study's parts lie."""

    folder: Path
    systems: tuple[str, ...]
    seeds: int

    def run(self, system: str, seed: int) -> Path:
        return self.folder / f"seed{seed}" / system

    def tuned(self, system: str, seed: int) -> Path:
        return self.folder / f"seed{seed}" / f"{system}.jsonl"

    @property
    def vectors(self) -> Path:
        return self.folder / "vectors.npz"


@dataclass
class _Job:
    name: str
    arguments: list[str]
    needs: tuple[str, ...] = ()
    process: subprocess.Popen | None = None


def run_study(options, say: Say) -> Layout:
    """Do what is left of a study, options.jobs processes at a time, and return its layout.

    Raises UserError for a mistake, and where a process fails (its last line is told).
    """
    known = (*SYSTEMS, *FURTHER)
    for system in options.systems:
        if system not in known:
            raise UserError(f"--systems: {system!r}; allowed: {', '.join(known)}")
    if not 1 <= options.seeds <= len(SEEDS):
        raise UserError(f"--seeds: {options.seeds}; allowed: 1 to {len(SEEDS)}")
    if options.jobs < 1 or options.tune_steps < 1 or options.test_limit < 1:
        raise UserError("--jobs, --tune-steps, --test-limit: allowed: at least 1")
    config = load_config(options.config, options.overrides)
    if config.model.kind != "task_moe" or config.router.route != "learned":
        raise UserError(
            f"{options.config}: model.kind = {config.model.kind}, router.route = "
            f"{config.router.route}; allowed: stage 1 of a learned router (task_moe, learned)"
        )
    if config.train.steps is None:
        raise UserError(f"{options.config}: train.steps is unset; a study needs a number of steps")
    layout = Layout(options.output.absolute(), tuple(options.systems), options.seeds)
    layout.folder.mkdir(parents=True, exist_ok=True)
    _run_all(_jobs(config, options, layout), options.jobs, layout.folder / "logs", say)
    return layout


def system_overrides(system: str, config: RunConfig, layout: Layout, seed: int) -> list[str]:
    """Return what makes the YAML of stage 1 one of the study's systems.

    The schedules of the public code span 30,000 and 60,000 steps; here they are stretched to the
    run: exp(-9) over stage 1, exp(-6) from 300 to 1 over stage 2.
    """
    steps = config.train.steps
    own = {
        "vanilla": ["model.kind=mt_dense"],
        "average": ["router.route=average"],
        "random_task": ["router.route=random_task"],
        "random_instance": ["router.route=random_instance"],
        STAGE_1: [f"router.temperature_decay={9 / steps}"],
        "learned": [
            f"router.routes_from={layout.run(STAGE_1, seed)}",
            "router.selection=softmax",
            "router.temperature=300",
            "router.temperature_min=1",
            f"router.temperature_decay={math.log(300) / (0.95 * steps)}",
        ],
    }[system]
    if system in (STAGE_1, "learned"):
        own.append(f"router.vectors={layout.vectors}")
    return [*own, f"run.seed={seed}", f"run.dir={layout.run(system, seed)}"]


def _jobs(config: RunConfig, options, layout: Layout) -> list[_Job]:
    jobs = []
    learns = "learned" in layout.systems
    if learns:
        arguments = ["crossfit", "vectors", options.config, *options.overrides]
        if not layout.vectors.exists():
            jobs.append(_Job("vectors", [*arguments, "--output", str(layout.vectors)]))
    for seed in range(layout.seeds):
        direct = f"direct, seed {seed}"
        jobs.append(_Job(direct, _tune(DIRECT, layout.tuned(DIRECT, seed), config, options, seed)))
        trained = [*([STAGE_1] if learns else []), *layout.systems]
        for system in trained:
            needs = {STAGE_1: ("vectors",), "learned": (f"{STAGE_1}, seed {seed}",)}
            name = f"{system}, seed {seed}"
            overrides = [*options.overrides, *system_overrides(system, config, layout, seed)]
            jobs.append(_Job(name, ["train", options.config, *overrides], needs.get(system, ())))
            if system != STAGE_1:
                tuned = layout.tuned(system, seed)
                arguments = _tune(str(layout.run(system, seed)), tuned, config, options, seed)
                jobs.append(_Job(f"tuning from {name}", arguments, (name,)))
    return jobs


def _tune(upstream: str, output: Path, config: RunConfig, options, seed: int) -> list[str]:
    values = {
        "--output": output,
        "--encoder": config.model.encoder,
        "--sample": SEEDS[seed],
        "--seed": seed,
        "--routes": options.routes,
        "--steps": options.tune_steps,
        "--rates": options.tune_lr,
        "--batch-sizes": TUNE_BATCH,
        "--clip": 1.0,
        "--precision": "bf16" if config.train.precision == "bf16" else "fp32",
        "--test-limit": options.test_limit,
        "--max-length": config.train.max_length,
        "--data-root": config.data.root,
        "--cache": config.data.cache,
    }
    given = [part for key, value in values.items() if value is not None for part in (key, value)]
    return ["crossfit", "tune", upstream, *map(str, given)]


def _run_all(jobs: list[_Job], at_once: int, logs: Path, say: Say) -> None:
    """Run every job after those it needs. Raises UserError with a failed one's last line."""
    logs.mkdir(parents=True, exist_ok=True)
    waiting, running = list(jobs), []
    open_names = {job.name for job in jobs}
    began = time.monotonic()
    try:
        while waiting or running:
            for job in [job for job in running if job.process.poll() is not None]:
                running.remove(job)
                open_names.discard(job.name)
                log = _log_of(job, logs)
                if job.process.returncode:
                    lines = log.read_text().strip().splitlines() or ["(nothing printed)"]
                    status = job.process.returncode
                    raise UserError(f"{job.name} ended with status {status}: {lines[-1]} ({log})")
                minutes = (time.monotonic() - began) / 60
                say(f"{minutes:6.1f} min: {job.name} done, {len(open_names)} of {len(jobs)} left")
            for job in list(waiting):
                if len(running) < at_once and not open_names.intersection(job.needs):
                    waiting.remove(job)
                    running.append(job)
                    _start(job, at_once, logs)
            time.sleep(0.2)
    finally:
        for job in running:
            if job.process.poll() is None:
                job.process.send_signal(signal.SIGTERM)  # a run makes a checkpoint
        for job in running:
            job.process.wait()


def _start(job: _Job, at_once: int, logs: Path) -> None:
    threads = max(1, len(os.sched_getaffinity(0)) // at_once)
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    with _log_of(job, logs).open("a") as log:
        job.process = subprocess.Popen(
            [sys.executable, "-c", _COMMAND, *job.arguments],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
        )


def _log_of(job: _Job, logs: Path) -> Path:
    return logs / f"{job.name.replace(', ', '_').replace(' ', '_')}.log"
