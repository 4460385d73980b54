"""Contestants timed in turn, round by round: what slows the machine slows all of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ds_moe_mtl.benchmark.steps import Step
from ds_moe_mtl.benchmark.stopwatch import Marks, Split, Stopwatch


class Stepper(Protocol):
    """Who takes steps."""

    def take(self, step: Step) -> None: ...

    def marked(self, step: Step, watch: Stopwatch) -> Marks: ...


@dataclass
class Times:
    """A contestant's seconds a step, by round: the whole, and the parts of it.

    apart: whether the parts were timed in a pass of their own, as on a GPU, so that they need not
    sum to the whole.
    """

    apart: bool
    whole: list[float] = field(default_factory=list)
    splits: list[Split] = field(default_factory=list)


def alternate(
    steppers: Mapping[str, Stepper],
    windows: Sequence[Sequence[Step]],
    watch: Stopwatch,
    probe: Callable[[], float],
    ready: Callable[[Sequence[Step]], Sequence[Step]] = lambda window: window,
) -> tuple[dict[str, Times], list[float]]:
    """Return every stepper's times over `windows` of steps, one a round, and the probe's answers.

    The order turns from round to round. ready(window): makes a window's steps ready, untimed.
    """
    names = list(steppers)
    times = {name: Times(len(windows[0]) > 1) for name in names}
    probed = []
    for number, window in enumerate(windows):
        probed.append(probe())
        steps = ready(window)
        place = number % len(names)
        for name in (*names[place:], *names[:place]):
            whole, split = time_window(steppers[name], steps, watch)
            times[name].whole.append(whole)
            times[name].splits.append(split)
    return times, probed


def time_window(stepper: Stepper, steps: Sequence[Step], watch: Stopwatch) -> tuple[float, Split]:
    """Return the seconds a step of a window as a whole, and those of its parts.

    Of several steps the whole is timed between two marks, without a wait or a mark between them;
    then the steps are taken again with marks between their parts. One step gives both.
    """
    watch.wait()
    whole = None
    if len(steps) > 1:
        began = watch.mark()
        for step in steps:
            stepper.take(step)
        ended = watch.mark()
        watch.wait()
        whole = watch.seconds(began, ended) / len(steps)
    marks = [stepper.marked(step, watch) for step in steps]
    watch.wait()
    splits = [mark.split() for mark in marks]
    mean = Split(*(sum(part) / len(splits) for part in zip(*map(_parts, splits), strict=True)))
    return mean.total if whole is None else whole, mean


def _parts(split: Split) -> tuple[float, float, float, float]:
    return split.data, split.forward, split.backward, split.optimizer
