"""A table of the paper as runs: mixtures first, then a fine-tuning for every cell.

<folder>/mixtures/<name>/                       run folders of stage one
<folder>/finetune/<model>/<task>[-..]/          fine-tunings: trials and a leaderboard

Tables of one budget share both, so that a mixture is trained once.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ds_moe_mtl.config import RunConfig, UserError, load_config
from ds_moe_mtl.config.files import read_json
from ds_moe_mtl.engine.engine import stop_process_group
from ds_moe_mtl.ranks.jobs import Job
from ds_moe_mtl.ranks.rendezvous import Ranks
from ds_moe_mtl.studies.finetune import EXPERIMENT, GATES, FineTuning, finetune, plan_trials
from ds_moe_mtl.studies.points import point_name
from ds_moe_mtl.studies.tables.schema import Budget, Column, Mixture, Row, Table
from ds_moe_mtl.studies.trials import LEADERBOARD, best_run
from ds_moe_mtl.tasks import expand_tasks, get_task, is_small
from ds_moe_mtl.training.run_folder import RunFolder
from ds_moe_mtl.training.train import train

Say = Callable[[str], None]


@dataclass(frozen=True)
class Cell:
    """One score of a table: what is fine-tuned for it."""

    row: str
    column: str
    mixture: str | None
    job: FineTuning

    @property
    def name(self) -> str:
        """What `part_of` knows it by."""
        return f"{self.row} / {self.column}"


@dataclass(frozen=True)
class Reproduction:
    """The runs of a table on a budget: stage one by mixture name, and the cells."""

    mixtures: dict[str, RunConfig]
    cells: tuple[Cell, ...]


def plan_table(
    name: str,
    table: Table,
    budget_name: str,
    budget: Budget,
    mixtures: dict[str, Mixture],
    folder: Path,
    overrides: Sequence[str],
) -> Reproduction:
    """Return the runs of a table; nothing is trained. Raises UserError for a bad override."""
    own = tuple(overrides)
    if budget_name in table.stand_in:
        own = (f"model.encoder={table.stand_in[budget_name]}", *own)
    elif budget_name == "cpu" and any("bert" in _encoder(row, mixtures) for row in table.rows):
        raise UserError(
            f"{name}: its encoders are too large for the budget cpu; allowed: smoke, paper"
        )
    budget = budget.model_copy(update={"seeds": table.seeds.get(budget_name, budget.seeds)})
    needed = dict.fromkeys(row.mixture for row in table.rows if row.mixture is not None)
    stage_one = {
        mixture: _mixture_config(mixtures[mixture], budget, folder / "mixtures" / mixture, own)
        for mixture in needed
    }
    cells = [
        Cell(row.name, column.name, row.mixture, _job(row, column, budget, stage_one, folder, own))
        for row in table.rows
        for column in table.columns
        if budget.tasks is None or column.task in budget.tasks
    ]
    return Reproduction(stage_one, tuple(cells))


def run_table(plan: Reproduction, ranks: Ranks, say: Say) -> int:
    """Run or resume what a table needs; return 0, or 75 when stopped.

    All runs share this process and its process group. Raises UserError for what the user can mend.
    """
    try:
        for number, (mixture, config) in enumerate(plan.mixtures.items(), 1):
            say(f"mixture {number} of {len(plan.mixtures)}: {mixture}")
            status = train(config, ranks, say, last=False)
            if status:
                return status
        for number, cell in enumerate(plan.cells, 1):
            say(f"cell {number} of {len(plan.cells)}: {cell.row}, {cell.column}")
            status, _ = finetune(cell.job, ranks, say)
            if status:
                return status
    finally:
        stop_process_group()
    return 0


def part_of(plan: Reproduction, name: str) -> Reproduction:
    """Return one part of a table: a mixture, or a cell ("row / column") with its mixture.

    Raises UserError for a name that is no part.
    """
    if name in plan.mixtures:
        return Reproduction({name: plan.mixtures[name]}, ())
    cells = tuple(cell for cell in plan.cells if cell.name == name)
    if not cells:
        known = ", ".join([*plan.mixtures, *(cell.name for cell in plan.cells[:2])])
        raise UserError(f"--only: {name!r} is no part of the table; allowed: {known}, ...")
    needed = {cell.mixture for cell in cells}
    return Reproduction({k: v for k, v in plan.mixtures.items() if k in needed}, cells)


def table_jobs(
    plans: Mapping[str, Reproduction],
    command: Callable[[str, str], Sequence[str]],
    ranks: Ranks,
    say: Say,
) -> list[Job]:
    """Return what is left of some tables as commands: a mixture each, then a cell each.

    plans: by table, of one folder; what tables share is there once. command(table, part): the
    arguments that run one part. Raises UserError where a folder holds another configuration.
    """
    jobs: dict[str, Job] = {}
    tuned: dict[Path, list[tuple[FineTuning, str]]] = {}
    for table, plan in plans.items():
        for mixture, config in plan.mixtures.items():
            if RunFolder(config, say).finished() is None:
                jobs.setdefault(mixture, Job(mixture, tuple(command(table, mixture))))
        for cell in plan.cells:
            earlier = tuned.setdefault(cell.job.folder, [])
            if any(cell.job == job for job, _ in earlier) or _is_done(cell.job, ranks, say):
                continue
            name = f"{table}, {cell.name}"
            # Tables that ask for other seeds of one fine-tuning take turns in its folder.
            needs = [name for _, name in earlier[-1:]]
            needs += [cell.mixture] if cell.mixture is not None else []
            earlier.append((cell.job, name))
            jobs[name] = Job(name, tuple(command(table, cell.name)), tuple(needs))
    return list(jobs.values())


def _is_done(job: FineTuning, ranks: Ranks, say: Say) -> bool:
    if read_json(job.folder / LEADERBOARD) is None:
        return False
    trials = plan_trials(job, ranks, lambda line: None)
    return all(RunFolder(trial.config, say).finished() is not None for trial in trials)


def collect(plan: Reproduction) -> dict[tuple[str, str], dict]:
    """Return what is done by (row, column): the best single run's row and facts.

    {"max", "mean", "std", "seeds", "point", "metric", "examples", "device", "notes", "gate",
    "donor_losses", "steps"}.
    """
    scores = {}
    for cell in plan.cells:
        board = read_json(cell.job.folder / LEADERBOARD)
        if board is None or not board["rows"]:
            continue
        first, best = best_run(board["rows"])
        # Not by the path that the leaderboard has: the folder may have been moved since.
        run = cell.job.folder / point_name(first["point"]) / f"seed{best['seed']}"
        results = read_json(run / "results.json")
        (result,) = results["tasks"].values()
        donors = read_json(cell.job.folder / GATES)
        scores[cell.row, cell.column] = {
            **{key: first[key] for key in ("max", "mean", "std", "point")},
            "seeds": len(first["seeds"]),
            "metric": result["metric"],
            "examples": result["examples"],
            "device": read_json(run / "environment.json")["device"],
            "steps": best["steps"],
            "notes": results["notes"],
            "gate": results["start"]["gate"] if results["start"] else None,
            "donor_losses": donors["losses"] if donors else None,
        }
    return scores


def _mixture_config(
    mixture: Mixture, budget: Budget, folder: Path, own: tuple[str, ...]
) -> RunConfig:
    lines = [*mixture.set, *budget.mixture, *own, f"run.dir={folder}"]
    config = load_config(mixture.experiment, lines)
    if budget.mixture_tasks is None:
        return config
    names = _task_names(config)
    kept = [name for name in names if name in budget.mixture_tasks]
    return load_config(mixture.experiment, [*lines, f"tasks=[{','.join(kept)}]"])


def _job(
    row: Row,
    column: Column,
    budget: Budget,
    stage_one: dict[str, RunConfig],
    folder: Path,
    own: tuple[str, ...],
) -> FineTuning:
    if row.mixture is None:
        model, gate, single = row.encoder, None, budget.single
        name = model.rpartition("/")[2]
    else:
        config = stage_one[row.mixture]
        model, single, name = config.run.dir, (), row.mixture
        gate = row.gate or column.gate or "own"
        gate = _held(gate, config, budget) if config.model.kind == "mt_tag" else None
    sample = () if column.sample is None else (f"data.sample={column.sample}",)
    where = [column.task, *(line.rpartition("=")[2] for line in sample)]
    if gate not in (None, "own"):
        where.append(gate)
    by_task = budget.by_task.get(column.task, ())
    return FineTuning(
        model=model,
        task=column.task,
        folder=folder / "finetune" / name / "-".join(where),
        gate=gate,
        experiment=EXPERIMENT,
        overrides=(*budget.finetune, *by_task, *single, *sample, *row.set, *own),
        grid=budget.grid if is_small(get_task(column.task)) else {},
        seeds=budget.seeds,
        keep="none",
    )


def _held(gate: str, config: RunConfig, budget: Budget) -> str:
    """Return the gate, or on a budget of few tasks another that the mixture has."""
    if gate in ("own", "random", "auto") or budget.mixture_tasks is None:
        return gate
    names = _task_names(config)
    return gate if gate in names else names[0]


def _task_names(config: RunConfig) -> list[str]:
    entries = config.task_rows
    names = [expand_tasks([each]) if isinstance(each, str) else [each.name] for each in entries]
    return list(dict.fromkeys(name for group in names for name in group))


def _encoder(row: Row, mixtures: dict[str, Mixture]) -> str:
    return row.encoder or mixtures[row.mixture].experiment
