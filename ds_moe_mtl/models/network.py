"""What every network of many tasks can do, and what it gives back.

B sequences, C outputs of the widest task.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Protocol, runtime_checkable

import torch

from ds_moe_mtl.data import MultiTaskBatch
from ds_moe_mtl.models.token_level.context import LayerRoute
from ds_moe_mtl.models.token_level.gating import RoutingOptions


@contextmanager
def evaluating(network: torch.nn.Module) -> Iterator[None]:
    """Have a network be in eval mode inside the block, without dropout; then as it was."""
    training = network.training
    if training:
        network.eval()
    try:
        yield
    finally:
        if training:
            network.train()


class Outputs(NamedTuple):
    """logits_BC float32 (-inf beyond a task's own outputs), the auxiliary loss, and layer records.

    counts: tokens an expert [E] a sparse layer; routes: filled where asked for. losses_B: where
    the network itself computes each sequence's loss (answers that are generated). unit_logits_UC:
    as logits_BC, of each of the batch's units, where a task's head reads tokens. A tuple: in it
    DeepSpeed's engine finds the tensors at which the backward pass begins (its timers, its state).
    """

    logits_BC: torch.Tensor
    aux_loss: torch.Tensor
    counts: Sequence[torch.Tensor] = ()
    routes: Sequence[LayerRoute] = ()
    losses_B: torch.Tensor | None = None
    unit_logits_UC: torch.Tensor | None = None


@runtime_checkable
class Network(Protocol):
    """A network of many tasks, with heads (MultiTaskNetwork) or with generated text (RoutedBart).

    A torch module besides; its forward takes network_inputs(batch) as keywords.
    """

    def __call__(self, **inputs) -> Outputs:
        """Return the outputs of a batch."""

    def losses(self, outputs: Outputs, batch: MultiTaskBatch, scaling: bool = True) -> torch.Tensor:
        """Return each sequence's loss [B], float32; weighted and summed it is the examples'.

        scaling: a head's loss over its number of classes is divided by its logarithm.
        """

    def answers(self, batch: MultiTaskBatch, num_outputs: int) -> torch.Tensor:
        """Return each sequence's answer: float32 outputs [B, num_outputs] of its task's head, or
        the tokens of a text, int64 [B, longest]. The batch is one task's; where its head reads
        tokens the outputs are its units', [U, num_outputs]."""

    def description(
        self, kind: str, routing: RoutingOptions | None, tasks: Sequence[dict], about: Mapping
    ) -> dict:
        """Return what config.json says of the network, enough to build it again."""

    def attention_on(self, device: torch.device, dtype: torch.dtype) -> str:
        """Return the name of the attention that runs there."""

    def kernels_on(self, device: torch.device, dtype: torch.dtype) -> str:
        """Return which kernels its layers run on there, in words."""

    def use_kernels(self, option: str) -> None:
        """Have its layers run on what train.encoder_kernels means: auto, torch or triton.

        Raises ValueError for kernels that this network does not have.
        """

    def set_step(self, step: int) -> None:
        """Say which training step this is."""
