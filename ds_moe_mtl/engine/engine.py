"""DeepSpeed's engine around the network: process group, optimizer, device, precision."""

import contextlib
import logging
import os
import socket
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

import torch

from ds_moe_mtl.config import RunConfig, Unmet, UserError
from ds_moe_mtl.config.deepspeed import updates_in_one_pass
from ds_moe_mtl.engine.clipping import clip_apart
from ds_moe_mtl.engine.contract import check_contract
from ds_moe_mtl.engine.host_memory import keep_freed_memory
from ds_moe_mtl.engine.kernel_update import Verdict, update_by_kernels
from ds_moe_mtl.engine.shapes import set_shapes
from ds_moe_mtl.engine.zero_update import update_in_one_pass
from ds_moe_mtl.models import MultiTaskNetwork
from ds_moe_mtl.models.token_level.moe_layer import MoELayer
from ds_moe_mtl.ranks.absentees import absentees_told
from ds_moe_mtl.ranks.rendezvous import Ranks, apply, free_port
from ds_moe_mtl.ranks.siblings import siblings_watched
from moe_kernels.verified import choose

MARGIN = timedelta(minutes=10)
"""What a collective may take beyond train.hang_timeout."""


@dataclass(frozen=True)
class Update:
    """What one call of optimizer_step did.

    norm: of the gradient before clipping, where known; inf where skipped. verdict: whether it was
    skipped (a gradient was not finite: weights and moments stayed, on every rank), or where the
    host will find that out.
    """

    norm: float | None
    verdict: bool | Verdict

    @property
    def is_late(self) -> bool:
        """Whether the host would wait for the device to know `skipped`; the same on every rank."""
        return isinstance(self.verdict, Verdict)

    @property
    def skipped(self) -> bool:
        """Whether the step was skipped."""
        return self.verdict.skipped if isinstance(self.verdict, Verdict) else self.verdict

    def kept(self, sums: torch.Tensor) -> torch.Tensor:
        """Return sums over the step's examples, 0 where it was skipped; the host does not wait."""
        if isinstance(self.verdict, Verdict):
            return sums.where(self.verdict.finite, torch.zeros_like(sums))
        return torch.zeros_like(sums) if self.verdict else sums


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


def collective_timeout(config: RunConfig) -> timedelta:
    """Return how long a collective may take: longer than the watchdog waits, which knows more."""
    return timedelta(seconds=config.train.hang_timeout) + MARGIN


def start_process_group(ranks: Ranks, timeout: timedelta = MARGIN) -> torch.device:
    """Join the process group of all ranks, or stay in it, and return this rank's device.

    timeout: of its collectives. Raises UserError where rank 0's port is taken, and for a DeepSpeed
    whose insides are not known; Unmet where the ranks do not meet in time.
    """
    apply(ranks, os.environ)
    kind = device_type()
    os.environ.setdefault("DS_ACCELERATOR", kind)  # otherwise it guesses, and warns of its guess
    import deepspeed

    check_contract()
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # DeepSpeed's business, repeated by every rank.
    warnings.filterwarnings("ignore", "`torch.distributed.*deprecated", FutureWarning)
    if kind == "cpu":
        # Compiled inside init_distributed on CPU (24 s, and it needs a compiler); gloo does
        # without it.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        keep_freed_memory()
        device = torch.device("cpu")
    else:
        device = torch.device("cuda", ranks.local_rank)
        torch.cuda.set_device(device)
    for last in (False, False, True):
        try:
            with absentees_told(ranks), siblings_watched(os.environ):
                deepspeed.init_distributed(
                    dist_backend="nccl" if kind == "cuda" else "gloo",
                    auto_mpi_discovery=False,
                    verbose=False,
                    timeout=timeout,
                )
            break
        except torch.distributed.DistError as error:
            if "EADDRINUSE" not in str(error):
                raise _unmet(ranks, error) from error
            # A port that was free when it was drawn; a world of one may take another.
            if last or ranks.launcher != "python":
                raise UserError(
                    f"port {os.environ['MASTER_PORT']} is taken, by another run on this machine "
                    "perhaps; allowed: a free one (deepspeed --master_port N, torchrun "
                    "--master_port N, or MASTER_PORT=N)"
                ) from None
            os.environ["MASTER_PORT"] = str(free_port())
    return device


def _unmet(ranks: Ranks, error: Exception) -> Unmet:
    return Unmet(
        f"rank {ranks.rank} of {ranks.world_size} on {socket.gethostname()} has not met the others "
        f"at {ranks.master_addr}:{ranks.master_port}: {str(error).strip().splitlines()[0]}"
    )


def start_engine(network: MultiTaskNetwork, config: RunConfig, deepspeed_config: dict):
    """Return DeepSpeed's engine; MoELayers become TaskMoE layers over moe.ep_size ranks.

    Raises UserError for a DeepSpeed whose insides are not known.
    """
    check_contract()
    import deepspeed

    from ds_moe_mtl.engine.optimizer_groups import parameter_groups
    from ds_moe_mtl.moe import to_deepspeed

    _import_muon()
    if not _experts_are_frozen(network):
        to_deepspeed(network, config.moe.ep_size, _hosts_of_experts(network, config))
    train = config.train
    groups = parameter_groups(network, train.weight_decay, train.betas, config.moe.gate_momentum)
    with _quiet():
        engine, _, _, _ = deepspeed.initialize(
            model=network,
            model_parameters=groups,
            config=deepspeed_config,
            dist_init_required=False,
        )
    set_shapes(network, config, engine.device)
    # DeepSpeed makes groups of its own, with torch's default: 10 minutes for NCCL.
    for group in torch.distributed.distributed_c10d._world.pg_map:
        torch.distributed.distributed_c10d._set_pg_timeout(collective_timeout(config), group)
    if updates_in_one_pass(deepspeed_config):
        if choose("update", train.update_kernels, engine.device).impl == "triton":
            update_by_kernels(engine)
        else:
            update_in_one_pass(engine.optimizer)
    if engine.fp16_enabled() and engine.optimizer.dynamic_loss_scale:
        # train.max_skipped ends such a run, with the examples' names, not an exception.
        engine.optimizer.loss_scaler.raise_error_at_min_scale = False
    return engine


def _experts_are_frozen(network: MultiTaskNetwork) -> bool:
    """Whether there are experts and none learns. They stay in the plain form: DeepSpeed refuses a
    model with MoE layers of its own and no weights of experts to train.
    """
    layers = _sparse_layers(network)
    parameters = [parameter for layer in layers for parameter in layer.experts.parameters()]
    return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)


def _hosts_of_experts(network: MultiTaskNetwork, config: RunConfig):
    """Return where a rank's experts' rows are gathered (moe.hosts); None: they travel at once.

    A collective call. Raises UserError, on every rank, where the hosts' ranks do not allow it.
    """
    from ds_moe_mtl.moe.hosts import host_groups, hosts_of_ranks

    ep_size = config.moe.ep_size
    if config.moe.exchange == "flat" or ep_size == 1 or not _sparse_layers(network):
        return None
    return host_groups(ep_size, hosts_of_ranks())


def _sparse_layers(network: MultiTaskNetwork) -> list[MoELayer]:
    return [layer for layer in network.modules() if isinstance(layer, MoELayer)]


def set_learning_rate(engine, rate: float, rates: Mapping[str, float]) -> None:
    """Give every parameter group this step's rate: the one of its name in `rates`, or `rate`."""
    for group in engine.optimizer.param_groups:
        group["lr"] = rates.get(group.get("name"), rate)


def optimizer_step(engine, wants_norm: bool, config: RunConfig | None = None) -> Update:
    """Step (at an accumulation boundary) and return what came of it; a collective call.

    Router and model are clipped apart first where the configuration says so.

    ZeRO 1 and 2 compute the norm anyway, agree on whether it is finite and skip the step where it
    is not. Stage 0 does neither: there the norm is computed if wanted, and the ranks agree here.
    """
    apart = None
    if config is not None and config.clips_apart and engine.is_gradient_accumulation_boundary():
        apart = clip_apart(engine, config)
    if not engine.zero_optimization():
        return _plain_step(engine, wants_norm, apart)
    engine.step()
    verdict = getattr(engine.optimizer, "verdict", None)
    if verdict is None:
        verdict = bool(engine.optimizer.overflow)
    norm = None
    if wants_norm:  # the host waits for a GPU to have it
        norm = engine.get_global_grad_norm() if apart is None else apart
        verdict = verdict.skipped if isinstance(verdict, Verdict) else verdict
    return Update(None if norm is None else float(norm), verdict)


def _plain_step(engine, wants_norm: bool, clipped_norm: float | None) -> Update:
    """Step without ZeRO; gradients that are not finite are dropped on every rank.

    clipped_norm: that of the gradients before they were clipped; None: they were not.
    """
    if not engine.is_gradient_accumulation_boundary():
        engine.step()
        return Update(None, False)
    gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    bad = (~torch.isfinite(norm)).float()
    if torch.distributed.get_world_size() > 1:
        torch.distributed.all_reduce(bad, op=torch.distributed.ReduceOp.MAX)
    skipped = bool(bad)
    if skipped:
        # After clipping, which wants gradients: without any AdamW moves and decays nothing.
        dropping = engine.optimizer.register_step_pre_hook(lambda *_: engine.zero_grad())
        engine.step()
        dropping.remove()
        engine.skipped_steps += 1
    else:
        engine.step()
    if clipped_norm is not None:
        norm = clipped_norm
    return Update(float(norm) if wants_norm else None, skipped)


def rank_zero_says(value):
    """Return rank 0's value on every rank; a collective call."""
    said = [value]
    torch.distributed.broadcast_object_list(said, src=0)
    return said[0]


def stop_process_group() -> None:
    """Leave the process group; without it one mpich run in six aborted at its end.

    By DeepSpeed's own function, which also lets go of the groups that it keeps: a later run of
    this process makes new ones.
    """
    if torch.distributed.is_initialized():
        import deepspeed

        deepspeed.comm.destroy_process_group()


def _import_muon() -> None:
    """Import DeepSpeed's Muon, whose class every engine asks for, without torch's compiler.

    Decorators there ask torch.compile, which takes 2.5 s to import itself at each start of each
    rank, for an optimizer that no configuration here admits.
    """
    plain = torch.compile
    torch.compile = lambda model=None, **_: (lambda f: f) if model is None else model
    try:
        import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401
    except ImportError:
        pass  # a DeepSpeed without it
    finally:
        torch.compile = plain


@contextlib.contextmanager
def _quiet():
    """Keep DeepSpeed's own prints (a line a layer and rank) out of the run's output."""
    with open(os.devnull, "w") as sink, contextlib.redirect_stdout(sink):
        yield
