"""DeepSpeed's JSON as DeepSpeed itself takes it; and its monitors, which get the losses here."""

import copy
from collections.abc import Mapping

from ds_moe_mtl.config import RunConfig, UserError


def check_native(resolved: Mapping, config: RunConfig) -> None:
    """Raise UserError, one line, where DeepSpeed does not take a resolved JSON, or errs by it.

    It drops keys from release to release (elasticity, sparse_gradients, ...), and types what it
    keeps. Needs no process group: without one the batch is checked as one rank's.
    """
    _refuse_inexact_clipping(resolved, config)
    from deepspeed import comm
    from deepspeed.runtime.config import DeepSpeedConfig

    # DeepSpeed's own view of it: a run of this process before this one may have met its ranks.
    ranks = comm.get_world_size() if comm.is_initialized() else 1
    micro = resolved["train_micro_batch_size_per_gpu"]
    batch = {"train_batch_size": micro * resolved["gradient_accumulation_steps"] * ranks}
    try:
        DeepSpeedConfig(copy.deepcopy({**resolved, **batch}))
    except Exception as error:  # its own, pydantic's, assertions, and what a wrong type leads to
        raise UserError(
            f"{config.deepspeed}: DeepSpeed does not take it: {_in_one_line(error)}"
        ) from error


def _refuse_inexact_clipping(resolved: Mapping, config: RunConfig) -> None:
    """Raise UserError where DeepSpeed clips by a mean of rank norms, which depends on ep_size."""
    stage = resolved["zero_optimization"]["stage"]
    if stage == 0 and config.moe.ep_size > 1 and config.train.clip > 0:
        raise UserError(
            f"{config.deepspeed}: zero_optimization.stage = 0 with moe.ep_size = "
            f"{config.moe.ep_size} and train.clip = {config.train.clip:g}: DeepSpeed's norm is not "
            f"exact there; allowed: stage 1 or 2, or train.clip=0"
        )


def write_monitors(engine, row: Mapping[str, float]) -> None:
    """Give a logged row's losses and dev scores to the monitors that DeepSpeed's JSON asks for.

    DeepSpeed's engine gives them its learning rate and loss scale only. Rank 0 writes.
    """
    if not engine.monitor.enabled:
        return
    names = {key: key for key in row if key.startswith(("loss/", "dev/"))} | {"loss": "train_loss"}
    engine.monitor.write_events(
        [
            (f"Train/Samples/{name}", row[key], engine.global_samples)
            for key, name in names.items()
            if key in row
        ]
    )


def _in_one_line(error: Exception) -> str:
    """Return what an error says; of pydantic's, the key and what is wrong with it."""
    faults = getattr(error, "errors", None)
    if callable(faults):
        first = faults()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    text = " ".join(str(error).split())
    return text or type(error).__name__
