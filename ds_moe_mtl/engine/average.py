"""The mean of a run's weights over its last steps, kept in float32 beside the weights it is of.

Each rank averages what it updates (engine.partitions), so the mean costs 4 bytes more for each of
a rank's own weights and nothing is sent. Uniform averaging of the last iterates: Polyak and
Juditsky 1992; Izmailov et al., 1803.05407.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import distributed as dist

from ds_moe_mtl.config import UserError
from ds_moe_mtl.engine.partitions import own_weights, publish

_FILE = "average_rank_{:05}.safetensors"


class WeightAverage:
    """The mean of the weights after each step from `first_step` + 1 on."""

    def __init__(self, engine, first_step: int) -> None:
        self.engine, self.first_step = engine, first_step
        self._steps = 0
        self._means: list[torch.Tensor] = []

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after `step` steps."""
        if step <= self.first_step:
            return
        weights = own_weights(self.engine)
        self._steps += 1
        if self._steps == 1:
            self._means = [weight.float().clone() for weight in weights]
            return
        for mean, weight in zip(self._means, weights, strict=True):
            mean.lerp_(weight.float(), 1 / self._steps)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Have the module's weights be the mean inside the block; a collective call.

        Before the first averaged step they stay as they are.
        """
        if not self._steps:
            yield
            return
        before = None
        if not self.engine.zero_optimization():  # there the module's weights are the only ones
            before = [weight.clone() for weight in own_weights(self.engine)]
        publish(self.engine, self._means)
        try:
            yield
        finally:
            publish(self.engine, before)

    def save(self, folder: Path) -> None:
        """Write this rank's mean into a checkpoint. Raises OSError where it cannot."""
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        tensors = {f"{number:05}": mean.cpu() for number, mean in enumerate(self._means)}
        tensors["steps"] = torch.tensor(self._steps)
        try:
            save_file(tensors, folder / _FILE.format(dist.get_rank()))
        except SafetensorError as error:  # of a full disk, too
            raise OSError(str(error)) from error

    def load(self, folder: Path) -> None:
        """Continue the mean of a checkpoint; a collective call.

        Raises UserError, on every rank, where it has none, or one of another topology.
        """
        path = folder / _FILE.format(dist.get_rank())
        faults = [""] * dist.get_world_size()
        dist.all_gather_object(faults, self._read(path))
        for fault in faults:
            if fault:
                raise UserError(
                    f"run.resume: {fault}; with train.average_from a run continues on the same "
                    "ranks, moe.ep_size and ZeRO stage"
                )

    def _read(self, path: Path) -> str:
        """Take a file's mean and return ""; where it does not fit return what is wrong."""
        from safetensors.torch import load_file

        if not path.is_file():
            return f"{path.parent} has no {path.name}"
        tensors, weights = load_file(path), own_weights(self.engine)
        steps = int(tensors.pop("steps"))
        means = [tensors[name] for name in sorted(tensors)]
        if means and [m.shape for m in means] != [weight.shape for weight in weights]:
            return f"{path} is the mean of other weights"
        if means:
            means = [m.to(weight.device) for m, weight in zip(means, weights, strict=True)]
        self._steps, self._means = steps, means
        return ""
