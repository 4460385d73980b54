"""ds-moe-mtl train, and train.py: one YAML, then section.key=value overrides; seeds and grids."""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ds_moe_mtl.cli import version_line
from ds_moe_mtl.cli.arguments import BAD_INPUT, INTERRUPTED, repeated_key
from ds_moe_mtl.config import (
    DEFAULT_EXPERIMENT,
    RankError,
    RunConfig,
    Unmet,
    UserError,
    load_config,
)
from ds_moe_mtl.config.levers import SPARSE_KINDS
from ds_moe_mtl.ranks.failures import file_error_line, kept_by_rank
from ds_moe_mtl.ranks.rendezvous import Ranks, is_first, rendezvous
from ds_moe_mtl.ranks.siblings import watch_killed
from ds_moe_mtl.ranks.statuses import HUNG

_INTERRUPTED = "interrupted; started again it continues after its newest checkpoint, if it has one"

USAGE = """usage: deepspeed --num_gpus N train.py [CONFIG.yaml] [section.key=value ...]
       torchrun --nproc_per_node N train.py ..., mpirun -n N python train.py ...,
       srun python train.py ..., python train.py ..., ds-moe-mtl train ...
       installed, from any folder: python -m ds_moe_mtl.train ..., torchrun -m ds_moe_mtl.train ...,
       deepspeed --module ds_moe_mtl.train ...

Trains what CONFIG.yaml describes; without one, ds_configs/experiments/embedded_mttag_minilm.yaml.
Started again with the same configuration it continues where it was.

  --seeds N                 N runs, seeds 0 to N - 1, in folders below run.dir
  --grid section.key=A,B    runs with each value; several: with all combinations
Both leave run.dir/leaderboard.json: the best mean over seeds first, with deviation and maximum.

example: python train.py ds_configs/experiments/glue_small_mttag_minilm.yaml data.root=DATA
exit status: 0 complete, 2 a mistake to mend, 70 hung, 75 stopped on request after a checkpoint,
130 interrupted at once"""


def main(arguments: Sequence[str]) -> int:
    """Train and return the exit status; a user's mistake is one line on rank 0's stderr."""
    if any(argument in ("-h", "--help") for argument in arguments):
        print(USAGE)
        return 0
    if "--version" in arguments:
        print(version_line())
        return 0
    ranks = config = None
    watch_killed(os.environ)
    try:
        ranks = rendezvous(os.environ)
        say = _speaker(ranks)
        asked = _split(arguments)
        if asked.path is None:
            say(f"no YAML given: running {DEFAULT_EXPERIMENT.name}")
        config = load_config(asked.path, asked.overrides)
        _settle_accelerator()
        if asked.grid or asked.seeds is not None:
            return _train_all(asked, Path(config.run.dir), ranks, say)
        from ds_moe_mtl.training.train import train

        with kept_by_rank(Path(config.run.dir), ranks.rank):
            status = train(config, ranks, say)
        if status == 0 and ranks.rank == 0 and config.model.kind in SPARSE_KINDS:
            _show_routes(config, say)
        if status == 0 and ranks.rank == 0 and config.model.kind == "task_moe":
            _show_task_routes(config, say)
        return status
    except UserError as error:
        if ranks is None or ranks.rank == 0 or isinstance(error, RankError):
            for line in error.lines:
                print(f"error: {line}", file=sys.stderr, flush=True)
        return _status(error)
    except OSError as error:
        line = file_error_line(error, Path(config.run.dir) if config else None)
        if line is None:
            raise
        print(f"error: {line}", file=sys.stderr, flush=True)
        return BAD_INPUT
    except KeyboardInterrupt:
        # Before the first step, or a second Ctrl-C that does not wait for the checkpoint.
        if is_first(os.environ) if ranks is None else ranks.rank == 0:
            print(_INTERRUPTED, file=sys.stderr, flush=True)
        return INTERRUPTED


def _status(error: UserError) -> int:
    """Return the status of a run that has ended so: there is a mistake to mend, or ranks to wait
    for, which another start may do."""
    return HUNG if isinstance(error, Unmet) else BAD_INPUT


def _settle_accelerator() -> None:
    """Tell DeepSpeed what it runs on before transformers imports it for a look.

    It guesses otherwise, and warns of its guess among the first lines of a run.
    """
    import torch

    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")


def _speaker(ranks: Ranks) -> Callable[[str], None]:
    def say(line: str) -> None:
        if ranks.rank == 0:
            print(line, flush=True)

    return say


def _show_routes(config: RunConfig, say: Callable[[str], None]) -> None:
    """Draw which expert each task uses, once a run."""
    from ds_moe_mtl.cli.routes import PICTURE, write_routes

    folder = Path(config.run.dir)
    if not (folder / PICTURE).exists():
        write_routes(folder, config.data.root, config.data.cache)
    say(f"routes: {folder / PICTURE}")


def _show_task_routes(config: RunConfig, say: Callable[[str], None]) -> None:
    """Draw every task's route, once a run."""
    from ds_moe_mtl.cli.crossfit import write_task_routes

    folder = Path(config.run.dir)
    if not (folder / "task_routes.png").exists():
        write_task_routes(folder, folder)
    say(f"routes: {folder / 'task_routes.png'}")


@dataclass
class _Asked:
    """What the command line says. seeds: None where it says nothing."""

    path: str | None = None
    overrides: list[str] = field(default_factory=list)
    seeds: int | None = None
    grid: dict[str, list[str]] = field(default_factory=dict)


def _train_all(asked: _Asked, folder: Path, ranks: Ranks, say: Callable[[str], None]) -> int:
    """Train every point of a grid with every seed, below `folder`; return 0 or 75."""
    from ds_moe_mtl.cli.finetune import print_leaderboard
    from ds_moe_mtl.engine.engine import stop_process_group
    from ds_moe_mtl.studies.trials import LEADERBOARD, leaderboard, make_trials, run_trials

    def make(own: Sequence[str]) -> RunConfig:
        return load_config(asked.path, [*asked.overrides, *own])

    trials = make_trials(make, folder, asked.grid, asked.seeds or 1)
    try:
        with kept_by_rank(folder, ranks.rank):
            status = run_trials(trials, folder, ranks, say, keep="all")
    finally:
        stop_process_group()
    print_leaderboard(leaderboard(trials), say)
    say(f"leaderboard: {folder / LEADERBOARD}")
    return status


def _split(arguments: Sequence[str]) -> _Asked:
    """Return what the command line says. Accepts a launcher's --local_rank.

    Raises UserError for a second path or an unknown option.
    """
    from ds_moe_mtl.cli.finetune import parse_grid

    paths, asked = [], _Asked()
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument in ("--local_rank", "--local-rank"):
            rest = rest[1:]
        elif argument.startswith(("--local_rank=", "--local-rank=")):
            continue
        elif argument.partition("=")[0] in ("--seeds", "--grid"):
            name, equals, value = argument.partition("=")
            value = value if equals else (rest.pop(0) if rest else "")
            if name == "--grid":
                key, values = parse_grid(value)
                asked.grid[key] = values
            elif value.isdecimal() and int(value):
                asked.seeds = int(value)
            else:
                raise UserError(f"--seeds: {value!r}; allowed: a whole number above 0")
        elif argument.startswith("-"):
            raise UserError(
                f"command line: unknown option {argument}; "
                f"allowed: --seeds, --grid, --help, --version"
            )
        elif "=" in argument:
            asked.overrides.append(argument)
        else:
            paths.append(argument)
    if len(paths) > 1:
        raise UserError(
            f"command line: two YAML files, {paths[0]} and {paths[1]}; allowed: one, then "
            f"section.key=value"
        )
    fault = repeated_key(asked.overrides)
    if fault:
        raise UserError(fault)
    asked.path = paths[0] if paths else None
    return asked
