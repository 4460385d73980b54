"""ds-moe-mtl plan: memory, traffic and step time of a run before it is queued."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ds_moe_mtl.cli.arguments import Parser, answer
from ds_moe_mtl.config import DEFAULT_EXPERIMENT, RunConfig, UserError, load_config
from ds_moe_mtl.config.deepspeed import SPARSE_KINDS

GIB = 2**30
Say = Callable[[str], None]


@dataclass(frozen=True)
class _Plan:
    """What is planned, for what machine; units as in --help, None: what this machine has."""

    config: str | None
    overrides: tuple[str, ...]
    shape: str | None
    gpus: int | None
    gpus_per_node: int
    gpu_memory: float | None
    tflops: float
    memory_bandwidth: float
    nvlink: float
    network: float
    latency: float
    calibrate: float
    measure: bool
    clock: str
    write: Path | None
    json: bool

    def __post_init__(self) -> None:
        """Raise UserError for a number out of its range, and for a job of random weights."""
        above_zero = ("gpus", "gpus_per_node", "gpu_memory", "tflops", "memory_bandwidth")
        for name in (*above_zero, "nvlink", "network"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                option = name.replace("_", "-")
                raise UserError(f"--{option} = {value:g}; allowed: above 0")
        if self.calibrate < 0 or self.latency < 0:
            raise UserError("--calibrate and --latency: allowed: 0 or more")
        if self.write is not None and self.shape is not None:
            raise UserError(
                "--write with --shape: a job trains an encoder; allowed: model.encoder=..."
            )


def main(arguments: list[str]) -> int:
    """Print the plan (or JSON) and return the exit status."""
    parser = Parser(
        "plan",
        "Counts weights, FLOPs, memory and traffic of a run and predicts its step time.",
        "ds-moe-mtl plan glue_mttag_bert_large data.root=DATA train.precision=bf16 --gpus 8 "
        "--gpu-memory 80",
    )
    parser.takes_a_run()
    parser.add_argument("--gpus", type=int, help="ranks (this machine's GPUs, or 1)")
    parser.add_argument("--gpus-per-node", type=int, default=8, help="of the cost model (8)")
    parser.add_argument("--gpu-memory", type=float, help="GiB of one (this machine's, if any)")
    parser.add_argument(
        "--tflops", type=float, default=300.0, help="sustained a GPU, cost model (300)"
    )
    parser.add_argument("--memory-bandwidth", type=float, default=3000.0, help="GB/s (3000)")
    parser.add_argument("--nvlink", type=float, default=300.0, help="GB/s a GPU, one way (300)")
    parser.add_argument("--network", type=float, default=40.0, help="GB/s a GPU, one way (40)")
    parser.add_argument("--latency", type=float, default=10.0, help="us a message (10)")
    parser.add_argument(
        "--calibrate", type=float, default=10.0, metavar="S", help="seconds; 0: no step time (10)"
    )
    parser.add_argument(
        "--measure", action="store_true", help="also run the whole model here, to compare"
    )
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="of --calibrate")
    parser.add_argument(
        "--write", type=Path, metavar="FOLDER", help="write a DeepSpeed JSON and a Slurm script"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    return answer(lambda: _plan(parser.request(_Plan, arguments)))


def _plan(asked: _Plan) -> int:
    config = load_config(asked.config, asked.overrides)
    _check_plannable(config, asked.calibrate)
    from ds_moe_mtl.benchmark.plan_table import show
    from ds_moe_mtl.benchmark.planning import on_paper, report
    from ds_moe_mtl.benchmark.workload import find_workload

    def say(line: str) -> None:
        if not asked.json:
            print(line, flush=True)

    machine, memory = _machine(asked)
    workload = find_workload(config, asked.shape, say)
    # Planned for GPUs where there are any, or their memory is given; else for this CPU.
    paper = on_paper(workload, machine, gpu=memory is not None)
    plan = report(paper, memory, _calibrated(asked, config, machine.gpus, say))
    show(plan, say)
    if asked.write is not None:
        from ds_moe_mtl.benchmark.job_files import write_job

        name = asked.config or str(DEFAULT_EXPERIMENT)
        for path in write_job(asked.write, paper, plan, name, asked.overrides):
            say(f"written: {path}")
    if asked.json:
        print(json.dumps(plan))
    return 0


def _check_plannable(config: RunConfig, calibrate: float) -> None:
    """Raise UserError for a run that the planner cannot count, or cannot calibrate."""
    if config.model.kind == "task_moe":
        raise UserError(
            "model.kind = task_moe: the planner does not count experts that are whole layers; "
            "allowed: single, mt_dense, mt_switch, mt_tag"
        )
    if calibrate and config.model.kind in SPARSE_KINDS and config.moe.layers != "all":
        raise UserError(
            f"moe.layers = {config.moe.layers}: a calibration extends the times of thin copies, "
            "whose layers are all alike; allowed: --calibrate 0, or moe.layers=all"
        )


def _machine(asked: _Plan):
    """Return the machine of the cost model, and bytes of a GPU, None where there is none."""
    import torch

    from ds_moe_mtl.planner.cost import Machine

    local = torch.cuda.device_count()
    gpus = asked.gpus or max(1, local)
    machine = Machine(
        gpus,
        min(gpus, asked.gpus_per_node),
        1e12 * asked.tflops,
        1e9 * asked.memory_bandwidth,
        1e9 * asked.nvlink,
        1e9 * asked.network,
        1e-6 * asked.latency,
    )
    if asked.gpu_memory is not None:
        return machine, asked.gpu_memory * GIB
    return machine, torch.cuda.get_device_properties(0).total_memory if local else None


def _calibrated(asked: _Plan, config: RunConfig, ranks: int, say: Say) -> dict | None:
    """Return what a calibration here found, or None where this machine cannot have the ranks."""
    if not asked.calibrate:
        return None
    import torch

    room = torch.cuda.device_count() or len(os.sched_getaffinity(0))
    if ranks > room:
        say(f"note: {ranks} ranks do not fit this machine ({room}): no step time is predicted here")
        return None
    from ds_moe_mtl.benchmark.worker import measure

    say(f"calibrating {asked.calibrate:g} s on {ranks} ranks ...")
    options = {
        "seconds": asked.calibrate,
        "shape": asked.shape,
        "whole": asked.measure,
        "clock": asked.clock,
    }
    return measure("calibrate", config, options, ranks) | {"clock": asked.clock}
