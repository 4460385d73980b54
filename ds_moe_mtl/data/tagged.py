"""Lists of words with a tag each: checks, and the words as units of a token sequence."""

from collections.abc import Mapping, Sequence

import numpy as np

from ds_moe_mtl.data.faults import Faults
from ds_moe_mtl.data.rows import is_unicode, listed, shown
from ds_moe_mtl.tasks import TaskSpec


def check_words(columns: Mapping[str, list], words: str, tags: str | None, origin: str) -> None:
    """Raise UserError unless every row has a list of words and a tag for each.

    tags: the column of tags; None: there is none. A word may be empty; a tag is a text without
    blanks.
    """
    faults = Faults(origin)
    for row, tokens in enumerate(columns[words]):
        where = f"row {row} (from 0):"
        if not _is_list(tokens) or not tokens:
            faults.add(
                "words",
                f"{where} column {words!r} holds {shown(tokens)}; allowed: a list of words, at "
                "least one",
            )
            continue
        if not all(map(is_unicode, tokens)):
            faults.add("surrogate", f"{where} half a character in column {words!r}")
        if tags is None:
            continue
        marks = columns[tags][row]
        if not _is_list(marks) or not all(
            mark and is_unicode(mark) and not any(map(str.isspace, mark)) for mark in marks
        ):
            faults.add(
                "tags",
                f"{where} column {tags!r} holds {shown(marks)}; allowed: a list of tags, texts "
                "without blanks",
            )
        elif len(marks) != len(tokens):
            faults.add("number", f"{where} {len(tokens)} words and {len(marks)} tags")
    faults.check()


def tag_numbers(spec: TaskSpec, values: Sequence[Sequence[str]], origin: str) -> list[np.ndarray]:
    """Return each row's tags by their place in spec.labels. Raises UserError for other tags."""
    place_of = {name: place for place, name in enumerate(spec.labels)}
    faults = Faults(origin)
    for row, tags in enumerate(values):
        for tag in tags:
            if tag not in place_of:
                faults.add(
                    tag,
                    f"row {row} (from 0): tag {tag!r:.60} in column {spec.label!r} is not one of "
                    f"{listed(spec.labels)}",
                )
    faults.check()
    return [np.array([place_of[tag] for tag in tags], dtype=np.int32) for tags in values]


class WordUnits:
    """Finds the first piece of each word, one sequence after the other.

    The words of a row are put to the tokenizer as one text, a blank between two (`texts`), so
    every tokenizer reads them as it reads a text.
    """

    def __init__(self, rows: Sequence[Sequence[str]]) -> None:
        self.texts = [" ".join(words) for words in rows]
        self._rows = rows
        self._places: list[np.ndarray] = []
        self._words: list[np.ndarray] = []

    def add(self, row: int, encoding) -> None:
        """Take a row's encoding, of the tokenizers library; rows come in order."""
        places_W = first_pieces(self._rows[row], encoding.offsets)
        seen = np.flatnonzero(places_W >= 0)
        self._places.append(places_W[seen].astype(np.int32))
        self._words.append(seen.astype(np.int32))

    def arrays(self, tags: Sequence[np.ndarray] | None) -> dict[str, np.ndarray]:
        """Return the arrays of an EncodedSplit; tags: each row's, None where nobody knows them."""
        if tags is None:
            tags = [np.zeros(len(words), dtype=np.int32) for words in self._rows]
        labels = [mine[words] for mine, words in zip(tags, self._words, strict=True)]
        return {
            "unit_places": np.concatenate(self._places),
            "unit_offsets": np.cumsum([0, *map(len, self._places)], dtype=np.int64),
            "unit_labels": np.concatenate(labels),
            "unit_words": np.concatenate(self._words),
            "word_tags": np.concatenate(tags),
            "word_offsets": np.cumsum([0, *map(len, tags)], dtype=np.int64),
        }


def first_pieces(words: Sequence[str], offsets: Sequence[tuple[int, int]]) -> np.ndarray:
    """Return the token of each word's first piece, int64 [W]; -1 for a word without one.

    offsets: of each token, characters [start, end) of the words with a blank between two; empty
    for a token that stands for no text. A word has no piece where it was cut off, is empty, or
    holds nothing that the tokenizer reads.
    """
    lengths_W = np.array([len(word) for word in words], dtype=np.int64)
    ends_W = np.cumsum(lengths_W + 1) - 1
    starts_W = ends_W - lengths_W
    spans = np.array(offsets, dtype=np.int64).reshape(-1, 2)
    tokens = np.flatnonzero(spans[:, 1] > spans[:, 0])
    if not len(tokens):
        return np.full(len(words), -1)
    starts, ends = spans[tokens].T
    place_W = np.searchsorted(ends, starts_W, side="right")
    known_W = place_W < len(tokens)
    place_W = np.where(known_W, place_W, 0)
    touches_W = known_W & (starts[place_W] < ends_W)
    return np.where(touches_W, tokens[place_W], -1)


def _is_list(value) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
