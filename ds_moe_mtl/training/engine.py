"""DeepSpeed's engine around the network: process group, optimizer, device, precision."""

import contextlib
import logging
import os
import warnings

import torch

from ds_moe_mtl.config import RunConfig, UserError
from ds_moe_mtl.models import MultiTaskNetwork
from ds_moe_mtl.training.host_memory import keep_freed_memory
from ds_moe_mtl.training.rendezvous import Ranks, apply


def device_type() -> str:
    """Return "cuda" where there is a GPU, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def check_devices(ranks: Ranks) -> None:
    """Raise UserError where a machine has GPUs, but fewer than its ranks."""
    gpus = torch.cuda.device_count()
    if gpus and ranks.local_world_size > gpus:
        raise UserError(
            f"{ranks.local_world_size} ranks on this machine but {gpus} GPUs; "
            f"allowed: at most one rank a GPU (--num_gpus {gpus})"
        )


def start_process_group(ranks: Ranks) -> torch.device:
    """Join the process group of all ranks and return this rank's device."""
    apply(ranks, os.environ)
    kind = device_type()
    os.environ.setdefault("DS_ACCELERATOR", kind)  # otherwise it guesses, and warns of its guess
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # DeepSpeed's business, repeated by every rank.
    warnings.filterwarnings("ignore", "`torch.distributed.*deprecated", FutureWarning)
    if kind == "cpu":
        # Compiled inside init_distributed on CPU (24 s, and it needs a compiler); gloo does
        # without it.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        keep_freed_memory()
        # oneDNN compiles a 16-bit product for each shape and by default keeps 1,024 of them: fewer
        # than the sizes of blocks, layers and attention groups that come again.
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "4096")
        device = torch.device("cpu")
    else:
        device = torch.device("cuda", ranks.local_rank)
        torch.cuda.set_device(device)
    deepspeed.init_distributed(
        dist_backend="nccl" if kind == "cuda" else "gloo", auto_mpi_discovery=False, verbose=False
    )
    return device


def start_engine(network: MultiTaskNetwork, config: RunConfig, deepspeed_config: dict):
    """Return DeepSpeed's engine; MoELayers become TaskMoE layers over moe.ep_size ranks."""
    import deepspeed

    from ds_moe_mtl.moe import to_deepspeed
    from ds_moe_mtl.moe.optimizer_groups import parameter_groups

    to_deepspeed(network, config.moe.ep_size)
    train = config.train
    groups = parameter_groups(network, train.weight_decay, train.betas, config.moe.gate_momentum)
    with _quiet():
        engine, _, _, _ = deepspeed.initialize(
            model=network,
            model_parameters=groups,
            config=deepspeed_config,
            dist_init_required=False,
        )
    return engine


def set_learning_rate(engine, rate: float) -> None:
    """Give every parameter group this step's rate."""
    for group in engine.optimizer.param_groups:
        group["lr"] = rate


def optimizer_step(engine, wants_norm: bool) -> float | None:
    """Step (at an accumulation boundary) and return the gradient's norm before clipping.

    ZeRO 1 and 2 compute it anyway; stage 0 does not keep it, so there it is computed if wanted.
    """
    norm = None
    if wants_norm and not engine.zero_optimization():
        gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients))
    engine.step()
    if engine.zero_optimization() and engine.get_global_grad_norm() is not None:
        norm = float(engine.get_global_grad_norm())
    return norm


def stop_process_group() -> None:
    """Leave the process group; without it one mpich run in six aborted at its end."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@contextlib.contextmanager
def _quiet():
    """Keep DeepSpeed's own prints (a line a layer and rank) out of the run's output."""
    with open(os.devnull, "w") as sink, contextlib.redirect_stdout(sink):
        yield
