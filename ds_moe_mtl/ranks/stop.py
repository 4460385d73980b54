"""Asked to stop: SIGTERM, SIGINT or Slurm's SIGUSR1 become a checkpoint and status 75."""

import signal
from collections.abc import Callable

import torch
from torch import distributed as dist

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopRequest:
    """Remembers a signal; ranks agree on it, so that all stop after the same step.

    A second SIGINT (Ctrl-C) ends the process at once.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.signal_name = ""
        self._say = say
        for number in _SIGNALS:
            signal.signal(number, self._remember)

    def _remember(self, number: int, frame) -> None:
        if self.signal_name and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.signal_name:
            self.signal_name = signal.Signals(number).name
            self._say(f"{self.signal_name} received: a checkpoint follows after this step")

    def agreed(self, device: torch.device) -> bool:
        """Return whether any rank was asked to stop; a collective call."""
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return bool(self.signal_name)
        flag = torch.tensor([float(bool(self.signal_name))], device=device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag.item())
