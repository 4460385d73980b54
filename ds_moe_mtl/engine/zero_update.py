"""ZeRO 1 and 2's optimizer step as one pass over the weights, in pieces that stay in a cache.

DeepSpeed asks every gradient whether it is finite, takes its norm in float64, joins all gradients
of a group to one tensor, casts that, scales it, updates, and casts the weights back: each a pass
over memory, with temporaries as large as the group. Here the norm is one pass (what is not finite
shows in it) and the update another: a piece of the gradients is cast, scaled and used, and the
piece of the 16-bit weights written, before the next. The arithmetic of the update is DeepSpeed's
and torch's, so weights and moments are the same bit for bit where the norm is; the norm itself
is summed in float32 within a piece and in float64 beyond, DeepSpeed's in float64.
"""

from dataclasses import dataclass, field

import torch
from torch.optim.adam import adam

from ds_moe_mtl.config.deepspeed import UPDATE_PIECE


def update_in_one_pass(zero, piece_size: int | None = None) -> None:
    """Make `zero`, DeepSpeed's ZeRO 1 or 2 optimizer around torch's fused Adam, step so.

    For what config.deepspeed.updates_in_one_pass says. piece_size: weights of a piece, where it is
    not to be the device's.
    """
    device = zero.single_partition_of_fp32_groups[0].device
    update = _Update(zero, device, piece_size or UPDATE_PIECE[device.type])
    zero.step = update.step
    zero.scaled_global_norm = update.global_norm
    zero.get_grad_norm_direct = update.grad_norm
    if update.alone:
        # Nothing to reduce: no bucket, and no copies to it and back, of gradients as they are.
        for name in (
            "setup_buckets",
            "reduce_ready_partitions_and_remove_grads",
            "reduce_ipg_grads",
        ):
            setattr(zero, name, _nothing)


def _nothing(*_, **__) -> None:
    pass


@dataclass
class _Piece:
    """Weights [start, stop) of a group's partition, and where their gradients lie."""

    start: int
    stop: int
    sources: list[tuple[int, slice]] = field(default_factory=list)  # gradient, part of it


class _Update:
    """The step, and the buffers that it needs."""

    def __init__(self, zero, device: torch.device, piece_size: int) -> None:
        self.zero = zero
        self.device = device
        self.piece_size = piece_size
        self.alone = torch.distributed.get_world_size() == 1
        self.plans: dict[int, tuple[list[int], list[_Piece]]] = {}

    def step(self, closure=None) -> None:
        """Step, or where a gradient is not finite on any rank skip it; a collective call."""
        zero = self.zero
        norm = self.global_norm()
        zero.overflow = not bool(torch.isfinite(norm))
        scale = zero.loss_scale
        zero._update_scale(zero.overflow)
        zero._global_grad_norm = float("inf") if zero.overflow else norm / scale
        if not zero.overflow:
            factor = self._factor(norm, scale)
            for group in range(len(zero.bit16_groups)):
                self._update(group, factor)
                zero.averaged_gradients[group] = None
            zero._lazy_init_hp_params_optimizer_state()
            gather_weights(zero)
        zero.zero_grad(set_to_none=True)
        for group in range(len(zero.bit16_groups)):
            zero.averaged_gradients[group] = zero.all_grad_tensors[group] = None

    def global_norm(self, norm_type: float = 2) -> torch.Tensor:
        """Return the norm of all groups' gradients on all ranks, fp32; inf: one is not finite.

        In place of DeepSpeed's scaled_global_norm, which sums over the ranks for each group, and
        once more for each group of experts; here once for all. A collective call.
        """
        groups = range(len(self.zero.bit16_groups))
        norms_G = self._over_ranks(torch.stack([self._squares(group) for group in groups])).sqrt()
        norm = torch.linalg.vector_norm(norms_G)
        return norm.where(torch.isfinite(norms_G).all(), torch.full_like(norm, torch.inf))

    def grad_norm(self, gradients, params, norm_type: float = 2) -> torch.Tensor:
        """Return the norm of a group's gradients on all ranks, fp32; -1 where it is not finite.

        In place of DeepSpeed's get_grad_norm_direct; a collective call.
        """
        group = next(i for i, mine in self.zero.averaged_gradients.items() if mine is gradients)
        norm = self._over_ranks(self._squares(group)).sqrt()
        return norm.where(torch.isfinite(norm), torch.full_like(norm, -1.0))

    def _squares(self, group: int) -> torch.Tensor:
        """Return the sum of the squares of a group's gradients on this rank, fp32."""
        norms = [torch.linalg.vector_norm(buffer) for _, buffer in self._pieces(group)]
        if not norms:
            return torch.zeros((), device=self.device)
        return torch.stack(norms).double().square().sum().float()

    def _over_ranks(self, sums: torch.Tensor) -> torch.Tensor:
        """Return sums of this rank's as those of all ranks; a collective call where others are."""
        if not self.alone:
            torch.distributed.all_reduce(sums, group=self.zero.dp_process_group)
        return sums

    def _factor(self, norm: torch.Tensor, scale: float) -> torch.Tensor | None:
        """Return what gradients are multiplied by: clipping over the loss's scale; None for 1."""
        bound = self.zero.clip_grad
        if not bound:
            return None if scale == 1 else torch.tensor(1.0 / scale, device=self.device)
        clip = ((norm / scale + 1e-6) / bound).clamp(min=1.0)
        return 1.0 / (clip * scale)

    def _update(self, number: int, factor: torch.Tensor | None) -> None:
        """Update a group's partition, and its 16-bit weights from it."""
        zero = self.zero
        group = zero.optimizer.param_groups[number]
        weights = zero.single_partition_of_fp32_groups[number]
        rank = torch.distributed.get_rank(zero.real_dp_process_group[number])
        stored = zero.parallel_partitioned_bit16_groups[number][rank]
        state = adam_state(zero.optimizer, weights)
        before = state["step"].clone()
        for piece, buffer in self._pieces(number):
            if factor is not None:
                buffer.mul_(factor)
            part = slice(piece.start, piece.stop)
            state["step"].copy_(before)  # adam counts it up
            adam(
                [weights.data[part]],
                [buffer],
                [state["exp_avg"][part]],
                [state["exp_avg_sq"][part]],
                [],
                [state["step"]],
                fused=True,
                amsgrad=False,
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
                decoupled_weight_decay=isinstance(zero.optimizer, torch.optim.AdamW),
            )
            stored.data[part].copy_(weights.data[part])

    def _pieces(self, number: int):
        """Yield a group's pieces, each with its gradients in fp32, in a buffer used again."""
        gradients = self.zero.averaged_gradients[number]
        sizes = [g.numel() for g in gradients]
        if number not in self.plans or self.plans[number][0] != sizes:
            self.plans[number] = sizes, _plan(sizes, self.piece_size)
        flat = [g.reshape(-1) for g in gradients]
        pieces = self.plans[number][1]
        space = torch.empty(max((p.stop - p.start for p in pieces), default=0), device=self.device)
        for piece in pieces:
            buffer = space[: piece.stop - piece.start]
            parts = [flat[index][part] for index, part in piece.sources]
            torch._foreach_copy_(list(buffer.split([part.numel() for part in parts])), parts)
            yield piece, buffer


def adam_state(optimizer, weights: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the optimizer's state of a partition, as torch's Adam has it; made where it is new."""
    state = optimizer.state[weights]
    if not state:
        state["step"] = torch.zeros((), dtype=torch.float32, device=weights.device)
        state["exp_avg"] = torch.zeros_like(weights)
        state["exp_avg_sq"] = torch.zeros_like(weights)
    return state


def gather_weights(zero) -> None:
    """Give every rank the weights that the others have updated; a collective call."""
    from deepspeed.runtime.utils import all_gather_dp_groups

    all_gather_dp_groups(
        groups_flat=zero.bit16_groups_flat,
        partitioned_param_groups=zero.parallel_partitioned_bit16_groups,
        dp_process_group=zero.real_dp_process_group,
        start_alignment_factor=zero.nccl_start_alignment_factor,
        allgather_bucket_size=zero.allgather_bucket_size,
    )


def _plan(sizes: list[int], piece_size: int) -> list[_Piece]:
    """Return pieces of at most `piece_size` over gradients of `sizes`, which lie end to end."""
    pieces: list[_Piece] = []
    place = 0
    for index, size in enumerate(sizes):
        taken = 0
        while taken < size:
            if not pieces or pieces[-1].stop - pieces[-1].start == piece_size:
                pieces.append(_Piece(place, place))
            last = pieces[-1]
            part = min(size - taken, piece_size - (last.stop - last.start))
            last.sources.append((index, slice(taken, taken + part)))
            taken, place, last.stop = taken + part, place + part, last.stop + part
    return pieces
