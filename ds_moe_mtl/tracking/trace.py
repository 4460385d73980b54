"""torch.profiler's trace of a few steps, asked for by train.profile."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

SKIPPED, WARM_UP = 1, 1
"""Steps before those that are traced: the first ones compile and make the moments."""


class StepTrace:
    """Traces `steps` steps of this rank into `folder`/trace_rank<N>.json; 0: does nothing.

    The file opens in Perfetto and chrome://tracing.
    """

    def __init__(self, steps: int, folder: Path, rank: int, say: Callable[[str], None]) -> None:
        self.path, self.say, self._profile = folder / f"trace_rank{rank}.json", say, None
        if not steps:
            return
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        self._profile = profile(
            activities=activities,
            schedule=schedule(wait=SKIPPED, warmup=WARM_UP, active=steps, repeat=1),
            on_trace_ready=self._write,
        )
        self._profile.start()

    def step(self) -> None:
        """Say that a step is done."""
        if self._profile is not None:
            self._profile.step()

    def close(self) -> None:
        """End; a run that is shorter than what was asked for leaves what it has."""
        if self._profile is not None:
            self._profile.stop()
            self._profile = None

    def _write(self, traced: profile) -> None:
        traced.export_chrome_trace(str(self.path))
        self.say(f"trace: {self.path}")
