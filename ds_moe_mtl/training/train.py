"""One command's work: plan, claim the folder, start the ranks, train, write what a run leaves."""

import hashlib
import zlib
from collections.abc import Callable
from datetime import timedelta

import torch
from torch import distributed as dist

from ds_moe_mtl.config import RunConfig, UserError, dump_config
from ds_moe_mtl.config.deepspeed import resolve_deepspeed
from ds_moe_mtl.config.elastic import fit_to_ranks
from ds_moe_mtl.config.named import named_class
from ds_moe_mtl.engine.engine import (
    check_devices,
    collective_timeout,
    device_type,
    start_process_group,
    stop_process_group,
)
from ds_moe_mtl.engine.native import check_native
from ds_moe_mtl.evaluation.table import print_results
from ds_moe_mtl.models.kernels import check_kernels
from ds_moe_mtl.ranks.failures import file_errors_told
from ds_moe_mtl.ranks.machine import EMULATED, emulates_bf16, take_cores
from ds_moe_mtl.ranks.preflight import check_agreement, check_shared, fingerprints, tell_clocks
from ds_moe_mtl.ranks.rendezvous import Ranks
from ds_moe_mtl.ranks.statuses import STOPPED
from ds_moe_mtl.ranks.stop import StopRequest
from ds_moe_mtl.ranks.watchdog import Watchdog
from ds_moe_mtl.tracking.tracker import check_trackers
from ds_moe_mtl.training.contents import compare_finished
from ds_moe_mtl.training.group import HookMakers, group_of
from ds_moe_mtl.training.hooks import Hook
from ds_moe_mtl.training.plan import RunPlan, make_plan, task_specs
from ds_moe_mtl.training.run import Shared
from ds_moe_mtl.training.run_folder import RunFolder

Say = Callable[[str], None]


def train(
    config: RunConfig, ranks: Ranks, say: Say, last: bool = True, hooks: HookMakers = ()
) -> int:
    """Train what `config` describes and return the exit status: 0 complete, 75 stopped.

    `say` prints on rank 0 and is silent elsewhere. last=False leaves the process group open for
    another run of this process. hooks: what a caller has done beside the steps of each run
    (training.hooks). Raises UserError, on every rank, for what the user can mend.
    """
    take_cores(config.train.threads, ranks)
    check_devices(ranks)
    check_trackers(config.track)
    hooks = (*hooks, *(named_class(name, "hooks", Hook) for name in config.hooks))
    folder = RunFolder(config, say)
    done = folder.finished()
    if done is not None:
        note = compare_finished(done, config)
        say(f"{folder.path} is complete already ({done['steps']} steps): nothing to do")
        if note:
            say(note)
        print_results(done, say)
        return 0
    config, fitted = fit_to_ranks(config, ranks.world_size)  # the folder keeps what was asked for
    if fitted:
        say(fitted)
    deepspeed = resolve_deepspeed(config, ranks.world_size, device_type())
    check_native(deepspeed, config)
    check_kernels(config, device_type())
    if config.train.precision == "bf16" and device_type() == "cpu" and emulates_bf16():
        say(EMULATED)
    plan = make_plan(config, task_specs(config), say)
    group = group_of(plan, folder, say)
    group.build_first(deepspeed, ranks)
    device = _meet(group.folders, ranks, collective_timeout(config))
    try:
        tell_clocks(_gather, say)
        check_agreement(_fingerprints(plan), _gather)
        for each in group.folders:
            check_shared(each.path, ranks.rank, _gather)
        stop = StopRequest(say)
        told = file_errors_told(folder.path)
        with Watchdog(ranks, config.train.hang_timeout) as watchdog, told:
            shared = Shared(deepspeed, device, ranks, stop, watchdog, say)
            results = group.train(shared, hooks)
    finally:
        for each in group.folders:
            each.release()
        if last:
            stop_process_group()
    if results is None:
        return STOPPED
    print_results(results, say)
    for model in group.models:
        say(f"model: {model}")
    return 0


def _meet(folders: list[RunFolder], ranks: Ranks, timeout: timedelta) -> torch.device:
    """Claim the folders on rank 0, start the process group, and tell every rank how it went.

    Raises UserError on every rank where a folder cannot be had.
    """
    fault = ""
    if ranks.rank == 0:
        try:
            for folder in folders:
                folder.claim()
        except UserError as error:
            if ranks.world_size == 1:
                raise
            fault = str(error)
    device = start_process_group(ranks, timeout)
    answer = [fault]
    dist.broadcast_object_list(answer, src=0)
    if answer[0]:
        stop_process_group()
        raise UserError(answer[0])
    return device


def _fingerprints(plan: RunPlan) -> dict[str, str]:
    """Return what every rank must share: sources, versions, configuration, tokens of each task."""
    configuration = hashlib.sha256(dump_config(plan.config).encode()).hexdigest()[:16]
    data = {
        spec.name: f"{zlib.crc32(split.input_ids):08x} {zlib.crc32(split.labels):08x}"
        for spec, split in zip(plan.specs, plan.train, strict=True)
    }
    return fingerprints(configuration, data)


def _gather(value: object) -> list:
    """Return every rank's value in rank order; a collective call."""
    everyones = [None] * dist.get_world_size()
    dist.all_gather_object(everyones, value)
    return everyones
