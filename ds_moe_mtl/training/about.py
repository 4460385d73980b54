"""What a run uses: kernel, backend, precision, dispatch, sizes, and the lines that say so."""

from pathlib import Path

import torch
from torch import distributed as dist

import moe_kernels
from ds_moe_mtl.config import RunConfig
from ds_moe_mtl.config.deepspeed import updates_in_one_pass
from ds_moe_mtl.config.levers import SPARSE_KINDS
from ds_moe_mtl.models.network import Network
from ds_moe_mtl.models.token_level.experts import FeedForward, ffn_weights
from ds_moe_mtl.training.plan import RunPlan
from moe_kernels.verified import choose


def about_run(network: Network, plan: RunPlan, deepspeed: dict, device: torch.device) -> dict:
    """Return what is in use, by name, None where it does not apply; nothing falls back.

    network: as it is before DeepSpeed shares its experts out.
    """
    config = plan.config
    sparse = config.model.kind in SPARSE_KINDS
    update = deepspeed["optimizer"]["type"]
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    return {
        "encoder": plan.source.resolved,
        "weights": sum(parameter.numel() for parameter in network.parameters()),
        "backend": dist.get_backend(),
        "precision": config.train.precision,
        "zero_stage": deepspeed["zero_optimization"]["stage"],
        "update": update + _update_in_words(config, deepspeed, device),
        "ep_size": config.moe.ep_size if sparse else None,
        "exchange": config.moe.exchange if sparse and config.moe.ep_size > 1 else None,
        "dispatch": config.moe.dispatch if sparse else None,
        "kernels": _kernels_in_words(network, config, device) if sparse else None,
        "gate_scale": config.moe.gate_scale if sparse else None,
        "attention": network.attention_on(device, dtype[config.train.precision]),
        "encoder_kernels": network.kernels_on(device, dtype[config.train.precision]),
        "routes": _routes_in_words(config) if config.model.kind == "task_moe" else None,
    }


def banner(about: dict, plan: RunPlan, largest: int) -> list[str]:
    """Return the lines a run begins with. largest: examples of the largest step."""
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


def _kernels_in_words(network: Network, config: RunConfig, device: torch.device) -> str:
    """Return what runs the experts, and why where that is not what it usually would be."""
    experts = [module for module in network.modules() if isinstance(module, FeedForward)]
    weights = ffn_weights(experts[:1]) if experts else None
    if weights is None:
        return moe_kernels.resolve_impl(config.moe.impl, device)
    _, b1, _, b2, activation = weights
    biased = b1 is not None and b2 is not None
    impl, why = moe_kernels.choose_ffn(config.moe.impl, device, activation, biased)
    return impl + (f" ({why})" if why else "")


def _update_in_words(config: RunConfig, deepspeed: dict, device: torch.device) -> str:
    if not updates_in_one_pass(deepspeed):
        return ""
    impl, why = choose("update", config.train.update_kernels, device)
    return " in one pass" + (f" by {impl} ({why})" if why else "")


def _routes_in_words(config: RunConfig) -> str:
    router = config.router
    if router.route != "learned":
        return router.route
    learned = f"{router.net}, {router.selection}, vectors {Path(router.vectors).name}"
    return learned + (f", frozen from {router.routes_from}" if router.routes_from else "")
