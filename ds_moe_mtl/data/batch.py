"""Sequences of several tasks in one unpadded batch.

B sequences, T real tokens in all, U units of heads that read tokens (words, or tokens of a
context), L labels of the task that has most. Nothing here is padded; `groups` says which sequences
attention may pad together, where it pads at all. What is no tensor stays on the host.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ds_moe_mtl.data.encode import EncodedSplit

# Our choice: attention runs once a group (in Python), so a batch has the fewest groups that keep
# its padding at or under this share of the tokens that attention sees.
MAX_ATTENTION_PADDING = 0.2

NO_TARGET = -100
"""In targets_BS beyond an answer's end: torch's own ignore_index."""


@dataclass(frozen=True)
class MultiTaskBatch:
    """B sequences, longest first, flat over T tokens. B = 0 is legal (a rank without work)."""

    input_ids_T: Tensor  # int64
    token_type_ids_T: Tensor  # int64
    position_ids_T: Tensor  # int64, from 0 in every sequence
    cu_seqlens: Tensor  # int32 [B + 1]
    task_ids_B: Tensor  # int64
    labels_B: Tensor  # float32, class number or score
    weights_B: Tensor  # float32, sums to 1 over an example's sequences
    questions_B: Tensor  # int64, the example of the task's split
    spans_B22: Tensor  # int64, two words as tokens [start, end) of the sequence; -1 = none
    example_ids_B: Tensor  # int64, the sequence's row in the task's EncodedSplit
    lengths: tuple[int, ...]  # tokens of each sequence
    longest_word: int  # tokens of the longest of spans_B22's words, at least 1
    # Sequences [first, last) that attention pads together; None where it pads none.
    groups: tuple[tuple[int, int], ...] | None
    attention_padding: float  # share of the tokens attention sees in the groups that is padding
    targets_BS: Tensor | None = None  # int64, the answers to generate; NO_TARGET beyond each
    # Where a task may have several labels; 0 beyond a task's own, and for other tasks.
    label_sets_BL: Tensor | None = None  # float32, 1 = the sequence has the label
    # Where a task's head reads tokens; in the sequences' order.
    units_U: Tensor | None = None  # int64 [U], the token of each unit
    unit_rows_U: Tensor | None = None  # int64, the sequence that it belongs to
    unit_labels_U: Tensor | None = None  # int64, its tag; answer_spans.FIRST and LAST as bits
    unit_ids_U: Tensor | None = None  # int64, its place in the task's EncodedSplit

    @property
    def num_tokens(self) -> int:
        return len(self.input_ids_T)

    @property
    def num_sequences(self) -> int:
        return len(self.task_ids_B)

    def to(self, device: torch.device | str) -> "MultiTaskBatch":
        """The batch with its tensors on that device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> "MultiTaskBatch":
        """The batch in page-locked memory, from which a GPU copies while the host goes on."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "MultiTaskBatch":
        tensors = {
            field.name: change(getattr(self, field.name))
            for field in dataclasses.fields(self)
            if isinstance(getattr(self, field.name), Tensor)
        }
        return dataclasses.replace(self, **tensors)


def collate(
    rows: Sequence[tuple[int, int]] | np.ndarray,
    encoded: Sequence[EncodedSplit],
    padded: bool = True,
) -> MultiTaskBatch:
    """The batch of these (task index, sequence of that task's split), sorted longest first.

    padded: whether attention will pad, and groups are to be chosen.
    """
    task_B, sequence_B = np.asarray(rows, dtype=np.int64).reshape(-1, 2).T
    lengths_B = _filled(task_B, encoded, np.int64, lambda s, at: _lengths(s, sequence_B[at]))
    order = np.argsort(-lengths_B, kind="stable")
    task_B, sequence_B, lengths_B = task_B[order], sequence_B[order], lengths_B[order]
    size = len(task_B)

    def filled(name: str, dtype: type) -> np.ndarray:
        return _filled(task_B, encoded, dtype, lambda s, at: getattr(s, name)[sequence_B[at]])

    ends_B = np.cumsum(lengths_B)
    starts_B = ends_B - lengths_B
    total = int(lengths_B.sum())
    positions_T = np.arange(total) - np.repeat(starts_B, lengths_B)
    input_ids_T = np.empty(total, dtype=np.int64)
    spans_B22 = np.full((size, 2, 2), -1, dtype=np.int64)
    for task in np.unique(task_B).tolist():
        split, mine_B = encoded[task], task_B == task
        # One gather a split: each sequence's first token, and the places after it.
        mine_T = np.repeat(mine_B, lengths_B)
        first_B = np.asarray(split.offsets)[sequence_B[mine_B]]
        source_T = np.repeat(first_B, lengths_B[mine_B]) + positions_T[mine_T]
        input_ids_T[mine_T] = np.asarray(split.input_ids)[source_T]
        if split.spans is not None:
            spans_B22[mine_B] = split.spans[sequence_B[mine_B]]
    second_B = filled("second_start", np.int64)
    groups = attention_groups(lengths_B) if padded else None
    seen = sum((last - first) * int(lengths_B[first]) for first, last in groups or ())
    return MultiTaskBatch(
        input_ids_T=torch.from_numpy(input_ids_T),
        token_type_ids_T=torch.from_numpy(
            (positions_T >= np.repeat(second_B, lengths_B)).astype(np.int64)
        ),
        position_ids_T=torch.from_numpy(positions_T),
        cu_seqlens=torch.from_numpy(np.concatenate([[0], ends_B]).astype(np.int32)),
        task_ids_B=torch.from_numpy(task_B),
        labels_B=torch.from_numpy(filled("labels", np.float32)),
        weights_B=torch.from_numpy(filled("weights", np.float32)),
        questions_B=torch.from_numpy(filled("questions", np.int64)),
        spans_B22=torch.from_numpy(spans_B22),
        example_ids_B=torch.from_numpy(sequence_B),
        lengths=tuple(lengths_B.tolist()),
        longest_word=max(1, int((spans_B22[..., 1] - spans_B22[..., 0]).max(initial=1))),
        groups=groups,
        attention_padding=1 - total / seen if seen else 0.0,
        targets_BS=_targets(task_B, sequence_B, encoded),
        label_sets_BL=_label_sets(task_B, sequence_B, encoded),
        **_units(task_B, sequence_B, starts_B, encoded),
    )


def _filled(task_B, encoded: Sequence[EncodedSplit], dtype: type, values: Callable) -> np.ndarray:
    """An array [B] that holds values(split, mask of its sequences) where each split's are."""
    array_B = np.empty(len(task_B), dtype=dtype)
    for task in np.unique(task_B).tolist():
        mine_B = task_B == task
        array_B[mine_B] = values(encoded[task], mine_B)
    return array_B


def _lengths(split: EncodedSplit, sequences: np.ndarray) -> np.ndarray:
    offsets = np.asarray(split.offsets)
    return offsets[sequences + 1] - offsets[sequences]


def _targets(task_B, sequence_B, encoded: Sequence[EncodedSplit]) -> Tensor | None:
    """The answers of these sequences, padded to the longest; None where none is generated."""
    splits = [encoded[task] for task in task_B.tolist()]
    if not splits or any(split.targets is None for split in splits):
        return None
    rows = [
        s.targets[s.target_offsets[n] : s.target_offsets[n + 1]]
        for s, n in zip(splits, sequence_B.tolist(), strict=True)
    ]
    targets_BS = np.full((len(rows), max(map(len, rows))), NO_TARGET, dtype=np.int64)
    for row, tokens in zip(targets_BS, rows, strict=True):
        row[: len(tokens)] = tokens
    return torch.from_numpy(targets_BS)


def _label_sets(task_B, sequence_B, encoded: Sequence[EncodedSplit]) -> Tensor | None:
    """Which labels each sequence has; None where no task has sets of them."""
    widths = [split.label_sets.shape[1] for split in encoded if split.label_sets is not None]
    if not widths:
        return None
    sets_BL = np.zeros((len(task_B), max(widths)), dtype=np.float32)
    for task in np.unique(task_B).tolist():
        if (sets := encoded[task].label_sets) is not None:
            mine_B = task_B == task
            sets_BL[mine_B, : sets.shape[1]] = sets[sequence_B[mine_B]]
    return torch.from_numpy(sets_BL)


def _units(
    task_B, sequence_B, starts_B: np.ndarray, encoded: Sequence[EncodedSplit]
) -> dict[str, Tensor]:
    """The batch's units, in the order of its sequences; nothing where no task's head reads tokens.

    A batch without such a sequence has units all the same, none: every rank computes alike.
    """
    if all(split.unit_places is None for split in encoded):
        return {}
    first_B, count_B = np.zeros_like(task_B), np.zeros_like(task_B)
    for task in np.unique(task_B).tolist():
        if (offsets := encoded[task].unit_offsets) is not None:
            mine_B = task_B == task
            first_B[mine_B] = offsets[sequence_B[mine_B]]
            count_B[mine_B] = offsets[sequence_B[mine_B] + 1] - first_B[mine_B]
    rows_U = np.repeat(np.arange(len(task_B)), count_B)
    ids_U = np.arange(len(rows_U)) - np.repeat(np.cumsum(count_B) - count_B, count_B)
    ids_U += first_B[rows_U]
    places_U, labels_U = np.empty_like(ids_U), np.empty_like(ids_U)
    for task in np.unique(task_B[rows_U]).tolist():
        mine_U = task_B[rows_U] == task
        places_U[mine_U] = encoded[task].unit_places[ids_U[mine_U]]
        labels_U[mine_U] = encoded[task].unit_labels[ids_U[mine_U]]
    return {
        "units_U": torch.from_numpy(starts_B[rows_U] + places_U),
        "unit_rows_U": torch.from_numpy(rows_U),
        "unit_labels_U": torch.from_numpy(labels_U),
        "unit_ids_U": torch.from_numpy(ids_U),
    }


def attention_groups(
    lengths_B: np.ndarray, max_padding: float = MAX_ATTENTION_PADDING
) -> tuple[tuple[int, int], ...]:
    """The fewest runs [first, last) of sequences whose padding is at most `max_padding`.

    lengths_B: tokens, in descending order. Padding is the share of tokens that are not real when
    every run is padded to its first (longest) sequence; for a number of runs it is the least
    possible (dynamic programming over the distinct lengths).
    """
    if len(lengths_B) == 0:
        return ()
    firsts = np.concatenate([[0], np.flatnonzero(np.diff(lengths_B)) + 1])
    edges = np.concatenate([firsts, [len(lengths_B)]])
    # cost[i, j]: tokens of one run over the distinct lengths i to j - 1.
    cost = (edges[None, :] - edges[:-1, None]) * lengths_B[firsts][:, None].astype(np.float64)
    cost[edges[None, :] <= edges[:-1, None]] = np.inf
    allowed = lengths_B.sum() / (1 - max_padding)
    best = cost[0]
    breaks = [np.zeros(len(edges), dtype=np.int64)]
    while best[-1] > allowed:
        totals = best[:-1, None] + cost
        breaks.append(totals.argmin(axis=0))
        best = totals.min(axis=0)
    groups, end = [], len(edges) - 1
    for previous in reversed(breaks):
        groups.append((int(edges[previous[end]]), int(edges[end])))
        end = previous[end]
    return tuple(reversed(groups))
