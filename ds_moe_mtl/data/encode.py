"""A task's split as token sequences, made once and read from the cache afterwards."""

import hashlib
import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from ds_moe_mtl.config import UserError
from ds_moe_mtl.data.answer_spans import FIRST, ContextUnits, golds
from ds_moe_mtl.data.cache import default_cache, load_arrays, one_writer, save_arrays
from ds_moe_mtl.data.hashes import segment_hashes
from ds_moe_mtl.data.label_sets import label_sets
from ds_moe_mtl.data.rows import check_text, label_numbers, right_options
from ds_moe_mtl.data.sample import chosen_rows
from ds_moe_mtl.data.source import Source, find_split
from ds_moe_mtl.data.tagged import WordUnits, check_words, tag_numbers
from ds_moe_mtl.data.tokens import Arrays, tokenise, tokenise_targets
from ds_moe_mtl.tasks import TOKEN_KINDS, TaskSpec

CACHE_FORMAT = 3  # raise it when the arrays of a split change their meaning


CONTENT = (
    "input_ids",
    "offsets",
    "second_start",
    "labels",
    "weights",
    "questions",
    "parts",
    "spans",
    "targets",
    "target_offsets",
    "label_sets",
    "unit_places",
    "unit_offsets",
    "unit_labels",
    "unit_words",
    "word_tags",
    "word_offsets",
    "unit_chars",
    "contexts",
    "context_offsets",
    "golds",
    "gold_offsets",
)
"""The arrays of a split that training and scoring read."""


NOT_OF_TOKENS = (
    *("published_dev_size", "metrics", "class_weights", "balanced", "loss_weight"),
    *("sampling_weight", "threshold", "thresholds", "longest_answer", "test_file"),
)
"""Values of a task's row that change nothing of its splits."""


@dataclass(frozen=True)
class EncodedSplit:
    """N token sequences of one task's split; numpy arrays, mapped from the cache file.

    A unit is what a head of TOKEN_KINDS answers for: a word that has a piece, or a token of the
    context. U units, W words and L labels in all.
    """

    input_ids: np.ndarray  # int32 [all tokens], one sequence after the other
    offsets: np.ndarray  # int64 [N + 1], where each begins
    second_start: np.ndarray  # int32 [N], first token of segment 2; the length if there is none
    labels: np.ndarray  # float32 [N], class number or score; ranking: 1 = the right choice
    weights: np.ndarray  # float32 [N], what the sequence counts in the loss; sums to 1 an example
    questions: np.ndarray  # int64 [N], the example it belongs to, non-decreasing from 0
    parts: np.ndarray  # int8 [N], which of the task's dev splits
    spans: np.ndarray | None = None  # int32 [N, 2, 2], two words as tokens [start, end)
    targets: np.ndarray | None = None  # int32, the answers' tokens, where they are generated
    target_offsets: np.ndarray | None = None  # int64 [N + 1]
    label_sets: np.ndarray | None = None  # int8 [N, L], which labels it has
    unit_places: np.ndarray | None = None  # int32 [U], the unit's token within its sequence
    unit_offsets: np.ndarray | None = None  # int64 [N + 1], where each sequence's units begin
    unit_labels: np.ndarray | None = None  # int32 [U], a tag; answer_spans.FIRST and LAST as bits
    unit_words: np.ndarray | None = None  # tags: int32 [U], the unit's word within its row
    word_tags: np.ndarray | None = None  # tags: int32 [W], of all words, those without a piece too
    word_offsets: np.ndarray | None = None  # tags: int64 [N + 1]
    unit_chars: np.ndarray | None = None  # answer: int32 [U, 2], characters of the context
    contexts: np.ndarray | None = None  # answer: uint8, UTF-8 of each context
    context_offsets: np.ndarray | None = None  # answer: int64 [N + 1]
    golds: np.ndarray | None = None  # answer: uint8, JSON of each row's right answers
    gold_offsets: np.ndarray | None = None  # answer: int64 [N + 1]
    cached: bool = False  # read from the cache, not made now
    origin: str = ""  # the file or data set the rows are from
    cut: int = 0  # examples with a text that was cut at max_length

    @property
    def num_sequences(self) -> int:
        return len(self.labels)

    @property
    def num_examples(self) -> int:
        """Examples (a ranking example has one sequence a choice)."""
        return int(self.questions[-1]) + 1 if len(self.questions) else 0

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each sequence, int64 [N]."""
        return np.diff(self.offsets)

    @property
    def num_outputs(self) -> int:
        """Rows that a head gives for the split: its units where it reads tokens, else sequences."""
        return self.num_sequences if self.unit_places is None else len(self.unit_places)

    @property
    def unseen_words(self) -> int:
        """Words that no head sees: cut at the length, or without a piece."""
        return 0 if self.word_tags is None else len(self.word_tags) - len(self.unit_words)

    @property
    def lost_answers(self) -> int:
        """Answers that are not, or not whole, within the tokens that were kept."""
        if self.golds is None:
            return 0
        return self.num_sequences - int(((self.unit_labels & FIRST) > 0).sum())

    @cached_property
    def sequence_hashes(self) -> np.ndarray:
        """A hash of each sequence's tokens, segments included, uint64 [N]."""
        return segment_hashes(self.input_ids, self.offsets, self.second_start)

    def content_hash(self) -> str:
        """A SHA-256 of the split's arrays: the same wherever and however they were made."""
        total = hashlib.sha256()
        for name in CONTENT:
            values = getattr(self, name)
            if values is not None:
                total.update(f"{name} {values.dtype.str} {values.shape} ".encode())
                total.update(np.ascontiguousarray(values))
        return total.hexdigest()


def encode_task(
    spec: TaskSpec,
    split: str,
    tokenizer,
    root: str | None,
    cache: str | Path | None = None,
    max_length: int | None = None,
    limit: int | None = None,
    seed: int = 0,
    sample: tuple[float, int] | None = None,
) -> EncodedSplit:
    """The task's "train", "dev" or "test" as token sequences.

    tokenizer: a fast Hugging Face tokenizer. root: see `data.source.read_split`. cache: folder
    (None: the user's cache folder). max_length: tokens (None: the task's own). limit: a random
    subset of at most that many examples, fixed by `seed`. sample: (share of the published
    examples, seed) of a draw class by class (see `sample.stratified`), before `limit`. The cache
    key is the content of the rows, the tokenizer, the task's row, the length and the subset.
    Raises UserError for bad data.
    """
    length = _length(spec, tokenizer, max_length)
    sources = [find_split(spec, name, root) for name in spec.splits(split)]
    folder = Path(cache).expanduser() if cache is not None else default_cache()
    key = {
        "format": CACHE_FORMAT,
        "spec": spec.to_dict(),
        "split": split,
        "rows": [source.content for source in sources],
        "tokenizer": tokenizer_hash(tokenizer),
        "max_length": length,
        "subset": None if limit is None else [limit, seed],
    }
    for name in NOT_OF_TOKENS:
        key["spec"].pop(name)
    if sample is not None:
        key["sample"] = sample
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    file_name = re.sub(r"[^\w.-]", "_", f"{spec.name}-{split}-{digest[:20]}.safetensors")
    path = folder / file_name
    if (found := load_arrays(path)) is not None:
        return _split_of(found, cached=True)
    with one_writer(path):
        if (found := load_arrays(path)) is not None:
            return _split_of(found, cached=True)
        arrays = _encode_sources(spec, sources, tokenizer, length, limit, seed, sample)
        origin = ", ".join(source.origin for source in sources)
        save_arrays(path, arrays, {"origin": origin, "cut": str(_take_cut(arrays))})
    found = load_arrays(path)
    assert found is not None, f"{path} was damaged while it was written"
    return _split_of(found, cached=False)


def encode_columns(
    spec: TaskSpec,
    columns: dict[str, list],
    tokenizer,
    max_length: int | None,
    origin: str,
    blank: bool = False,
) -> EncodedSplit:
    """Rows that are in memory as token sequences; without the label column, labels are 0.

    blank: whether all texts of a column may be empty.
    """
    length = _length(spec, tokenizer, max_length)
    arrays = _encode_rows(spec, columns, tokenizer, length, origin, blank)
    cut = _take_cut(arrays)
    return EncodedSplit(**arrays, origin=origin, cut=cut)


def tokenizer_hash(tokenizer) -> str:
    """A hash of everything that decides how the tokenizer splits text."""
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()  # left over from the call before; set anew by every call
    backend.no_padding()
    about = f"{tokenizer.truncation_side} {sorted(tokenizer.model_input_names)} {backend.to_str()}"
    return hashlib.sha256(about.encode()).hexdigest()


def _length(spec: TaskSpec, tokenizer, asked: int | None) -> int:
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(f"model.encoder: {type(tokenizer).__name__} is not a fast tokenizer")
    longest = tokenizer.model_max_length
    if asked is not None and asked > longest:
        raise UserError(f"train.max_length: {asked} tokens; the encoder takes at most {longest}")
    return min(spec.max_length, longest) if asked is None else asked


def _encode_sources(
    spec: TaskSpec,
    sources: list[Source],
    tokenizer,
    length: int,
    limit: int | None,
    seed: int,
    sample: tuple[float, int] | None,
) -> Arrays:
    pieces, examples = [], 0
    for part, source in enumerate(sources):
        columns = chosen_rows(spec, sources, part, limit, seed, sample)
        arrays = _encode_rows(spec, columns, tokenizer, length, source.origin)
        arrays["parts"] += part
        arrays["questions"] += examples
        examples = int(arrays["questions"][-1]) + 1
        pieces.append(arrays)
    if len(pieces) == 1:
        return pieces[0]
    tokens = np.cumsum([0, *(len(piece["input_ids"]) for piece in pieces)])
    joined = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
    starts = [piece["offsets"][:-1] + start for piece, start in zip(pieces, tokens, strict=False)]
    joined["offsets"] = np.concatenate([*starts, tokens[-1:]]).astype(np.int64)
    return joined


def _take_cut(arrays: Arrays) -> int:
    """Remove which sequences were cut from the arrays, and return how many examples were."""
    cut = arrays.pop("cut")
    return len(np.unique(arrays["questions"][cut]))


def _encode_rows(
    spec: TaskSpec,
    columns: dict[str, list],
    tokenizer,
    length: int,
    origin: str,
    blank: bool = False,
) -> Arrays:
    if spec.prefix:
        check_text(columns, spec.text[:1], origin, blank)
        columns = prefixed(spec, columns)
    if spec.kind in ("options", "text"):
        return _encode_answers(spec, columns, tokenizer, length, origin, blank)
    if spec.kind in ("multilabel", *TOKEN_KINDS):
        return _encode_shapes(spec, columns, tokenizer, length, origin, blank)
    texts = [*spec.text, *spec.choices, *((spec.joined,) if spec.joined else ())]
    check_text(columns, texts, origin, blank)
    arrays = tokenise(spec, columns, tokenizer, length, origin)
    rows = arrays["questions"]
    numbers = np.zeros(rows[-1] + 1, dtype=np.float32)
    if spec.label in columns:
        numbers = label_numbers(spec, columns[spec.label], origin)
    per_row = max(1, len(spec.choices))
    if spec.choices:
        choice = np.arange(len(rows)) % per_row
        arrays["labels"] = (numbers[rows] == choice).astype(np.float32)
    else:
        arrays["labels"] = numbers
    arrays["weights"] = np.full(len(rows), 1 / per_row, dtype=np.float32)
    arrays["parts"] = np.zeros(len(rows), dtype=np.int8)
    return arrays


def prefixed(spec: TaskSpec, columns: dict[str, list]) -> dict[str, list]:
    if not spec.prefix:
        return columns
    return {**columns, spec.text[0]: [spec.prefix + text for text in columns[spec.text[0]]]}


def _encode_answers(
    spec: TaskSpec, columns: dict[str, list], tokenizer, length: int, origin: str, blank: bool
) -> Arrays:
    """Rows with text answers: a sequence an option, or one with the answer's own tokens."""
    labelled = spec.label in columns
    check_text(columns, [*spec.text, *([spec.label] if labelled else [])], origin, blank)
    right = None
    if spec.kind == "options" and labelled:
        right = right_options(columns, spec.choices[0], spec.label, origin)
    arrays = tokenise(spec, columns, tokenizer, length, origin)
    rows = arrays["questions"]
    if spec.kind == "text" and labelled:
        arrays |= tokenise_targets(columns[spec.label], tokenizer)
    arrays["labels"] = np.zeros(len(rows), dtype=np.float32) if right is None else right
    arrays["weights"] = (1 / np.bincount(rows)[rows]).astype(np.float32)
    arrays["parts"] = np.zeros(len(rows), dtype=np.int8)
    return arrays


def _encode_shapes(
    spec: TaskSpec, columns: dict[str, list], tokenizer, length: int, origin: str, blank: bool
) -> Arrays:
    """Rows with a set of labels, with a tag for each word, or with an answer in their context."""
    labelled = all(name in columns for name in spec.target_columns)
    if spec.kind == "tags":
        words, tags = spec.text[0], spec.label
        check_words(columns, words, tags if labelled else None, origin)
        numbers = tag_numbers(spec, columns[tags], origin) if labelled else None
        units = WordUnits(columns[words])
        arrays = tokenise(spec, {words: units.texts}, tokenizer, length, origin, units.add)
        arrays |= units.arrays(numbers)
    elif spec.kind == "answer":
        check_text(columns, spec.text, origin, blank)
        right = golds(spec, columns, origin) if labelled else None
        context = ContextUnits(columns[spec.text[1]], right)
        arrays = tokenise(spec, columns, tokenizer, length, origin, context.add)
        arrays |= context.arrays()
    else:
        check_text(columns, spec.text, origin, blank)
        sets_NL = label_sets(spec, columns, origin) if labelled else None
        arrays = tokenise(spec, columns, tokenizer, length, origin)
        size = (len(arrays["questions"]), len(spec.labels))
        arrays["label_sets"] = np.zeros(size, dtype=np.int8) if sets_NL is None else sets_NL
    rows = len(arrays["questions"])
    arrays["labels"] = np.zeros(rows, dtype=np.float32)
    arrays["weights"] = np.ones(rows, dtype=np.float32)
    arrays["parts"] = np.zeros(rows, dtype=np.int8)
    return arrays


def _split_of(found: tuple[Arrays, dict[str, str]], cached: bool) -> EncodedSplit:
    arrays, notes = found
    return EncodedSplit(**arrays, cached=cached, origin=notes["origin"], cut=int(notes["cut"]))
