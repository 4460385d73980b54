"""One command's work: plan, claim the folder, start the ranks, train, write what a run leaves."""

import gc
import hashlib
import os
import shutil
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed as dist

import moe_kernels
from ds_moe_mtl.config import RunConfig, UserError, dump_config
from ds_moe_mtl.config.deepspeed import resolve_deepspeed, updates_in_one_pass
from ds_moe_mtl.engine.engine import (
    check_devices,
    collective_timeout,
    device_type,
    start_engine,
    start_process_group,
    stop_process_group,
)
from ds_moe_mtl.models.attention.choice import PACKED_FLASH
from ds_moe_mtl.models.description import save_folder
from ds_moe_mtl.models.multitask import SPARSE_KINDS
from ds_moe_mtl.ranks.preflight import check_agreement, fingerprints
from ds_moe_mtl.ranks.rendezvous import Ranks
from ds_moe_mtl.ranks.stop import STOPPED, StopRequest
from ds_moe_mtl.ranks.watchdog import Watchdog
from ds_moe_mtl.training.checkpoint import (
    choose_whole,
    find_resume,
    identity_of,
    load_checkpoint,
    save_checkpoint,
)
from ds_moe_mtl.training.loop import TrainingLoop
from ds_moe_mtl.training.metrics_log import MetricsLog, StepLines
from ds_moe_mtl.training.network import described, new_network
from ds_moe_mtl.training.plan import (
    RunPlan,
    make_plan,
    single_plans,
    task_specs,
)
from ds_moe_mtl.training.results import gather_results, print_results, run_results
from ds_moe_mtl.training.run_folder import RunFolder, environment, write_json
from ds_moe_mtl.training.selection import Selection
from ds_moe_mtl.training.skipped import SkippedSteps

Say = Callable[[str], None]


@dataclass
class _Run:
    """A run before its ranks meet: its plan and its folder."""

    plan: RunPlan
    folder: RunFolder


def train(config: RunConfig, ranks: Ranks, say: Say, last: bool = True) -> int:
    """Train what `config` describes and return the exit status: 0 complete, 75 stopped.

    `say` prints on rank 0 and is silent elsewhere. last=False leaves the process group open for
    another run of this process. Raises UserError, on every rank, for what the user can mend.
    """
    _set_threads(config, ranks)
    check_devices(ranks)
    folder = RunFolder(config, say)
    done = folder.finished()
    if done is not None:
        say(f"{folder.path} is complete already ({done['steps']} steps): nothing to do")
        print_results(done, say)
        return 0
    deepspeed = resolve_deepspeed(config, ranks.world_size, device_type())
    _refuse_inexact_clipping(config, deepspeed)
    try:
        moe_kernels.resolve_impl(config.moe.impl, device_type())
    except ValueError as error:
        raise UserError(f"moe.impl: {error}") from error
    plan = make_plan(config, task_specs(config), say)
    if config.model.kind == "single":
        runs = [_Run(part, RunFolder(part.config, say)) for part in single_plans(plan)]
    else:
        runs = [_Run(plan, folder)]
    network = _first_network(runs, deepspeed, ranks)
    device = _meet([folder, *(run.folder for run in runs)], ranks, collective_timeout(config))
    try:
        check_agreement(_fingerprints(plan), _gather)
        stop = StopRequest(say)
        with Watchdog(ranks, config.train.hang_timeout) as watchdog:
            if config.model.kind == "single" and ranks.rank == 0:
                folder.write_start(deepspeed, environment(ranks, device, {"model_kind": "single"}))
            parts = {}
            for run in runs:
                part = run.folder.finished()
                if part is None:
                    part = _train_one(run, network, deepspeed, device, ranks, stop, watchdog, say)
                    network = None
                    gc.collect()  # an engine is full of cycles: its memory waits for this
                if part is None:
                    return STOPPED
                parts[run.plan.specs[0].name] = part
            results = part
            if config.model.kind == "single":
                results = gather_results(parts, plan.specs)
                if ranks.rank == 0:
                    write_json(folder.path / "results.json", results)
    finally:
        for each in (folder, *(run.folder for run in runs)):
            each.release()
        if last:
            stop_process_group()
    print_results(results, say)
    for run in runs:
        say(f"model: {run.folder.path / 'model'}")
    return 0


def _refuse_inexact_clipping(config: RunConfig, deepspeed: dict) -> None:
    """Raise UserError where DeepSpeed clips by a mean of rank norms, which depends on ep_size."""
    stage = deepspeed["zero_optimization"]["stage"]
    if stage == 0 and config.moe.ep_size > 1 and config.train.clip > 0:
        raise UserError(
            f"{config.deepspeed}: zero_optimization.stage = 0 with moe.ep_size = "
            f"{config.moe.ep_size} and train.clip = {config.train.clip:g}: DeepSpeed's norm is not "
            f"exact there; allowed: stage 1 or 2, or train.clip=0"
        )


def _set_threads(config: RunConfig, ranks: Ranks) -> None:
    """Give each rank its share of the machine's cores, unless it was told otherwise."""
    if config.train.threads is not None:
        torch.set_num_threads(config.train.threads)
    elif "OMP_NUM_THREADS" not in os.environ:
        cores = len(os.sched_getaffinity(0))
        torch.set_num_threads(max(1, cores // ranks.local_world_size))


def _first_network(runs: list[_Run], deepspeed: dict, ranks: Ranks):
    """Return the first unfinished run's (network, encoder hash); bad checkpoints show here."""
    for run in runs:
        if run.folder.finished() is None:
            network = new_network(run.plan)
            identity = identity_of(run.plan, network[1], ranks.world_size, deepspeed)
            find_resume(run.plan.config.run.resume, run.folder.checkpoints, identity)
            return network
    return None


def _meet(folders: list[RunFolder], ranks: Ranks, timeout: timedelta) -> torch.device:
    """Claim the folders on rank 0, start the process group, and tell every rank how it went.

    Raises UserError on every rank where a folder cannot be had.
    """
    fault = ""
    if ranks.rank == 0:
        try:
            for folder in dict.fromkeys(folders):
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


def _train_one(
    run: _Run,
    network,
    deepspeed: dict,
    device: torch.device,
    ranks: Ranks,
    stop: StopRequest,
    watchdog: Watchdog,
    say: Say,
) -> dict | None:
    """Return results.json of one run, or None when it was stopped; a collective call."""
    began = time.perf_counter()
    plan, folder, config = run.plan, run.folder, run.plan.config
    network, sha256 = network or new_network(plan)
    identity = identity_of(plan, sha256, ranks.world_size, deepspeed)
    found = find_resume(config.run.resume, folder.checkpoints, identity)
    about = _about(network, plan, deepspeed, device, ranks)
    engine = start_engine(network, config, deepspeed)
    loader = plan.super_batches(
        ranks.rank, ranks.world_size, about["attention"] != PACKED_FLASH, device.index
    )
    first_step = 0
    chosen = choose_whole(found, say)
    if chosen is not None:
        first_step, loader_state = load_checkpoint(engine, chosen, identity, say)
        loader.load_state_dict(loader_state)
        say(f"continuing {chosen} after step {first_step}")
        watchdog.saved(first_step)
    selection = None
    if config.train.select != "last":

        def write(path: Path, scores: dict) -> None:
            _write_model(engine.module, plan, path, run_results(plan, scores, sha256))

        selection = Selection(
            folder.path, first_step, config.train.patience, write, config.train.select
        )
    log = skipped_lines = None
    if ranks.rank == 0:
        folder.write_start(deepspeed, environment(ranks, device, about))
        log = MetricsLog(folder.path, first_step)
        skipped_lines = StepLines(folder.path / "skipped.jsonl", first_step)
    tasks = [spec.name for spec in plan.specs]
    skipped = SkippedSteps(engine, tasks, folder.path, config.train.max_skipped, skipped_lines, say)
    for line in _banner(about, plan, loader.most_examples):
        say(line)

    def save(step: int) -> None:
        path = save_checkpoint(
            engine,
            folder.checkpoints,
            step,
            identity,
            loader.state_dict(),
            max(1, config.train.keep_checkpoints),
            loop.levers.save,
        )
        say(f"checkpoint: {path}")

    say(f"ready in {time.perf_counter() - began:.1f} s")
    loop = TrainingLoop(
        engine, plan, loader, device, stop, log, skipped, watchdog, save, say, selection
    )
    if chosen is not None:
        loop.levers.load(chosen)
    try:
        if not loop.run(first_step):
            say(f"stopped by {stop.signal_name or 'another rank'}; start it again to continue")
            return None
    finally:
        loader.close()
        if log is not None:
            log.close()
            skipped_lines.close()
    watchdog.progress(loop.steps_done, "model folder")
    if selection is None:
        results = run_results(plan, loop.results, sha256, loop.steps_done)
        with loop.levers.averaged():
            _write_model(engine.module, plan, folder.path / "model", results)
    else:
        results = run_results(plan, selection.results, sha256, loop.steps_done, selection.best_step)
        selection.finish(folder.path / "model")
    if ranks.rank == 0:
        write_json(folder.path / "results.json", results)
        if not config.train.keep_checkpoints:
            shutil.rmtree(folder.checkpoints, ignore_errors=True)
    dist.barrier()
    engine.destroy()
    watchdog.rest()
    return results


def _write_model(network, plan: RunPlan, folder: Path, results: dict) -> None:
    """Write a canonical model folder from all ranks' experts; a collective call."""
    from ds_moe_mtl.moe.convert import plain_state

    state = plain_state(network)
    if state is None:
        return
    about = {"results": results["tasks"], "encoder": results["encoder"], "notes": results["notes"]}
    save_folder(folder, described(network, plan, about), state, plan.tokenizer)


def _about(network, plan: RunPlan, deepspeed: dict, device: torch.device, ranks: Ranks) -> dict:
    """Return what is in use: kernel, backend, precision, dispatch, sizes; nothing falls back."""
    config = plan.config
    sparse = config.model.kind in SPARSE_KINDS
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    if plan.generates:
        attention = network.transformer.config._attn_implementation
    else:
        attention = network.encoder.attention_on(device, dtype[config.train.precision])
    return {
        "encoder": plan.source.resolved,
        "weights": sum(parameter.numel() for parameter in network.parameters()),
        "backend": dist.get_backend(),
        "precision": config.train.precision,
        "zero_stage": deepspeed["zero_optimization"]["stage"],
        "update": _update_in_words(deepspeed),
        "ep_size": config.moe.ep_size if sparse else None,
        "dispatch": config.moe.dispatch if sparse else None,
        "kernels": moe_kernels.resolve_impl(config.moe.impl, device) if sparse else None,
        "gate_scale": config.moe.gate_scale if sparse else None,
        "attention": attention,
        "routes": _routes_in_words(config) if config.model.kind == "task_moe" else None,
    }


def _update_in_words(deepspeed: dict) -> str:
    optimizer = deepspeed["optimizer"]["type"]
    return f"{optimizer} in one pass" if updates_in_one_pass(deepspeed) else optimizer


def _routes_in_words(config: RunConfig) -> str:
    router = config.router
    if router.route != "learned":
        return router.route
    learned = f"{router.net}, {router.selection}, vectors {Path(router.vectors).name}"
    return learned + (f", frozen from {router.routes_from}" if router.routes_from else "")


def _banner(about: dict, plan: RunPlan, largest: int) -> list[str]:
    config = plan.config
    used = ", ".join(f"{key} {value}" for key, value in about.items() if value is not None)
    asked, size = config.train.batch_size, f"{largest} examples"
    if largest < asked:
        size = f"all {size} (train.batch_size = {asked} is more)"
    return [
        f"{config.model.kind}: {used}",
        f"{plan.total_steps} steps of {size}, {plan.warmup_steps} of warm-up, "
        f"lr {config.train.lr:g}",
    ]
