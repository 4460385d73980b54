"""Several runs of one recipe: a grid of values times seeds, resumable, with a leaderboard.

<folder>/leaderboard.json                 every trial that is done, best first
<folder>/<point>/seed<n>/                 a run folder; <point>: lr=1e-4,epochs=5, or "default"
"""

import itertools
import math
import shutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ds_moe_mtl.config import RunConfig
from ds_moe_mtl.config.files import read_json, write_json
from ds_moe_mtl.ranks.rendezvous import Ranks
from ds_moe_mtl.studies.points import point_name
from ds_moe_mtl.training.selection import mean_score
from ds_moe_mtl.training.train import train

Say = Callable[[str], None]
LEADERBOARD = "leaderboard.json"


@dataclass(frozen=True)
class Trial:
    """One run of a recipe."""

    point: tuple[str, ...]  # section.key=value
    seed: int
    config: RunConfig

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.config.run.dir)

    @property
    def results(self) -> dict | None:
        """results.json where the trial is done."""
        return read_json(self.folder / "results.json")


def make_trials(
    make: Callable[[Sequence[str]], RunConfig],
    folder: Path,
    grid: Mapping[str, Sequence[str]],
    seeds: int,
) -> list[Trial]:
    """Return the trials of every point of the grid with seeds 0 to seeds - 1.

    make(overrides) gives a run's configuration; grid: values by dotted key.
    """
    trials = []
    for values in itertools.product(*grid.values()):
        point = tuple(f"{key}={value}" for key, value in zip(grid, values, strict=True))
        for seed in range(seeds):
            where = f"run.dir={folder / point_name(point) / f'seed{seed}'}"
            config = make([*point, f"run.seed={seed}", where])
            trials.append(Trial(point, seed, config))
    return trials


def run_trials(
    trials: Sequence[Trial], folder: Path, ranks: Ranks, say: Say, keep: str = "best"
) -> int:
    """Run or resume every trial and return the last one's status: 0, or 75 when stopped.

    keep: whose model/ stays, "all", "best" (the best single run's) or "none". The
    leaderboard is written after each trial. All runs share this process and its process group,
    which stays open: the caller ends it.
    """
    for number, trial in enumerate(trials, 1):
        if trial.results is None:
            say(f"trial {number} of {len(trials)}: {point_name(trial.point)}, seed {trial.seed}")
        status = train(trial.config, ranks, say, last=False)
        if status:
            return status
        if ranks.rank == 0:
            write_json(folder / LEADERBOARD, {"rows": leaderboard(trials)})
    if ranks.rank == 0:
        drop_models(trials, keep)
    return 0


def leaderboard(trials: Sequence[Trial]) -> list[dict]:
    """Return a row per point that is done in part or whole, the best mean over seeds first.

    A row: {"point", "seeds": [{"seed", "value", "steps", "best_step", "run"}], "n" (seeds),
    "mean", "std" (of a sample; None for one seed), "max"}; values are means over the run's tasks.
    """
    rows = []
    for point in dict.fromkeys(trial.point for trial in trials):
        seeds = []
        for trial in trials:
            results = trial.results if trial.point == point else None
            if results is not None:
                seeds.append(
                    {
                        "seed": trial.seed,
                        "value": mean_score(results["tasks"]),
                        "steps": results["steps"],
                        "best_step": results.get("best_step"),
                        "run": str(trial.folder),
                    }
                )
        if seeds:
            values = [row["value"] for row in seeds]
            rows.append(
                {
                    "point": list(point),
                    "seeds": seeds,
                    "n": len(values),
                    "mean": math.fsum(values) / len(values),
                    "std": statistics.stdev(values) if len(values) > 1 else None,
                    "max": max(values),
                }
            )
    return sorted(rows, key=lambda row: (-row["mean"], -row["max"]))


def best_run(rows: Sequence[Mapping]) -> tuple[Mapping, Mapping]:
    """Return (row, seed) of a leaderboard's best single run: the maximum that the paper reports.

    Source: "Sparsely Activated MoE are Robust Multi-Task Learners", sec. 4.4 and appendix A.3.2.
    """
    row = max(rows, key=lambda row: (row["max"], row["mean"]))
    return row, max(row["seeds"], key=lambda seed: seed["value"])


def drop_models(trials: Sequence[Trial], keep: str) -> None:
    """Delete the model folders that are not to stay."""
    if keep == "all":
        return
    best = None
    if keep == "best":
        best = Path(best_run(leaderboard(trials))[1]["run"])
    for trial in trials:
        if trial.folder != best:
            for model in (trial.folder / "model", *trial.folder.glob("*/model")):
                shutil.rmtree(model, ignore_errors=True)
