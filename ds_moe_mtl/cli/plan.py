"""ds-moe-mtl plan: memory, traffic and step time of a run before it is queued."""

import json
from pathlib import Path

from ds_moe_mtl.cli.arguments import Parser, answer
from ds_moe_mtl.config import UserError, load_config
from ds_moe_mtl.config.deepspeed import SPARSE_KINDS

GIB = 2**30


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
    options = parser.parse_run(arguments)
    return answer(lambda: _plan(options))


def _plan(options) -> int:
    for name in ("gpus", "gpus_per_node", "gpu_memory", "tflops", "memory_bandwidth", "nvlink"):
        _positive(name, getattr(options, name))
    _positive("network", options.network)
    if options.calibrate < 0 or options.latency < 0:
        raise UserError("--calibrate and --latency: allowed: 0 or more")
    if options.write is not None and options.shape is not None:
        raise UserError("--write with --shape: a job trains an encoder; allowed: model.encoder=...")
    config = load_config(options.config, options.overrides)
    _check_plannable(config, options.calibrate)
    import torch

    from ds_moe_mtl.benchmark.plan_table import show
    from ds_moe_mtl.benchmark.planning import on_paper, report
    from ds_moe_mtl.benchmark.workload import find_workload
    from ds_moe_mtl.planner.cost import Machine

    def say(line: str) -> None:
        if not options.json:
            print(line, flush=True)

    local = torch.cuda.device_count()
    gpus = options.gpus or max(1, local)
    machine = Machine(
        gpus,
        min(gpus, options.gpus_per_node),
        1e12 * options.tflops,
        1e9 * options.memory_bandwidth,
        1e9 * options.nvlink,
        1e9 * options.network,
        1e-6 * options.latency,
    )
    memory = None
    if options.gpu_memory is not None:
        memory = options.gpu_memory * GIB
    elif local:
        memory = torch.cuda.get_device_properties(0).total_memory
    workload = find_workload(config, options.shape, say)
    # Planned for GPUs where there are any, or their memory is given; else for this CPU.
    paper = on_paper(workload, machine, gpu=memory is not None)
    calibrated = _calibrated(options, config, gpus, local, say)
    plan = report(paper, memory, calibrated)
    show(plan, say)
    if options.write is not None:
        from ds_moe_mtl.benchmark.job_files import write_job

        name = options.config or "ds_configs/experiments/embedded_mttag_minilm.yaml"
        for path in write_job(options.write, paper, plan, name, options.overrides):
            say(f"written: {path}")
    if options.json:
        print(json.dumps(plan))
    return 0


def _check_plannable(config, calibrate: float) -> None:
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


def _positive(name: str, value: float | None) -> None:
    if value is not None and value <= 0:
        raise UserError(f"--{name.replace('_', '-')} = {value:g}; allowed: above 0")


def _calibrated(options, config, ranks: int, local_gpus: int, say) -> dict | None:
    """Return what a calibration here found, or None where this machine cannot have the ranks."""
    import os

    if not options.calibrate:
        return None
    room = local_gpus or len(os.sched_getaffinity(0))
    if ranks > room:
        say(f"note: {ranks} ranks do not fit this machine ({room}): no step time is predicted here")
        return None
    from ds_moe_mtl.ranks.local import on_ranks

    say(f"calibrating {options.calibrate:g} s on {ranks} ranks ...")
    found = on_ranks(
        "calibrate",
        config,
        {
            "seconds": options.calibrate,
            "shape": options.shape,
            "whole": options.measure,
            "clock": options.clock,
        },
        ranks,
    )
    return found | {"clock": options.clock}
