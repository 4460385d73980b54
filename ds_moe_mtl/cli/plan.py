"""ds-moe-mtl plan: memory, traffic and step time of a run before it is queued."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from pathlib import Path

from ds_moe_mtl.cli.arguments import Parser, answer
from ds_moe_mtl.config import DEFAULT_EXPERIMENT, RunConfig, UserError, load_config

GIB = 2**30
OTHERWISE = "h100-sxm"
"""The card of the cost model where neither --card nor this machine names one."""

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
    card: str | None
    tflops: float | None
    memory_bandwidth: float | None
    nvlink: float | None
    network: float
    nics: int | None
    latency: float
    host_wait: float
    calibrate: float
    measure: bool
    clock: str
    write: Path | None
    json: bool

    def __post_init__(self) -> None:
        """Raise UserError for a number out of its range, and for a job of random weights."""
        above_zero = ("gpus", "gpus_per_node", "gpu_memory", "tflops", "memory_bandwidth")
        for name in (*above_zero, "nvlink", "network", "nics"):
            value = getattr(self, name)
            if value is not None and not 0 < value < inf:
                option = name.replace("_", "-")
                raise UserError(f"--{option} = {value:g}; allowed: a number above 0")
        if not all(
            0 <= seconds < inf for seconds in (self.calibrate, self.latency, self.host_wait)
        ):
            raise UserError("--calibrate, --latency and --host-wait: allowed: a number from 0 on")
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
    parser.add_argument("--gpu-memory", type=float, help="GiB of one (its card's, if any)")
    _add_machine(parser)
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


def _add_machine(parser: Parser) -> None:
    """Add what the cost model takes a machine to be; a card gives what is left out."""
    from ds_moe_mtl.planner.cards import CARDS

    add = parser.add_argument
    add("--card", choices=CARDS, help="kind of GPU (this machine's; else h100-sxm, for time alone)")
    add("--tflops", type=float, help="sustained in products (the card's peak, by their shape)")
    add("--memory-bandwidth", type=float, help="GB/s (0.9 of the card's)")
    add("--nvlink", type=float, help="GB/s a GPU, one way (two thirds of the card's)")
    add("--network", type=float, default=40.0, help="GB/s a network card, one way (40)")
    add("--nics", type=int, help="network cards a node, shared by its GPUs (one for each)")
    add("--latency", type=float, default=10.0, help="us a message (10)")
    add("--host-wait", type=float, default=50.0, help="us, where the host waits in a layer (50)")


def _plan(asked: _Plan) -> int:
    config = load_config(asked.config, asked.overrides)
    _check_plannable(config)
    from ds_moe_mtl.benchmark.plan_table import show
    from ds_moe_mtl.benchmark.planning import on_paper, report
    from ds_moe_mtl.benchmark.workload import find_workload

    def say(line: str) -> None:
        if not asked.json:
            print(line, flush=True)

    if asked.write is not None:
        from ds_moe_mtl.benchmark.job_files import choose, new_files, write_job

        new_files(asked.write)  # before the work
    machine, memory = _machine(asked, config.train.precision, say)
    _check_exchange(config.moe, machine, say)
    workload = find_workload(config, asked.shape, say)
    # Planned for GPUs where there are any, or their memory is given; else for this CPU.
    paper = on_paper(workload, machine, gpu=memory is not None)
    plan = report(paper, memory, _calibrated(asked, config, machine.gpus, say))
    show(plan, say)
    if asked.write is not None:
        _say_what_differs(config.moe, choose(plan)["ep_size"], machine, say)
        name = asked.config or str(DEFAULT_EXPERIMENT)
        for path in write_job(asked.write, paper, plan, name, asked.overrides):
            say(f"written: {path}")
    if asked.json:
        print(json.dumps(plan))
    return 0


def _check_plannable(config: RunConfig) -> None:
    """Raise UserError for a run that the planner cannot count."""
    if config.model.kind == "task_moe":
        raise UserError(
            "model.kind = task_moe: the planner does not count experts that are whole layers; "
            "allowed: single, mt_dense, mt_switch, mt_tag"
        )


def _say_what_differs(moe, advised: int, machine, say: Say) -> None:
    """Tell what the written job has of experts that the run has not."""
    from ds_moe_mtl.planner.network import has_hierarchy

    if moe.ep_size != advised:
        say(f"note: the job has moe.ep_size={advised}, as advised, not the run's {moe.ep_size}")
    if moe.exchange != "flat" and not has_hierarchy(advised, machine):
        say("note: the job has moe.exchange=flat: its experts' ranks have no hosts to gather on")


def _check_exchange(moe, machine, say: Say) -> None:
    """Tell of an exchange that the run would refuse on these nodes."""
    from ds_moe_mtl.planner.network import has_hierarchy

    if moe.exchange != "flat" and not has_hierarchy(moe.ep_size, machine):
        say(
            f"note: a run with moe.exchange = {moe.exchange} and moe.ep_size = {moe.ep_size} ends "
            f"at its start on {machine.gpus} GPUs, {machine.per_node} a node: allowed there: flat"
        )


def _machine(asked: _Plan, precision: str, say: Say):
    """Return the machine of the cost model, and bytes of a GPU, None where there is none.

    Raises UserError for a precision whose peak the card's data sheet does not have.
    """
    import torch

    from ds_moe_mtl.planner.cards import CARDS, card_name
    from ds_moe_mtl.planner.network import Machine
    from ds_moe_mtl.planner.rates import LINK_SHARE, MEMORY_SHARE

    local = torch.cuda.device_count()
    here = torch.cuda.get_device_name(0) if local else ""
    name = asked.card or card_name(here)
    if local and name is None:
        say(f"note: {here} is not in the table of cards: the cost model takes an {OTHERWISE}")
    card = CARDS[name or OTHERWISE]
    peak = card.peak(precision)
    if asked.tflops is None and peak is None:
        raise UserError(
            f"--card {name}: no peak of products in {precision}; allowed: --tflops, or fp16"
        )
    bandwidth = asked.memory_bandwidth or MEMORY_SHARE * card.bandwidth / 1e9
    gpus = asked.gpus or max(1, local)
    nodes = -(-gpus // asked.gpus_per_node)
    if gpus % nodes:
        raise UserError(
            f"--gpus {gpus} with --gpus-per-node {asked.gpus_per_node}: not as many on each of "
            f"{nodes} nodes; allowed: a multiple of the nodes, {gpus // nodes * nodes} or "
            f"{(gpus // nodes + 1) * nodes}"
        )
    machine = Machine(
        gpus,
        gpus // nodes,
        peak if asked.tflops is None else 1e12 * asked.tflops,
        1e9 * bandwidth,
        1e9 * asked.nvlink if asked.nvlink else LINK_SHARE * card.link,
        1e9 * asked.network,
        1e-6 * asked.latency,
        1e-6 * asked.host_wait,
        None if asked.tflops is None else 1.0,
        asked.nics,
    )
    if asked.gpu_memory is not None:
        return machine, asked.gpu_memory * GIB
    if asked.card is not None:
        return machine, card.memory
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
