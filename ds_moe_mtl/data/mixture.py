"""Which examples make up each super-batch: a pure function of the seed and the step.

Nothing here knows how many processes there are.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ds_moe_mtl.config import UserError
from ds_moe_mtl.config.schema import MixtureSection
from ds_moe_mtl.tasks import TaskSpec


@dataclass(frozen=True)
class Position:
    """How far the draw has come: steps made, and examples drawn of each task."""

    step: int
    drawn: tuple[int, ...]


def sampling_rates(
    mixture: MixtureSection,
    specs: Sequence[TaskSpec],
    num_examples: Sequence[int],
    progress: float = 1.0,
) -> np.ndarray:
    """Each task's share of the examples drawn, float64 [tasks], sums to 1.

    sampling: proportional to the sizes ("natural", sec. 3.3 of "Sparsely Activated MoE are Robust
    Multi-Task Learners"), equal ("uniform"), proportional to size ** (1 / temperature), or
    uniform for the first `uniform_fraction` of the steps and natural after (A.4); then times the
    task's sampling_weight.
    num_examples: loaded training examples. progress: share of the run's steps already made.
    A task of unknown published size counts with its loaded one. Raises UserError for a task
    without examples.
    """
    for spec, count in zip(specs, num_examples, strict=True):
        if count < 1:
            raise UserError(f"tasks: {spec.name!r} has no training examples")
    loaded = np.array(num_examples, dtype=np.float64)
    published = np.array([spec.published_size for spec in specs], dtype=np.float64)
    sizes = np.where(published > 0, published, loaded) if mixture.sizes == "published" else loaded
    if mixture.sampling == "uniform" or (
        mixture.sampling == "uniform_then_natural" and progress < mixture.uniform_fraction
    ):
        sizes = np.ones_like(sizes)
    elif mixture.sampling == "temperature":
        sizes = sizes ** (1 / mixture.temperature)
    if weighted(specs):
        sizes = sizes * [spec.sampling_weight for spec in specs]
    return sizes / sizes.sum()


def weighted(specs: Sequence[TaskSpec]) -> bool:
    """Whether a task is drawn more or less often than the mixture says."""
    return any(spec.sampling_weight != 1 for spec in specs)


@dataclass
class ExampleOrder:
    """The super-batches of a run, one after the other from any position.

    With natural sampling by loaded sizes (and no task's sampling_weight) an epoch is one shuffled
    pass over every example, and its last super-batch holds what is left of the pass. Otherwise
    tasks are drawn by their rates, and each task's examples come in passes of their own.
    total_steps is needed by "uniform_then_natural" only.
    """

    mixture: MixtureSection
    specs: Sequence[TaskSpec]
    num_examples: Sequence[int]
    batch_size: int
    seed: int
    total_steps: int = 0
    _passes: dict = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        mixture = self.mixture
        natural = mixture.sampling == "natural" and mixture.sizes == "loaded"
        self.one_pass = natural and not weighted(self.specs)
        if mixture.batching == "sub_batches" and self.batch_size % mixture.sub_batches:
            raise UserError(
                f"mixture.sub_batches: {mixture.sub_batches} does not divide "
                f"train.batch_size {self.batch_size}"
            )
        # Examples of one task that stay together, and how many such pieces a super-batch has.
        per_piece = {
            "per_example": 1,
            "sub_batches": self.batch_size // mixture.sub_batches,
            "homogeneous": self.batch_size,
        }
        self.piece = per_piece[mixture.batching]
        self.pieces = self.batch_size // self.piece
        sampling_rates(mixture, self.specs, self.num_examples)  # refuses a task without examples

    @property
    def start(self) -> Position:
        return Position(0, (0,) * len(self.num_examples))

    @property
    def steps_per_epoch(self) -> int:
        """Super-batches that hold as many examples as are loaded (at least one)."""
        if not self.one_pass:
            return -(-sum(self.num_examples) // self.batch_size)
        pieces = sum(-(-count // self.piece) for count in self.num_examples)
        return -(-pieces // self.pieces)

    def super_batch(self, position: Position) -> tuple[list[tuple[int, int]], Position]:
        """The (task, example) pairs of the super-batch at this position, and the next position."""
        if self.one_pass:
            return self._of_the_pass(position.step), replace(position, step=position.step + 1)
        return self._drawn(position)

    def _of_the_pass(self, step: int) -> list[tuple[int, int]]:
        epoch, index = divmod(step, self.steps_per_epoch)
        pieces = self._shuffled("pieces", epoch, self._pieces)[
            index * self.pieces : (index + 1) * self.pieces
        ]
        pairs = []
        for task, start in pieces.tolist():
            order = self._task_pass(task, epoch)[start : start + self.piece]
            pairs.extend((task, example) for example in order.tolist())
        return pairs

    def _drawn(self, position: Position) -> tuple[list[tuple[int, int]], Position]:
        assert self.total_steps or self.mixture.sampling != "uniform_then_natural"
        progress = position.step / self.total_steps if self.total_steps else 1.0
        rates = sampling_rates(self.mixture, self.specs, self.num_examples, progress)
        chosen = self._random("tasks", position.step).choice(len(rates), self.pieces, p=rates)
        drawn = np.array(position.drawn)
        task_N = np.repeat(chosen, self.piece)
        example_N = np.empty_like(task_N)
        for task in np.unique(task_N).tolist():
            places = np.flatnonzero(task_N == task)
            numbers = drawn[task] + np.arange(len(places))
            epochs, index = np.divmod(numbers, self.num_examples[task])
            for epoch in np.unique(epochs).tolist():
                now = epochs == epoch
                example_N[places[now]] = self._task_pass(task, epoch)[index[now]]
            drawn[task] += len(places)
        pairs = list(zip(task_N.tolist(), example_N.tolist(), strict=True))
        return pairs, Position(position.step + 1, tuple(drawn.tolist()))

    def _task_pass(self, task: int, epoch: int) -> np.ndarray:
        return self._shuffled(f"task {task}", epoch, lambda: np.arange(self.num_examples[task]))

    def _pieces(self) -> np.ndarray:
        """(task, first place in the task's pass) of every piece, int64 [pieces, 2]."""
        starts = [np.arange(0, count, self.piece) for count in self.num_examples]
        tasks = np.repeat(np.arange(len(starts)), [len(start) for start in starts])
        return np.stack([tasks, np.concatenate(starts)], axis=1)

    def _shuffled(self, what: str, epoch: int, items) -> np.ndarray:
        """The items in the order of this epoch; the latest epoch's order is kept."""
        if self._passes.get(what, (None,))[0] != epoch:
            self._passes[what] = (epoch, self._random(what, epoch).permutation(items()))
        return self._passes[what][1]

    def _random(self, what: str, number: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, number, *what.encode()])
