"""The native DeepSpeed JSON of a run: read as it is, its "auto" values filled from the YAML.

What both files say must agree; where they contradict each other, nothing is guessed. Keys that
this file does not name are DeepSpeed's business and pass through untouched.

Examples are counted by the super-batch loader, which deals them to the ranks with sizes at most
one apart. DeepSpeed only divides: it wants train_batch_size = micro x accumulation x ranks. It is
given micro = ceil(batch_size / (ranks x accumulation)) and that product, which is above
train.batch_size where the division leaves a rest.
"""

import difflib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from ds_moe_mtl.config.elastic import AUTO, check_elastic
from ds_moe_mtl.config.errors import UserError
from ds_moe_mtl.config.files import displayed, read_text
from ds_moe_mtl.config.levers import SPARSE_KINDS
from ds_moe_mtl.config.schema import RunConfig

STAGES = (0, 1, 2)
PRECISIONS = ("bf16", "fp16")
ADAM_OPTIONS = ("amsgrad", "maximize", "capturable", "differentiable")
UPDATE_PIECE = {"cpu": 1 << 20, "cuda": 1 << 25}
"""Weights that the update takes at a time (engine.zero_update): on a CPU 4 MB of gradients in
fp32, in its last cache (21M weights, two threads: 38 to 42 ms, with a quarter of it 44 to 54; one
thread is no worse); on a GPU few launches, with 128 MB."""
FILLED = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "zero_optimization",
    "optimizer",
    "scheduler",
)


def resolve_deepspeed(
    config: RunConfig, world_size: int, device: Literal["cpu", "cuda"] = "cpu"
) -> dict[str, Any]:
    """Return the JSON of `config.deepspeed` with nothing left to fill, for so many ranks.

    Raises UserError, one line that names both files' keys and values, for a contradiction and
    for what is known not to work.
    """
    _check_ranks(config, world_size, device)
    file = Path(config.deepspeed)
    resolved = read_deepspeed(file)
    try:
        _check_names(resolved)
        check_elastic(resolved, config)
        _fill_batch(resolved, config, world_size)
        _check_zero(resolved, config)
        _check_order(resolved, config, world_size)
        _check_finite(resolved)
        _fill_precision(resolved, config)
        _fill_optimizer(resolved, config)
        _check_scheduler(resolved)
        _fill_clipping(resolved, config)
        _fill_timers(resolved)
        _check_nothing_left(resolved, ())
        _check_kernels(resolved, config)
    except UserError as error:
        raise UserError(f"{displayed(file)}: {error}") from None
    return resolved


def read_deepspeed(file: Path) -> dict[str, Any]:
    """Return the JSON's object as it stands. Raises UserError for what is not one."""
    name = displayed(file)

    def no_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        for key in keys:
            if keys.count(key) > 1:
                raise UserError(f"{name}: {key} is given twice")
        return dict(pairs)

    try:
        values = json.loads(read_text(file), object_pairs_hook=no_doubles)
    except json.JSONDecodeError as error:
        raise UserError(f"{name}:{error.lineno}: not valid JSON: {error.msg}") from None
    if not isinstance(values, dict):
        raise UserError(f"{name}: not a JSON object; allowed: DeepSpeed's own configuration")
    return values


def updates_in_one_pass(resolved: Mapping[str, Any]) -> bool:
    """Return whether the optimizer's step is ours (engine.zero_update), not DeepSpeed's own.

    It is where ZeRO 1 or 2 shards torch's fused Adam or AdamW on the device, without its further
    options, from fp32 weights, and gradients are accumulated in the weights' type. resolved: what
    resolve_deepspeed returned.
    """
    zero, optimizer = resolved["zero_optimization"], resolved["optimizer"]
    params = optimizer["params"]
    return (
        zero["stage"] in (1, 2)
        and optimizer["type"].lower() in ("adam", "adamw")
        and bool(params.get("torch_adam") and params.get("fused"))
        and not any(params.get(option) for option in ADAM_OPTIONS)
        and not any(
            resolved.get(name, {}).get(f"{name}_master_weights_and_grads") for name in PRECISIONS
        )
        and zero.get("offload_optimizer", {}).get("device", "none") == "none"
        and resolved.get("data_types", {}).get("grad_accum_dtype") is None
        and "zenflow" not in zero
    )


def _check_ranks(config: RunConfig, world_size: int, device: str) -> None:
    """Refuse what the YAML asks of these ranks and they cannot do, whatever the JSON says."""
    train, ep_size = config.train, config.moe.ep_size
    if train.batch_size < world_size * train.accumulation:
        raise UserError(
            f"train.batch_size = {train.batch_size} is smaller than {world_size} ranks x "
            f"train.accumulation = {train.accumulation}; allowed: at least one example each"
        )
    if config.model.kind in SPARSE_KINDS and world_size % ep_size:
        raise UserError(
            f"moe.ep_size = {ep_size} does not divide the number of ranks, {world_size}; "
            "allowed: an ep_size that divides it and moe.num_experts, or run.elastic=true"
        )
    if train.precision == "fp16" and device == "cpu":
        raise UserError("train.precision = fp16 does not run on a CPU; allowed there: bf16, fp32")
    if train.cuda_graphs and device == "cpu":
        raise UserError("train.cuda_graphs = true needs a GPU; allowed on a CPU: false")
    if train.cuda_graphs and world_size > 1:
        raise UserError(
            f"train.cuda_graphs = true on {world_size} ranks, where no graph was ever recorded; "
            "allowed: one rank, or false"
        )


def _check_kernels(resolved: Mapping[str, Any], config: RunConfig) -> None:
    """Refuse kernels that were asked for by name where the update has none."""
    if config.train.update_kernels == "triton" and not updates_in_one_pass(resolved):
        raise UserError(
            "train.update_kernels = triton with an update that is DeepSpeed's own; allowed: auto, "
            "torch, or torch's fused Adam or AdamW under stage 1 or 2, without offload"
        )


def _check_names(values: Mapping[str, Any]) -> None:
    """Refuse a slip in a key that is filled here: DeepSpeed would ignore it in silence."""
    for key in values:
        close = difflib.get_close_matches(key, FILLED, n=1, cutoff=0.85)
        if close and key not in FILLED:
            raise UserError(f"unknown key {key}; nearest known key: {close[0]}")
    if "bfloat16" in values:
        raise UserError("bfloat16 is DeepSpeed's old name; allowed: bf16")


def _fill_batch(values: dict[str, Any], config: RunConfig, world_size: int) -> None:
    batch, accumulation = config.train.batch_size, config.train.accumulation
    shares = world_size * accumulation
    micro = math.ceil(batch / shares)
    _agree(values, "train_batch_size", batch, f"train.batch_size = {batch}")
    _agree(
        values, "gradient_accumulation_steps", accumulation, f"train.accumulation = {accumulation}"
    )
    division = f"{batch} over {world_size} ranks x train.accumulation = {accumulation}"
    because = f"train.batch_size = {division}, which is {micro}"
    _agree(values, "train_micro_batch_size_per_gpu", micro, because)
    values["train_batch_size"] = micro * shares


def _check_zero(values: dict[str, Any], config: RunConfig) -> None:
    zero = _section(values, "zero_optimization", {"stage": 0})
    stage = zero.setdefault("stage", 0)
    if stage == 3 and type(stage) is int:
        why = (
            "DeepSpeed refuses it with native MoE layers"
            if config.model.kind in SPARSE_KINDS
            else "the dense model keeps to what the sparse ones train with"
        )
        raise UserError(
            f"zero_optimization.stage = 3 with model.kind = {config.model.kind}: {why}; "
            "allowed: 0, 1, 2"
        )
    if type(stage) is not int or stage not in STAGES:
        raise UserError(f"zero_optimization.stage = {stage!r}; allowed: 0, 1, 2 (never auto)")
    if stage == 0 and config.train.precision != "fp32":
        # FP16_UnfusedOptimizer takes a zero-gradient step at init; the first update is 0.75 x lr.
        raise UserError(
            f"zero_optimization.stage = 0 with train.precision = {config.train.precision}: "
            "DeepSpeed scales the first update wrongly there; allowed: stage 1 or 2, or fp32"
        )


def _check_order(values: dict[str, Any], config: RunConfig, world_size: int) -> None:
    """Refuse what reduces gradients in the order of the backward pass where ranks differ in it.

    Ranks whose examples take other experts (whole layers) fill DeepSpeed's buckets in another
    order, and gradients of different weights would be added up.
    """
    zero = values["zero_optimization"]
    if config.model.kind != "task_moe" or world_size == 1:
        return
    because = f"with model.kind = task_moe on {world_size} ranks: they may reduce in other orders"
    if zero.get("overlap_comm"):
        raise UserError(f"zero_optimization.overlap_comm = true {because}; allowed: false")
    if zero["stage"] == 2 and config.router.route == "random_instance":
        raise UserError(
            f"zero_optimization.stage = 2 and router.route = random_instance {because}; "
            "allowed: stage 0 or 1"
        )


def _check_finite(values: dict[str, Any]) -> None:
    """Refuse what switches off DeepSpeed's check that gradients are finite."""
    for name, key in (("zero_optimization", "compute_grad_norm"), ("bf16", "check_grad_overflow")):
        if _section(values, name, {}).get(key) is False:
            raise UserError(
                f"{name}.{key} = false: a step whose gradients are not finite would be taken; "
                "allowed: true, or leave it out"
            )


def _fill_precision(values: dict[str, Any], config: RunConfig) -> None:
    precision = config.train.precision
    if all(_section(values, name, {}).get("enabled") is True for name in PRECISIONS):
        raise UserError("bf16.enabled and fp16.enabled are both true; allowed: one of them")
    for name in PRECISIONS:
        section = _section(values, name, {})
        wanted = name == precision
        enabled = section.get("enabled", AUTO)
        if enabled != AUTO and enabled is not wanted:
            raise UserError(
                f"{name}.enabled = {json.dumps(enabled)} contradicts train.precision = "
                f'{precision}; make them agree or write "auto"'
            )
        section["enabled"] = wanted
    for name in ("amp", "torch_autocast"):
        if name in values and _section(values, name, {}).get("enabled"):
            raise UserError(
                f"{name}.enabled = true contradicts train.precision = {precision}; "
                f"allowed: no {name}, the precision is the YAML's"
            )


def _fill_optimizer(values: dict[str, Any], config: RunConfig) -> None:
    optimizer = _section(values, "optimizer", {})
    kind = optimizer.setdefault("type", "AdamW")
    if not isinstance(kind, str) or kind.lower() not in ("adam", "adamw", "adamax"):
        raise UserError(f"optimizer.type = {kind!r}; allowed: Adam, AdamW, Adamax")
    params = _section(optimizer, "params", {}, "optimizer.")
    train = config.train
    named = {"lr": train.lr, "betas": list(train.betas), "eps": train.eps}
    for key, value in (named | {"weight_decay": train.weight_decay}).items():
        _agree(params, key, value, f"train.{key} = {value}", "optimizer.params.")
    if kind.lower() == "adamax":
        # Any class of torch.optim goes, by its own name; ZeRO wants to be told that it may.
        optimizer["type"] = "Adamax"
        values.setdefault("zero_allow_untested_optimizer", True)
        return
    # torch's own Adam needs no compiler; fused, 21M added weights cost it 34 ms, not 117 to 407.
    if params.setdefault("torch_adam", True) and not params.get("foreach"):
        params.setdefault("fused", True)


def _fill_clipping(values: dict[str, Any], config: RunConfig) -> None:
    """DeepSpeed clips all weights together; router and model apart are clipped before its step."""
    clip, because = config.train.clip, f"train.clip = {config.train.clip}"
    if config.clips_apart:
        clip, because = 0.0, "router.clip, which clips router and model apart"
    _agree(values, "gradient_clipping", clip, because)


def _fill_timers(values: dict[str, Any]) -> None:
    """Switch DeepSpeed's throughput timer off unless it is asked for: it waits for the device twice
    a step, for figures that nobody prints; metrics.jsonl has our own."""
    throughput = _section(_section(values, "timers", {}), "throughput", {}, "timers.")
    throughput.setdefault("enabled", False)


def _check_scheduler(values: dict[str, Any]) -> None:
    scheduler = values.pop("scheduler", AUTO)
    if scheduler not in (AUTO, None):
        kind = scheduler.get("type") if isinstance(scheduler, dict) else scheduler
        raise UserError(
            f"scheduler.type = {kind!r} contradicts train.warmup: the YAML sets warm-up and linear "
            "decay; allowed: no scheduler section"
        )


def _check_nothing_left(value: Any, path: tuple[str, ...]) -> None:
    """Refuse an "auto" that the YAML has no value for."""
    if value == AUTO:
        raise UserError(f'{".".join(path)} = "auto" has nothing to fill it; give its value')
    children = value.items() if isinstance(value, dict) else ()
    for key, child in children:
        _check_nothing_left(child, (*path, key))


def _section(
    values: dict[str, Any], key: str, default: dict[str, Any], prefix: str = ""
) -> dict[str, Any]:
    """Return a sub-object, made from the default where there is none."""
    section = values.setdefault(key, default)
    if not isinstance(section, dict):
        raise UserError(f"{prefix}{key} = {section!r}; allowed: a JSON object")
    return section


def _agree(values: dict[str, Any], key: str, wanted: Any, because: str, prefix: str = "") -> None:
    """Fill a key that is absent or "auto"; refuse any other value than the wanted one."""
    given = values.get(key, AUTO)
    if given not in (AUTO, wanted) or type(given) is bool:
        raise UserError(
            f"{prefix}{key} = {json.dumps(given)} contradicts {because}; "
            'make them agree or write "auto"'
        )
    values[key] = wanted
