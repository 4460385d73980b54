"""ZeRO 1 and 2's optimizer step by the Triton kernels of update_kernels; the host does not wait.

The gradients are read where they lie, twice in all; clipping, the count of steps and whether the
step is taken are decided on the device. In fp16 the host waits for that decision, because the loss
scale of the next step depends on it. In other precisions it looks one step later (Verdict).
"""

import torch

from ds_moe_mtl.engine.zero_update import adam_state, gather_weights, update_in_one_pass
from update_kernels import AdamOptions, Partition, adam_update


class Verdict:
    """Whether a step was taken, which the device knows before the host.

    finite: bool scalar on the device.
    """

    def __init__(self, engine, finite: torch.Tensor) -> None:
        self.engine, self.finite = engine, finite
        self._skipped: bool | None = None
        self._told, self._event = finite, None
        if finite.is_cuda:
            self._told = torch.empty((), dtype=torch.bool, pin_memory=True)
            self._told.copy_(finite, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    @property
    def skipped(self) -> bool:
        """Whether it was skipped; the host waits until the device has come so far.

        Who asks first has the engine count the step among its skipped ones.
        """
        if self._skipped is None:
            if self._event is not None:
                self._event.synchronize()
            self._skipped = not bool(self._told)
            self.engine.skipped_steps += self._skipped
        return self._skipped


def update_by_kernels(engine) -> None:
    """Make the engine's ZeRO 1 or 2 optimizer, around torch's Adam or AdamW, step so.

    For what config.deepspeed.updates_in_one_pass says.
    """
    zero = engine.optimizer
    update_in_one_pass(zero)  # norms of single groups, and one rank's hooks, are its
    zero.step = _KernelUpdate(engine).step


class _KernelUpdate:
    """The step."""

    def __init__(self, engine) -> None:
        self.engine, self.zero = engine, engine.optimizer
        self.alone = torch.distributed.get_world_size() == 1
        self.waits = engine.fp16_enabled()

    def step(self, closure=None) -> None:
        """Step, or where a gradient is not finite on any rank do not; a collective call.

        zero.verdict is what came of it, None where the host has waited for zero.overflow.
        """
        zero = self.zero
        groups = range(len(zero.bit16_groups))
        outcome = adam_update(
            [zero.averaged_gradients[group] for group in groups],
            [self._partition(group) for group in groups],
            [self._options(group) for group in groups],
            scale=float(zero.loss_scale),
            bound=float(zero.clip_grad or 0.0),
            reduce=None if self.alone else self._reduce,
            impl="triton",
        )
        zero._global_grad_norm = outcome.norm
        zero.overflow = self.waits and not bool(outcome.finite)
        zero.verdict = None if self.waits else Verdict(self.engine, outcome.finite)
        zero._update_scale(zero.overflow)
        zero._lazy_init_hp_params_optimizer_state()
        gather_weights(zero)
        zero.zero_grad(set_to_none=True)
        for group in groups:
            zero.averaged_gradients[group] = zero.all_grad_tensors[group] = None

    def _partition(self, number: int) -> Partition:
        zero = self.zero
        weights = zero.single_partition_of_fp32_groups[number]
        rank = torch.distributed.get_rank(zero.real_dp_process_group[number])
        stored = zero.parallel_partitioned_bit16_groups[number][rank]
        state = adam_state(zero.optimizer, weights)
        moments = state["exp_avg"], state["exp_avg_sq"]
        return Partition(weights.data, *moments, state["step"], stored.data)

    def _options(self, number: int) -> AdamOptions:
        group = self.zero.optimizer.param_groups[number]
        decoupled = isinstance(self.zero.optimizer, torch.optim.AdamW)
        rates = (float(group["lr"]), *map(float, group["betas"]), float(group["eps"]))
        return AdamOptions(*rates, float(group["weight_decay"]), decoupled)

    def _reduce(self, total: torch.Tensor) -> None:
        torch.distributed.all_reduce(total, group=self.zero.dp_process_group)
