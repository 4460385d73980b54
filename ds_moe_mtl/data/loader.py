"""Super-batches for training, dealt to the ranks, and batches for evaluation."""

import queue
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from ds_moe_mtl.config import UserError
from ds_moe_mtl.config.schema import MixtureSection
from ds_moe_mtl.data.batch import MultiTaskBatch, collate
from ds_moe_mtl.data.encode import EncodedSplit
from ds_moe_mtl.data.mixture import ExampleOrder, Position
from ds_moe_mtl.tasks import TaskSpec

STEPS_AHEAD = 4  # super-batches built before they are asked for


TOKENS_PER_BATCH = 8192
"""Real tokens that an evaluation takes at once."""


class SuperBatches:
    """An endless iterator over this rank's part of the super-batches.

    Each step gives the list of `accumulation` micro-batches of this rank and the number of
    examples of the whole super-batch. Every rank gets as many micro-batches (some may be empty),
    of sizes that differ by one example at most. What is in a super-batch depends on the seed
    alone, not on the number of ranks.
    """

    def __init__(
        self,
        encoded: Sequence[EncodedSplit],
        specs: Sequence[TaskSpec],
        mixture: MixtureSection,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        accumulation: int = 1,
        total_steps: int = 0,
        padded: bool = True,
        gpu: int | None = None,
    ) -> None:
        """encoded and specs are in task order; batch_size: examples a step over all ranks.

        padded: attention pads, in groups to be chosen here. gpu: number of the one that takes the
        batches from page-locked memory; None: a CPU takes them.
        """
        self.encoded = list(encoded)
        counts = [split.num_examples for split in encoded]
        self.order = ExampleOrder(mixture, specs, counts, batch_size, seed, total_steps)
        self.rank, self.world_size, self.accumulation = rank, world_size, accumulation
        self.names = [spec.name for spec in specs]
        self.padded, self.gpu = padded, gpu
        self.stall_seconds = 0.0  # time the training waited for batches
        self._position = self.order.start
        self._firsts = [_first_sequences(split) for split in encoded]
        self._tokens = [
            np.diff(split.offsets[firsts])
            for split, firsts in zip(encoded, self._firsts, strict=True)
        ]
        self._real = self._seen = 0
        self._stop: threading.Event | None = None
        self._builder: threading.Thread | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which as many examples are drawn as are loaded."""
        return self.order.steps_per_epoch

    @property
    def most_examples(self) -> int:
        """Examples of the largest step: a pass's, where the batch size is more than that."""
        asked, order = self.order.batch_size, self.order
        return min(asked, sum(order.num_examples)) if order.one_pass else asked

    @property
    def attention_padding(self) -> float:
        """Share of padding in the tokens attention has seen so far, over the steps consumed."""
        return 1 - self._real / self._seen if self._seen else 0.0

    def state_dict(self) -> dict:
        """The position after the steps consumed, plain JSON values."""
        return {
            "step": self._position.step,
            "drawn": list(self._position.drawn),
            "tasks": self.names,
            "examples": list(self.order.num_examples),
            "seed": self.order.seed,
            "batch_size": self.order.batch_size,
            "mixture": self.order.mixture.model_dump(mode="json"),
            "sampling_weights": [spec.sampling_weight for spec in self.order.specs],
        }

    def load_state_dict(self, state: dict) -> None:
        """Go on after the steps consumed then; iterate anew for it to take effect.

        Raises UserError for a state of other tasks, data, seed, batch size or mixture: the order
        would be another.
        """
        now, then = _flat(self.state_dict()), _flat(state)
        for name in [key for key in now if key not in ("step", "drawn")]:
            if then.get(name, now[name]) != now[name]:  # not there: written by an older version
                raise UserError(
                    f"run.resume: the checkpoint's loader has {name} {then[name]}, "
                    f"this run has {now[name]}"
                )
        self.close()
        self._position = Position(state["step"], tuple(state["drawn"]))

    def build(self, position: Position) -> tuple[list[MultiTaskBatch], int, Position]:
        """This rank's micro-batches at a position, the examples of all ranks, the next position."""
        pairs, position = self.order.super_batch(position)
        return self._my_part(pairs), len(pairs), position

    def close(self) -> None:
        """Stop building ahead; when this returns the thread that did so has ended."""
        if self._stop is not None:
            self._stop.set()
            self._builder.join()
            self._stop = self._builder = None

    def __iter__(self) -> Iterator[tuple[list[MultiTaskBatch], int]]:
        self.close()
        stop = self._stop = threading.Event()
        ready: queue.Queue = queue.Queue(maxsize=STEPS_AHEAD)
        # No daemon: the interpreter kills those at its end, in torch's code too, which aborts the
        # process ("terminate called without an active exception").
        builder = self._builder = threading.Thread(
            target=self._build_ahead, args=(self._position, ready, stop)
        )
        builder.start()
        try:
            while not stop.is_set():
                started = time.perf_counter()
                built = self._next_built(ready, builder)
                self.stall_seconds += time.perf_counter() - started
                if isinstance(built, Exception):
                    raise built
                micro_batches, examples, self._position = built
                for batch in micro_batches:
                    self._real += batch.num_tokens
                    self._seen += round(batch.num_tokens / (1 - batch.attention_padding))
                yield micro_batches, examples
        finally:
            stop.set()
            builder.join()

    def _next_built(self, ready: queue.Queue, builder: threading.Thread):
        """What the builder built next. Raises RuntimeError where it died without a word."""
        while True:
            alive = builder.is_alive()
            try:
                return ready.get(timeout=1.0) if alive else ready.get_nowait()
            except queue.Empty:
                if not alive:
                    raise RuntimeError(
                        f"rank {self.rank}: the thread that builds batches died before step "
                        f"{self._position.step + 1} was built"
                    ) from None

    def _build_ahead(self, position: Position, ready: queue.Queue, stop: threading.Event) -> None:
        if self.gpu is not None:
            torch.cuda.set_device(self.gpu)  # a thread's own; memory would be locked for GPU 0
        main = threading.main_thread()

        def goes_on() -> bool:
            """Return whether somebody may still ask; nobody closes a loader that was forgotten."""
            return main.is_alive() and not stop.is_set()

        while goes_on():
            try:
                built = self.build(position)
                position = built[2]
            except Exception as error:  # handed to the thread that asked
                built = error
            while goes_on():
                try:
                    ready.put(built, timeout=0.1)
                    break
                except queue.Full:
                    continue
            if isinstance(built, Exception):
                return

    def _my_part(self, pairs: list[tuple[int, int]]) -> list[MultiTaskBatch]:
        task_N, example_N = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
        tokens_N = np.empty(len(pairs), dtype=np.int64)
        for task in np.unique(task_N).tolist():
            mine = task_N == task
            tokens_N[mine] = self._tokens[task][example_N[mine]]
        shares = deal(tokens_N, self.world_size * self.accumulation)
        batches = [
            collate(self._sequences(task_N[share], example_N[share]), self.encoded, self.padded)
            for share in shares[self.rank :: self.world_size]
        ]
        return batches if self.gpu is None else [batch.pinned() for batch in batches]

    def _sequences(self, task_N: np.ndarray, example_N: np.ndarray) -> np.ndarray:
        """(task, sequence) of all sequences of these examples, int64 [sequences, 2]."""
        first_N, count_N = np.empty_like(example_N), np.empty_like(example_N)
        for task in np.unique(task_N).tolist():
            mine, firsts = task_N == task, self._firsts[task]
            first_N[mine] = firsts[example_N[mine]]
            count_N[mine] = firsts[example_N[mine] + 1] - first_N[mine]
        before_N = np.cumsum(count_N) - count_N
        place = np.arange(int(count_N.sum())) - np.repeat(before_N, count_N)
        return np.stack([np.repeat(task_N, count_N), np.repeat(first_N, count_N) + place], axis=1)


class EvaluationBatches(Sequence):
    """This rank's batches of one task's split, each collated when it is asked for."""

    def __init__(self, split: EncodedSplit, task: int, shares: list[list[int]]) -> None:
        self.split, self.task, self.shares = split, task, shares

    def __len__(self) -> int:
        return len(self.shares)

    def __getitem__(self, index: int) -> MultiTaskBatch:
        share = self.shares[index]
        batch = collate([(0, n) for n in share], [self.split])
        return replace(batch, task_ids_B=torch.full_like(batch.task_ids_B, self.task))


def mixed_batches(
    splits: Mapping[int, EncodedSplit], tokens_per_batch: int = TOKENS_PER_BATCH
) -> Iterator[MultiTaskBatch]:
    """Yield batches of the sequences of several tasks together: every sequence comes exactly once.

    splits: by the task's index. The longest come first; else as evaluation_batches.
    """
    tasks, encoded = list(splits), list(splits.values())
    firsts = [_first_sequences(split) for split in encoded]
    examples = [
        (tokens, place, number)
        for place, split in enumerate(encoded)
        for number, tokens in enumerate(np.diff(split.offsets[firsts[place]]).tolist())
    ]
    rows: list[tuple[int, int]] = []
    room = tokens_per_batch
    for tokens, place, number in sorted(examples, key=lambda example: -example[0]):
        if rows and tokens > room:
            yield _of_tasks(rows, encoded, tasks)
            rows, room = [], tokens_per_batch
        first, last = firsts[place][number : number + 2].tolist()
        rows.extend((place, sequence) for sequence in range(first, last))
        room -= tokens
    if rows:
        yield _of_tasks(rows, encoded, tasks)


def _of_tasks(
    rows: list[tuple[int, int]], encoded: list[EncodedSplit], tasks: list[int]
) -> MultiTaskBatch:
    batch = collate(rows, encoded)
    return replace(batch, task_ids_B=torch.tensor(tasks)[batch.task_ids_B])


def evaluation_batches(
    split: EncodedSplit,
    task_index: int,
    rank: int = 0,
    world_size: int = 1,
    tokens_per_batch: int = TOKENS_PER_BATCH,
) -> EvaluationBatches:
    """This rank's batches of a split: over the ranks every sequence comes exactly once.

    tokens_per_batch: real tokens, exceeded only by a single example that is longer. Every rank
    has the same number of batches, the last ones possibly empty; the sequences of an example
    stay in one batch.
    """
    firsts = _first_sequences(split)
    tokens = np.diff(split.offsets[firsts])
    batches: list[list[int]] = []
    room = 0
    for example in np.argsort(-tokens, kind="stable").tolist():
        if not batches or tokens[example] > room:
            batches.append([])
            room = tokens_per_batch
        batches[-1].extend(range(int(firsts[example]), int(firsts[example + 1])))
        room -= tokens[example]
    while len(batches) % world_size:
        batches.append([])
    return EvaluationBatches(split, task_index, batches[rank::world_size])


def deal(tokens: Sequence[int], hands: int) -> list[list[int]]:
    """Indices of the examples in each hand: sizes differ by one at most, tokens nearly equal.

    The longest go first, in turn from the first hand to the last and back.
    """
    order = np.argsort(-np.asarray(tokens, dtype=np.int64), kind="stable").tolist()
    shares: list[list[int]] = [[] for _ in range(hands)]
    for place, index in enumerate(order):
        turn, hand = divmod(place, hands)
        shares[hand if turn % 2 == 0 else hands - 1 - hand].append(index)
    return shares


def _flat(state: Mapping) -> dict:
    """A loader's state with the keys of its mixture as mixture.<key>."""
    mixture = {f"mixture.{key}": value for key, value in state.get("mixture", {}).items()}
    return {key: value for key, value in state.items() if key != "mixture"} | mixture


def _first_sequences(split: EncodedSplit) -> np.ndarray:
    """The first sequence of every example, and the number of sequences; int64 [examples + 1]."""
    return np.searchsorted(split.questions, np.arange(split.num_examples + 1))
