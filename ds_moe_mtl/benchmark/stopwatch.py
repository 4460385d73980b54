"""Time on a device's own line: marks that nobody waits for, read when all work is done.

On a GPU a mark is a CUDA event in the stream, so the host runs ahead of the GPU as it does in a
run. On a CPU it is the clock's time.
"""

import time
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from ds_moe_mtl.config import UserError

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}

WINDOW = {"cpu": 1, "cuda": 10}
"""Steps that are timed as a whole: on a GPU so many that filling and emptying its queue is little
of them."""


@dataclass
class Split:
    """Seconds of one step. optimizer: the rest: the reduction's end, the norm and the gather."""

    data: float = 0.0
    forward: float = 0.0
    backward: float = 0.0
    optimizer: float = 0.0

    @property
    def total(self) -> float:
        return sum(getattr(self, field.name) for field in fields(self))


class Stopwatch:
    """Marks of one device. Raises UserError for a CPU's time on a GPU, which says nothing."""

    def __init__(self, device: torch.device, clock: str = "wall") -> None:
        self.on_gpu = device.type == "cuda"
        if self.on_gpu and clock == "cpu":
            raise UserError("--clock cpu on a GPU: the host's time is not the GPU's; allowed: wall")
        self.device, self._clock = device, CLOCKS[clock]

    def mark(self) -> Any:
        """Return this place in the device's work."""
        if not self.on_gpu:
            return self._clock()
        event = torch.cuda.Event(enable_timing=True)
        # Named, since a thread of its own (the Trainer's) has another current device.
        event.record(torch.cuda.current_stream(self.device))
        return event

    def wait(self) -> None:
        """Wait until the device has done all its work."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def seconds(self, first: Any, last: Any) -> float:
        """Return the time from one mark to another; on a GPU both must have been reached."""
        return first.elapsed_time(last) / 1e3 if self.on_gpu else last - first


@dataclass
class Marks:
    """A step's marks: where it began and ended, and (from, to) of each part, part by part."""

    watch: Stopwatch
    began: Any
    ended: Any = None
    parts: dict[str, list[tuple[Any, Any]]] = field(default_factory=dict)

    def split(self) -> Split:
        """Return the step's seconds, after a wait for the device; what is no part is optimizer."""
        found = {
            name: sum(self.watch.seconds(*pair) for pair in pairs)
            for name, pairs in self.parts.items()
        }
        rest = self.watch.seconds(self.began, self.ended) - sum(found.values())
        return Split(**found, optimizer=rest)
