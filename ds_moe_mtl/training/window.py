"""What a logged row tells of the steps since the row before it."""

import time

import torch
from torch import distributed as dist

from ds_moe_mtl.models.losses import task_sums
from ds_moe_mtl.training.step import StepOutcome


class Window:
    """What is summed between two logged rows, over this rank until `row` adds the others."""

    def __init__(self, num_tasks: int, device: torch.device) -> None:
        self.num_tasks, self.device = num_tasks, device

    def start(self, step: int, stalled: float) -> None:
        """Begin anew after `step` steps; stalled: seconds waited for batches so far."""
        self._step, self._stalled, self._began = step, stalled, time.perf_counter()
        self._sums = torch.zeros((2, self.num_tasks), device=self.device)
        self._tokens = self._attended = 0.0
        self._loads_LE = None

    def add(self, outcome: StepOutcome) -> None:
        """Count a step. The losses of one that was skipped are left out."""
        for counts in outcome.counts:
            if counts:
                loads_LE = torch.stack(list(counts)).double()
                self._loads_LE = loads_LE if self._loads_LE is None else self._loads_LE + loads_LE
        for losses_B, batch in outcome.parts:
            sums = task_sums(losses_B, batch.weights_B, batch.task_ids_B, self.num_tasks)
            self._sums += outcome.update.kept(sums)
            self._tokens += batch.num_tokens
            self._attended += batch.num_tokens / (1 - batch.attention_padding)

    def waiting(self, stalled: float) -> dict:
        """Return how long steps waited for their batches on this rank: of the window its share,
        "stall", and "stall_seconds"."""
        waited = stalled - self._stalled
        share = waited / max(time.perf_counter() - self._began, 1e-9)
        return {"stall": share, "stall_seconds": waited}

    def row(self, step: int, names: list[str]) -> dict:
        """Return the logged row of the window; a collective call.

        Losses and examples are those of steps that were taken, not skipped.
        """
        tokens = torch.tensor(
            [self._tokens, self._attended], dtype=torch.float64, device=self.device
        )
        dist.all_reduce(self._sums)
        dist.all_reduce(tokens)
        seconds = time.perf_counter() - self._began
        loss_sum, examples = self._sums.double().tolist()
        row = {"step": step}
        if sum(examples):
            row["loss"] = sum(loss_sum) / sum(examples)
        for name, task_loss, count in zip(names, loss_sum, examples, strict=True):
            if count:
                row[f"loss/{name}"] = task_loss / count
        real, attended = tokens.tolist()
        row["tokens_per_s"] = real / seconds
        row["attention_padding"] = 1 - real / max(attended, 1.0)
        row["examples_per_s"] = sum(examples) / seconds
        row["steps_per_s"] = (step - self._step) / seconds
        if self._loads_LE is not None:
            dist.all_reduce(self._loads_LE)
            row.update(_load_shares(self._loads_LE))
        return row


def _load_shares(loads_LE: torch.Tensor) -> dict[str, float]:
    """Return each expert's share of a layer's tokens as "load/<layer>/<expert>", both from 0."""
    shares_LE = loads_LE / loads_LE.sum(dim=1, keepdim=True).clamp(min=1)
    return {
        f"load/{layer}/{expert}": round(share, 4)
        for layer, row in enumerate(shares_LE.tolist())
        for expert, share in enumerate(row)
    }
