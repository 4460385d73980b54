"""A run's checkpoint as the same run for another topology, off-line: in ranks of its own.

This module starts the ranks, and is one of them.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ds_moe_mtl.config import UserError, dump_config, load_config
from ds_moe_mtl.config.deepspeed import STAGES, read_deepspeed, resolve_deepspeed
from ds_moe_mtl.config.files import new_folder, write_json
from ds_moe_mtl.engine.checkpoints import read_manifest
from ds_moe_mtl.engine.engine import start_engine, start_process_group, stop_process_group
from ds_moe_mtl.ranks.local import on_ranks, serve
from ds_moe_mtl.ranks.rendezvous import Ranks
from ds_moe_mtl.training.checkpoint import identity_of, load_checkpoint, save_checkpoint
from ds_moe_mtl.training.model_files import model_files
from ds_moe_mtl.training.network import new_network
from ds_moe_mtl.training.plan import make_plan, task_specs

Say = Callable[[str], None]


@dataclass(frozen=True)
class Topology:
    """Where a run's state lies: ranks, ranks that share one set of experts, ZeRO stage."""

    ranks: int
    ep_size: int
    zero_stage: int


def parse_topology(text: str) -> Topology:
    """Return "ranks=4,ep_size=2,zero_stage=1" as a Topology. Raises UserError for anything else."""
    example = "allowed: ranks=4,ep_size=2,zero_stage=1"
    values = {}
    for item in text.split(","):
        key, _, value = item.strip().partition("=")
        if key not in ("ranks", "ep_size", "zero_stage") or not value.isdigit() or key in values:
            raise UserError(f"--to-topology: {item.strip()!r}; {example}")
        values[key] = int(value)
    found = Topology(values.get("ranks", 1), values.get("ep_size", 1), values.get("zero_stage", 1))
    if found.zero_stage not in STAGES:
        raise UserError(f"--to-topology: zero_stage = {found.zero_stage}; allowed: 0, 1, 2")
    if min(found.ranks, found.ep_size) < 1 or found.ranks % found.ep_size:
        raise UserError(
            f"--to-topology: ep_size = {found.ep_size} does not divide ranks = {found.ranks}"
        )
    return found


def reshape(checkpoint: Path, topology: Topology, output: Path, say: Say) -> None:
    """Write `output`, a run folder that continues `checkpoint` on another topology exactly.

    Starts topology.ranks processes on this machine: each holds its own share of weights and
    optimizer. Raises UserError where `output` is taken and what ranks.local.on_ranks raises where
    a process fails: `output` is gone then, so that the same command can be given again.
    """
    with new_folder(output):
        _write_start(checkpoint.parent.parent, topology, output)
        request = {"checkpoint": str(checkpoint), "output": str(output)}
        for line in on_ranks(__name__, request, topology.ranks):
            say(line)


def _write_start(run: Path, topology: Topology, output: Path) -> None:
    """Write what a run on the topology starts with: its configuration, and its course so far."""
    before = load_config(run / "config.yaml", check_files=False)
    deepspeed = read_deepspeed(Path(before.deepspeed))
    deepspeed.setdefault("zero_optimization", {})["stage"] = topology.zero_stage
    write_json(output / "deepspeed_reshaped.json", deepspeed)
    config = load_config(
        run / "config.yaml",
        [
            f"run.dir={output}",
            "run.resume=auto",
            f"moe.ep_size={topology.ep_size}",
            "moe.exchange=flat",  # all ranks are on this machine
            f"deepspeed={output / 'deepspeed_reshaped.json'}",
        ],
    )
    resolve_deepspeed(config, topology.ranks)
    (output / "config.yaml").write_text(dump_config(config))
    if (run / "metrics.jsonl").exists():
        shutil.copy(run / "metrics.jsonl", output)


def _reshape_on_rank(request: dict, ranks: Ranks) -> list[str]:
    """Do one rank's part of `reshape` and return what there is to say; a collective call."""
    checkpoint, output = Path(request["checkpoint"]), Path(request["output"])
    said: list[str] = []
    config = load_config(output / "config.yaml")
    plan = make_plan(config, task_specs(config), lambda line: None)
    network, sha256 = new_network(plan)
    deepspeed = resolve_deepspeed(config, ranks.world_size)
    identity = identity_of(plan, sha256, ranks.world_size, deepspeed)
    stored = read_manifest(checkpoint)["identity"]
    difference = identity.difference(stored) or identity.data_changes(stored)
    if difference:
        raise UserError(f"{checkpoint} is of another run: {difference}")
    start_process_group(ranks)
    engine = start_engine(network, config, deepspeed)
    step, loader_state = load_checkpoint(engine, checkpoint, identity, said.append)
    files = model_files(engine.module, plan, sha256)
    folder = output / "checkpoints"
    path = save_checkpoint(engine, folder, step, identity, loader_state, 1, files)
    stop_process_group()
    return [*said, f"checkpoint: {path}"]


if __name__ == "__main__":
    serve(_reshape_on_rank)
