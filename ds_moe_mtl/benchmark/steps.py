"""Training steps of one engine, timed by part."""

import time
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch

from ds_moe_mtl.config.deepspeed import resolve_deepspeed
from ds_moe_mtl.data import MultiTaskBatch
from ds_moe_mtl.engine.engine import device_type, optimizer_step, start_engine
from ds_moe_mtl.models import MultiTaskNetwork
from ds_moe_mtl.models.losses import network_inputs, sequence_losses

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}

Step = tuple[list[MultiTaskBatch], int]
"""A rank's micro-batches, and the examples of the whole super-batch."""


@dataclass
class Split:
    """Seconds of one step. optimizer: with the reduction's end, the norm and the gather."""

    data: float = 0.0
    forward: float = 0.0
    backward: float = 0.0
    optimizer: float = 0.0

    @property
    def total(self) -> float:
        return sum(getattr(self, field.name) for field in fields(self))


class EngineSteps:
    """Our training step on DeepSpeed's engine."""

    def __init__(self, network: MultiTaskNetwork, config, world_size: int, device) -> None:
        self.device = device
        deepspeed = resolve_deepspeed(config, world_size, device_type())
        self.engine = start_engine(network, config, deepspeed)
        self.engine.train()
        self.world_size = world_size

    def step(self, step: Step, clock: Callable[[], float] = time.perf_counter) -> Split:
        """Take a step and return where its time went; `data` is left to the caller."""
        micro_batches, examples = step
        split = Split()
        for batch in micro_batches:
            began = now(self.device, clock)
            batch = batch.to(self.device)
            outputs = self.engine(**network_inputs(batch))
            loss = batch_loss(outputs, self.engine.module, batch, examples)
            loss = loss * self.world_size * len(micro_batches)
            forward = now(self.device, clock)
            self.engine.backward(loss)
            backward = now(self.device, clock)
            del outputs, loss
            optimizer_step(self.engine, wants_norm=False)
            split.forward += forward - began
            split.backward += backward - forward
            split.optimizer += now(self.device, clock) - backward
        return split


def batch_loss(
    outputs, network: MultiTaskNetwork, batch: MultiTaskBatch, examples: int
) -> torch.Tensor:
    """Return a micro-batch's part of the super-batch's mean loss."""
    num_outputs_B = network.num_outputs[batch.task_ids_B]
    losses_B = sequence_losses(outputs.logits_BC, batch.labels_B, num_outputs_B)
    return (losses_B * batch.weights_B).sum() / examples


def now(device: torch.device, clock: Callable[[], float]) -> float:
    """Return the time, on a GPU after all its work is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock()
