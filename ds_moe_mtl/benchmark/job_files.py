"""A DeepSpeed JSON and a Slurm script that fit a plan."""

import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from ds_moe_mtl.benchmark.planning import RunOnPaper
from ds_moe_mtl.config import RunConfig, UserError
from ds_moe_mtl.config.deepspeed import read_deepspeed
from ds_moe_mtl.config.files import REPOSITORY
from ds_moe_mtl.config.load import find_experiment
from ds_moe_mtl.planner.memory import split_weights
from ds_moe_mtl.planner.network import has_hierarchy

GIB = 2**30
LAUNCHERS = REPOSITORY / "launchers" / "slurm"
_PATHS = ("run.dir", "run.resume", "data.root", "data.cache", "model.encoder", "start.model")
_PATHS += ("router.vectors", "router.routes_from")
_FILE_OF_A_TASK = re.compile(r"tasks\.\d+\.(train|dev|test)")
_WORDS = (None, "auto", "never", "embedded", "minilm", "random")
"""What stands in such keys and is no path."""

HOST_GIB_A_RANK = 4
"""What a rank's process takes of the host beside the model: imports, data, pinned buffers."""

OFFLOADED = 16
"""Bytes of a weight whose optimizer is on the host: fp32 copy, two moments, gradient."""


def choose(plan: dict) -> dict:
    """Return the row to run: the one that the plan advises.

    Raises UserError where none fits.
    """
    for row in plan["memory"]:
        if row["advised"]:
            return row
    least = min(plan["memory"], key=lambda row: row["peak"])
    raise UserError(
        f"nothing fits: the least is {least['peak'] / GIB:.2f} GiB a rank (ZeRO "
        f"{least['zero_stage']}, ep_size {least['ep_size']}); {plan['ways_out']}"
    )


def new_files(folder: Path) -> tuple[Path, Path]:
    """Return the paths that write_job writes. Raises UserError where one exists: the script has
    lines that a user fills in.
    """
    files = folder / "deepspeed.json", folder / "run.sbatch"
    for path in files:
        if path.exists():
            raise UserError(f"--write: {path} exists; allowed: another folder")
    return files


def write_job(
    folder: Path, paper: RunOnPaper, plan: dict, config_name: str, overrides: Sequence[str]
) -> list[Path]:
    """Write deepspeed.json and run.sbatch into `folder` and return their paths.

    overrides: of the command line; config_name: its YAML. The JSON is the run's own with the chosen
    stage; the script is launchers/slurm's with the nodes, GPUs and memory of the plan and the whole
    command, whose paths are absolute. Raises UserError where none fits.
    """
    row, machine = choose(plan), paper.machine
    files = new_files(folder)
    folder.mkdir(parents=True, exist_ok=True)
    native = read_deepspeed(Path(paper.workload.config.deepspeed))
    native["zero_optimization"] = {
        **native.get("zero_optimization", {}),
        "stage": row["zero_stage"],
    }
    files[0].write_text(json.dumps(native, indent=2) + "\n")
    settled = {"moe.ep_size": str(row["ep_size"]), "deepspeed": str(files[0].resolve())}
    if paper.workload.config.moe.exchange != "flat" and not has_hierarchy(row["ep_size"], machine):
        settled["moe.exchange"] = "flat"  # hierarchical would be refused
    kept = [text for text in overrides if text.split("=")[0] not in settled]
    arguments = [
        str(find_experiment(Path(config_name))),
        *_from_anywhere(kept, paper.workload.config),
        *(f"{key}={value}" for key, value in settled.items()),
    ]
    files[1].write_text(_script(machine.gpus, machine.per_node, row, paper, arguments))
    return list(files)


def _from_anywhere(overrides: Sequence[str], config: RunConfig) -> list[str]:
    """Return overrides whose paths hold from any folder, those of the YAML's own paths added.

    The others are as they were typed.
    """
    values = config.model_dump(mode="json")
    found = {text.partition("=")[0]: text for text in overrides}
    for key in dict.fromkeys((*found, *_PATHS)):
        path = _at(values, key) if key in _PATHS or _FILE_OF_A_TASK.fullmatch(key) else None
        if path not in _WORDS and (key == "run.dir" or Path(path).exists()):
            found[key] = f"{key}={Path(path).absolute()}"
    return list(found.values())


def _at(values: dict, key: str) -> str | None:
    for part in key.split("."):
        values = values[int(part) if part.isdecimal() else part]
    return values


def _script(gpus: int, per_node: int, row: dict, paper: RunOnPaper, arguments: list[str]) -> str:
    """Return the shipped script of one or many nodes, its directives and command replaced."""
    nodes = gpus // per_node
    name = "single_node.sbatch" if nodes == 1 else "multi_node.sbatch"
    host = _host_gib(paper)
    directives = {
        "--nodes": str(nodes),
        "--ntasks-per-node": str(per_node),
        "--gpus-per-node": str(per_node),
    }
    lines = []
    for line in (LAUNCHERS / name).read_text().splitlines():
        key = line.removeprefix("#SBATCH ").partition("=")[0]
        if line.startswith("#SBATCH ") and key in directives:
            line = f"#SBATCH {key}={directives[key]}"
        lines.append(line)
        if key == "--nodes":
            lines.append(f"#SBATCH --mem={round(host * per_node + 0.5)}G")
    command = " ".join(shlex.quote(argument) for argument in arguments)
    text = "\n".join(lines).replace('$TRAIN "$@"', f"$TRAIN {command}")
    planned = f"{row['peak'] / GIB:.2f} GiB a GPU, ZeRO {row['zero_stage']}"
    return (
        text.replace(
            "#!/usr/bin/env bash\n",
            f"#!/usr/bin/env bash\n# Written by `ds-moe-mtl plan`: {planned}, ep_size "
            f"{row['ep_size']}.\n"
            "# From any folder, with the environment active: sbatch THIS_FILE\n",
            1,
        )
        + "\n"
    )


def _host_gib(paper: RunOnPaper) -> float:
    """Return what a rank takes of the host: at the start the fp32 model, twice; later, where the
    optimizer is there, what this rank updates."""
    weights, gpus = split_weights(paper.parameters), paper.machine.gpus
    updated = weights.total / gpus if paper.offloads else 0
    return HOST_GIB_A_RANK + max(2 * 4 * weights.total, OFFLOADED * updated) / GIB
