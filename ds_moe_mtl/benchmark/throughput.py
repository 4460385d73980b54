"""Sparse against FLOP-matched dense on the same batches, alternated in one run.

Two tables: the model alone (forward + backward of the plain network) and the whole training step
on DeepSpeed's engine (forward, backward with gradient reduction, optimizer).
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median, quantiles

import torch

from ds_moe_mtl.config import RunConfig
from ds_moe_mtl.config.deepspeed import resolve_deepspeed
from ds_moe_mtl.data import MultiTaskBatch
from ds_moe_mtl.evaluation.outputs import network_inputs
from ds_moe_mtl.models import MultiTaskNetwork
from ds_moe_mtl.models.losses import sequence_losses
from ds_moe_mtl.training.engine import (
    device_type,
    optimizer_step,
    start_engine,
    start_process_group,
    stop_process_group,
)
from ds_moe_mtl.training.network import new_network
from ds_moe_mtl.training.plan import RunPlan, make_plan, task_specs
from ds_moe_mtl.training.rendezvous import rendezvous

KINDS = ("mt_dense", "mt_switch", "mt_tag")
STOCK = {"stock_capacity": True, "stock_no_drop": False}
"""DeepSpeed's own layer in our network: whether it drops tokens."""

WARM_UP = 2
"""Rounds that are run and not counted."""

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def measure(
    config: RunConfig, rounds: int, clock: str, stock: bool, say: Callable[[str], None]
) -> dict[str, object]:
    """Return {"model", "step"}: rows by kind, and what they stand on. One process.

    stock: DeepSpeed's own MoE layer too, in the same network on the same unpadded tokens.

    A row holds medians and quartiles in ms, examples and real tokens a second, and the ratio of
    its time to mt_dense's. clock "cpu" counts this process's CPU time: on one thread it is what
    the wall clock shows on an idle machine.
    """
    device = start_process_group(rendezvous(os.environ))
    try:
        plan = make_plan(config, task_specs(config), say)
        batches = _batches(plan, rounds + WARM_UP, device)
        tokens = median(batch.num_tokens for batch, _ in batches)
        say(f"{rounds} rounds of {config.train.batch_size} examples, {tokens:,.0f} real tokens")
        kinds = (*KINDS, *STOCK) if stock else KINDS
        model = _time_models(plan, kinds, batches, device, CLOCKS[clock])
        step = _time_steps(plan, kinds, batches, device, CLOCKS[clock])
    finally:
        stop_process_group()
    return {
        "model": _rows(model, ("forward", "backward"), config, tokens),
        "step": _rows(step, ("forward", "backward", "optimizer"), config, tokens),
        "device": device_type(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "precision": config.train.precision,
        "clock": clock,
        "rounds": rounds,
        "batch_size": config.train.batch_size,
        "tokens_a_batch": tokens,
        "attention_padding": median(batch.attention_padding for batch, _ in batches),
    }


def _batches(plan: RunPlan, count: int, device) -> list[tuple[MultiTaskBatch, int]]:
    loader = plan.super_batches()
    steps = iter(loader)
    found = []
    for _ in range(count):
        (batch,), examples = next(steps)
        found.append((batch.to(device), examples))
    loader.close()
    return found


def _of_kind(plan: RunPlan, kind: str) -> RunPlan:
    kind = "mt_switch" if kind in STOCK else kind
    model = plan.config.model.model_copy(update={"kind": kind})
    moe = plan.config.moe.model_copy(update={"ep_size": 1})
    return replace(plan, config=plan.config.model_copy(update={"model": model, "moe": moe}))


def _network(plan: RunPlan, kind: str) -> MultiTaskNetwork:
    network, _ = new_network(_of_kind(plan, kind))
    if kind in STOCK:
        from ds_moe_mtl.moe.stock import to_stock

        to_stock(network, STOCK[kind])
    return network


def _time_models(
    plan: RunPlan, kinds: Sequence[str], batches, device, clock
) -> dict[str, list[tuple[float, ...]]]:
    dtype = DTYPES[plan.config.train.precision]
    networks = {kind: _network(plan, kind).to(device, dtype).train() for kind in kinds}
    if any(kind in STOCK for kind in kinds):
        from ds_moe_mtl.moe.stock import join_groups

        for network in networks.values():
            join_groups(network)
    times: dict[str, list[tuple[float, ...]]] = {kind: [] for kind in kinds}
    for number, (batch, examples) in enumerate(batches):
        for kind in _turn(kinds, number):
            network = networks[kind]
            began = _now(device, clock)
            loss = _loss(network(**network_inputs(batch)), network, batch, examples)
            forward = _now(device, clock)
            loss.backward()
            times[kind].append((forward - began, _now(device, clock) - forward))
            network.zero_grad()
    return times


def _time_steps(
    plan: RunPlan, kinds: Sequence[str], batches, device, clock
) -> dict[str, list[tuple[float, ...]]]:
    engines = {}
    for kind in kinds:
        own = _of_kind(plan, kind)
        deepspeed = resolve_deepspeed(own.config, 1, device_type())
        engines[kind] = start_engine(_network(plan, kind), own.config, deepspeed)
        engines[kind].train()
    times: dict[str, list[tuple[float, ...]]] = {kind: [] for kind in kinds}
    for number, (batch, examples) in enumerate(batches):
        for kind in _turn(kinds, number):
            engine = engines[kind]
            began = _now(device, clock)
            loss = _loss(engine(**network_inputs(batch)), engine.module, batch, examples)
            forward = _now(device, clock)
            engine.backward(loss)
            backward = _now(device, clock)
            optimizer_step(engine, wants_norm=False)
            times[kind].append(
                (forward - began, backward - forward, _now(device, clock) - backward)
            )
    return times


def _turn(kinds: Sequence[str], number: int) -> Sequence[str]:
    """Return the kinds in an order that changes from round to round."""
    place = number % len(kinds)
    return (*kinds[place:], *kinds[:place])


def _loss(outputs, network: MultiTaskNetwork, batch: MultiTaskBatch, examples: int) -> torch.Tensor:
    losses_B = sequence_losses(
        outputs.logits_BC, batch.labels_B, network.num_outputs[batch.task_ids_B]
    )
    return (losses_B * batch.weights_B).sum() / examples


def _now(device: torch.device, clock: Callable[[], float]) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock()


def _rows(times, parts: Sequence[str], config: RunConfig, tokens: float) -> dict[str, dict]:
    rows = {}
    for kind, rounds in times.items():
        counted = rounds[WARM_UP:]
        totals = [1e3 * sum(round_) for round_ in counted]
        low, middle, high = quantiles(totals, n=4)
        rows[kind] = {
            "ms": middle,
            "quartiles_ms": [low, high],
            **{
                f"{part}_ms": 1e3 * median(round_[i] for round_ in counted)
                for i, part in enumerate(parts)
            },
            "examples_per_s": 1e3 * config.train.batch_size / middle,
            "tokens_per_s": 1e3 * tokens / middle,
        }
    pairs = {
        kind: [sum(a) / sum(b) for a, b in zip(times[kind], times["mt_dense"], strict=True)]
        for kind in times
    }
    for kind, row in rows.items():
        row["ratio"] = median(pairs[kind][WARM_UP:])
    return rows
