"""What is timed as a whole, what in parts, and in which order."""

import pytest
import torch

from ds_moe_mtl.benchmark.rounds import alternate, time_window
from ds_moe_mtl.benchmark.stopwatch import Marks, Stopwatch
from ds_moe_mtl.config import UserError

CPU = torch.device("cpu")


class Seconds(Stopwatch):
    """A stopwatch on which time passes where it is told to."""

    def __init__(self) -> None:
        super().__init__(CPU)
        self.now, self.marks = 0.0, 0

    def mark(self) -> float:
        self.marks += 1
        return self.now


class Worker:
    """Takes 1 s of forward and 2 of backward for each unit of a step, and 3 more when marked."""

    def __init__(self, watch: Seconds, seen: list, name: str = "") -> None:
        self.watch, self.seen, self.name = watch, seen, name

    def take(self, step: float) -> None:
        self.seen.append((self.name, "taken", step, self.watch.marks))
        self.watch.now += 3 * step

    def marked(self, step: float, watch: Seconds) -> Marks:
        self.seen.append((self.name, "marked", step, watch.marks))
        marks = Marks(watch, watch.mark())
        for name, seconds in (("forward", step), ("backward", 2 * step)):
            began = watch.mark()
            watch.now += seconds
            marks.parts.setdefault(name, []).append((began, watch.mark()))
        watch.now += 3
        marks.ended = watch.mark()
        return marks


def test_one_step_gives_the_whole_and_its_parts():
    seen: list = []
    watch = Seconds()
    whole, split = time_window(Worker(watch, seen), [5.0], watch)
    assert (whole, split.forward, split.backward, split.optimizer) == (18, 5, 10, 3)
    assert [kind for _, kind, _, _ in seen] == ["marked"]


def test_several_steps_are_taken_without_a_mark_between_them_and_then_again_with_marks():
    seen: list = []
    watch = Seconds()
    whole, split = time_window(Worker(watch, seen), [1.0, 2.0, 6.0], watch)
    assert whole == 3 * (1 + 2 + 6) / 3  # a step, without what marking costs
    assert (split.forward, split.backward, split.optimizer) == (3, 6, 3)
    taken = [marks for _, kind, _, marks in seen if kind == "taken"]
    assert len(taken) == 3 and len(set(taken)) == 1
    assert [step for _, kind, step, _ in seen if kind == "marked"] == [1, 2, 6]


def test_the_order_turns_and_a_product_is_measured_in_every_round():
    seen: list = []
    watch = Seconds()
    workers = {name: Worker(watch, seen, name) for name in ("a", "b", "c")}
    probes = iter([7.0, 8.0])
    windows = [[1.0], [2.0]]
    doubled = lambda window: [2 * step for step in window]  # noqa: E731
    times, probed = alternate(workers, windows, watch, lambda: next(probes), doubled)
    assert [name for name, *_ in seen] == ["a", "b", "c", "b", "c", "a"]
    assert probed == [7.0, 8.0] and times["c"].whole == [9.0, 15.0]
    assert not times["a"].apart


def test_a_cpus_time_is_refused_on_a_gpu():
    with pytest.raises(UserError, match="--clock cpu on a GPU"):
        Stopwatch(torch.device("cuda", 0), "cpu")
