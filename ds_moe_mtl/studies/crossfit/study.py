"""The second paper's comparison at small scale, as processes that can be stopped and resumed.

OUTPUT/vectors.npz                 text vectors of all tasks
OUTPUT/seed<k>/<system>/           an upstream run
OUTPUT/seed<k>/<system>.jsonl      few-shot tuning of the unseen tasks from it
OUTPUT/seed<k>/direct.jsonl        few-shot tuning of the encoder alone
OUTPUT/logs/                       what each process printed

A finished run or tuned task is never done again, so the same command goes on where it was.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ds_moe_mtl.config import RunConfig, UserError, load_config
from ds_moe_mtl.ranks.jobs import Job, run_jobs
from ds_moe_mtl.studies.crossfit.fewshot import ROUTES
from ds_moe_mtl.studies.crossfit.tune import DIRECT
from ds_moe_mtl.tasks.text2text import SEEDS

STEPS = 40
"""Our choice for a study of minutes; the paper tunes for 1,000 steps."""

TUNE_BATCH = 8
SYSTEMS = ("vanilla", "average", "random_task", "learned")
FURTHER = ("random_instance",)
STAGE_1 = "stage1"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Study:
    """What is compared.

    config: the YAML of stage 1 of the learned router; overrides: section.key=value for every
    system. output: the study's folder. jobs: processes at a time. routes: of unseen tasks, where
    learned. tune_steps, tune_lr, test_limit: of an unseen task's tuning; its best rate is scored.
    """

    config: str
    output: Path
    overrides: tuple[str, ...] = ()
    seeds: int = 3
    systems: tuple[str, ...] = SYSTEMS
    jobs: int = 1
    routes: str = "vector"
    tune_steps: int = STEPS
    tune_lr: tuple[float, ...] = (1e-4,)
    test_limit: int = 200


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


def run_study(study: Study, command: Sequence[str], say: Say) -> tuple[int, Layout]:
    """Do what is left of a study, study.jobs processes at a time; return (0 or 75, its layout).

    command: the words that start a process of this package, before its subcommand. Raises
    UserError for a mistake, and where a process fails (its last line is told).
    """
    config, layout = plan_study(study)
    layout.folder.mkdir(parents=True, exist_ok=True)
    jobs = study_jobs(config, study, layout)
    return run_jobs(jobs, command, study.jobs, layout.folder / "logs", say), layout


def plan_study(study: Study) -> tuple[RunConfig, Layout]:
    """Return the configuration of stage 1 and where the parts lie. Raises UserError: a mistake."""
    known = (*SYSTEMS, *FURTHER)
    for system in study.systems:
        if system not in known:
            raise UserError(f"--systems: {system!r}; allowed: {', '.join(known)}")
    if not 1 <= study.seeds <= len(SEEDS):
        raise UserError(f"--seeds: {study.seeds}; allowed: 1 to {len(SEEDS)}")
    if study.jobs < 1 or study.tune_steps < 1 or study.test_limit < 1:
        raise UserError("--jobs, --tune-steps, --test-limit: allowed: at least 1")
    if min(study.tune_lr) <= 0:
        raise UserError(f"--tune-lr: {min(study.tune_lr):g}; allowed: rates above 0")
    if study.routes not in ROUTES:
        raise UserError(f"--routes: {study.routes!r}; allowed: {', '.join(ROUTES)}")
    config = load_config(study.config, study.overrides)
    if config.model.kind != "task_moe" or config.router.route != "learned":
        raise UserError(
            f"{study.config}: model.kind = {config.model.kind}, router.route = "
            f"{config.router.route}; allowed: stage 1 of a learned router (task_moe, learned)"
        )
    if config.train.steps is None:
        raise UserError(f"{study.config}: train.steps is unset; a study needs a number of steps")
    return config, Layout(study.output.absolute(), study.systems, study.seeds)


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


def study_jobs(config: RunConfig, study: Study, layout: Layout) -> list[Job]:
    """Return the commands of a study, those that are done already included: they say so."""
    jobs = []
    learns = "learned" in layout.systems
    if learns and not layout.vectors.exists():
        arguments = ["crossfit", "vectors", study.config, *study.overrides]
        jobs.append(Job("vectors", (*arguments, "--output", str(layout.vectors))))
    for seed in range(layout.seeds):
        arguments = _tune(DIRECT, layout.tuned(DIRECT, seed), config, study, seed)
        jobs.append(Job(f"{DIRECT}, seed {seed}", arguments))
        trained = [*([STAGE_1] if learns else []), *layout.systems]
        for system in trained:
            needs = {STAGE_1: ("vectors",), "learned": (f"{STAGE_1}, seed {seed}",)}
            name = f"{system}, seed {seed}"
            overrides = [*study.overrides, *system_overrides(system, config, layout, seed)]
            each_once = {word.partition("=")[0]: word for word in overrides}
            command = ("train", study.config, *each_once.values())
            jobs.append(Job(name, command, needs.get(system, ())))
            if system != STAGE_1:
                upstream = str(layout.run(system, seed))
                arguments = _tune(upstream, layout.tuned(system, seed), config, study, seed)
                jobs.append(Job(f"tuning from {name}", arguments, (name,)))
    return jobs


def _tune(
    upstream: str, output: Path, config: RunConfig, study: Study, seed: int
) -> tuple[str, ...]:
    values = {
        "--output": [output],
        "--encoder": [config.model.encoder],
        "--sample": [SEEDS[seed]],
        "--seed": [seed],
        "--routes": [study.routes],
        "--steps": [study.tune_steps],
        "--rates": study.tune_lr,
        "--batch-sizes": [TUNE_BATCH],
        "--clip": [1.0],
        "--precision": ["bf16" if config.train.precision == "bf16" else "fp32"],
        "--test-limit": [study.test_limit],
        "--max-length": [config.train.max_length],
        "--data-root": [config.data.root],
        "--cache": [config.data.cache],
    }
    given = [part for key, items in values.items() if None not in items for part in (key, *items)]
    return ("crossfit", "tune", upstream, *map(str, given))
