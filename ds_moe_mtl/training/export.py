"""What can be made of a run's checkpoint off-line: the same for another topology, or a model."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ds_moe_mtl.config import UserError, dump_config, load_config
from ds_moe_mtl.config.deepspeed import STAGES, read_deepspeed, resolve_deepspeed
from ds_moe_mtl.engine.engine import start_engine, start_process_group, stop_process_group
from ds_moe_mtl.engine.reshape import StoredTraining
from ds_moe_mtl.models.description import save_folder
from ds_moe_mtl.ranks.rendezvous import Ranks, free_port
from ds_moe_mtl.training.checkpoint import (
    damage,
    identity_of,
    list_checkpoints,
    load_checkpoint,
    read_manifest,
    save_checkpoint,
)
from ds_moe_mtl.training.network import described, new_network
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


def choose_checkpoint(run: Path, name: str | None) -> Path:
    """Return a run's checkpoint by name, or its newest. Raises UserError where it is not whole."""
    found = list_checkpoints(run / "checkpoints")
    if not (run / "config.yaml").is_file() or not found:
        raise UserError(f"{run} is not a run folder with a checkpoint; allowed: what run.dir named")
    names = [path.name for path in found]
    if name is not None and name not in names:
        raise UserError(f"--checkpoint: no {name} in {run}; allowed: {', '.join(names)}")
    path = found[names.index(name)] if name else found[0]
    fault = damage(path)
    if fault:
        raise UserError(f"{path} is damaged ({fault}); allowed: --checkpoint with another of {run}")
    return path


def start_reshape(checkpoint: Path, topology: Topology, output: Path) -> None:
    """Write `output`, a run folder that continues `checkpoint` on another topology exactly.

    Starts topology.ranks processes on this machine, on its CPU: each holds its own share of
    weights and optimizer. Raises UserError where `output` is taken or a process fails.
    """
    if output.exists() and any(output.iterdir()):
        raise UserError(f"--output: {output} is not empty; allowed: a new folder")
    output.mkdir(parents=True, exist_ok=True)
    run = checkpoint.parent.parent
    before = load_config(run / "config.yaml", check_files=False)
    deepspeed = read_deepspeed(Path(before.deepspeed))
    deepspeed.setdefault("zero_optimization", {})["stage"] = topology.zero_stage
    (output / "deepspeed_reshaped.json").write_text(json.dumps(deepspeed, indent=2) + "\n")
    config = load_config(
        run / "config.yaml",
        [
            f"run.dir={output}",
            "run.resume=auto",
            f"moe.ep_size={topology.ep_size}",
            f"deepspeed={output / 'deepspeed_reshaped.json'}",
        ],
    )
    resolve_deepspeed(config, topology.ranks)
    (output / "config.yaml").write_text(dump_config(config))
    if (run / "metrics.jsonl").exists():
        shutil.copy(run / "metrics.jsonl", output)
    port = free_port()
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "ds_moe_mtl.training.export", str(checkpoint), str(output)],
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
                "OMP_NUM_THREADS": "1",
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(topology.ranks),
                "LOCAL_WORLD_SIZE": str(topology.ranks),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            },
        )
        for rank in range(topology.ranks)
    ]
    statuses = [rank.wait() for rank in ranks]
    if any(statuses):
        raise UserError(f"--to-topology: the ranks ended with {statuses}; {output} is not complete")


def reshape_on_rank(checkpoint: Path, output: Path, ranks: Ranks, say: Say) -> None:
    """Do one rank's part of start_reshape; a collective call."""
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
    step, loader_state = load_checkpoint(engine, checkpoint, identity, say)
    path = save_checkpoint(engine, output / "checkpoints", step, identity, loader_state, keep=1)
    say(f"checkpoint: {path}")
    stop_process_group()


def export_model(checkpoint: Path, output: Path) -> None:
    """Write the model folder of a checkpoint, its weights in float32 from the optimizer's copy.

    Raises UserError where `output` is taken.
    """
    if output.exists() and any(output.iterdir()):
        raise UserError(f"--output: {output} is not empty; allowed: a new folder")
    config = load_config(checkpoint.parent.parent / "config.yaml", check_files=False)
    plan = make_plan(config, task_specs(config), lambda line: None)
    network, sha256 = new_network(plan)
    stored = StoredTraining(checkpoint, read_manifest(checkpoint))
    for name, parameter in network.named_parameters():
        parameter.data.copy_(stored.parameter(name).weight.view_as(parameter))
    about = {"checkpoint": checkpoint.name, "encoder_sha256": sha256}
    description = described(network, plan, about)
    save_folder(output, description, network.state_dict(), plan.tokenizer)


def _main(arguments: list[str]) -> int:
    from ds_moe_mtl.ranks.rendezvous import rendezvous

    ranks = rendezvous(os.environ)
    try:
        checkpoint, output = map(Path, arguments)
        reshape_on_rank(checkpoint, output, ranks, print if ranks.rank == 0 else lambda line: None)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    return 0


if __name__ == "__main__":
    status = _main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(status)  # as train.py: threads that gloo leaves behind abort the shutdown
