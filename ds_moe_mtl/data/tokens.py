"""Rows of text as flat token sequences.

N sequences; sequence n is input_ids[offsets[n] : offsets[n + 1]].
"""

from collections.abc import Callable, Sequence
from itertools import chain

import numpy as np

from ds_moe_mtl.config import UserError
from ds_moe_mtl.tasks import TaskSpec

ROWS_AT_ONCE = 4096  # bounds the memory of the tokenizer's Python lists

TARGET_LENGTH = 64
"""Tokens of a generated answer, as in the public code of Ye, Zha and Ren (CrossTaskMoE)."""

Arrays = dict[str, np.ndarray]


def tokenise(
    spec: TaskSpec,
    columns: dict[str, list],
    tokenizer,
    max_length: int,
    origin: str,
    each: Callable[[int, object], None] | None = None,
) -> Arrays:
    """Arrays input_ids, offsets, second_start, questions, cut (and spans for a span task).

    cut: bool [N], whether the sequence lacks a part of its text. each(n, encoding) is called for
    every sequence, in order, with what the tokenizers library says of it.

    The longer text of a pair is cut on the right first (longest_first). A ranking row gives one
    sequence a choice. Raises UserError for a length below the tokenizer's own special tokens and
    for a word span that is cut off or not found (names the row).
    """
    heads, tails, seconds, questions = _segments(spec, columns)
    specials = tokenizer.num_special_tokens_to_add(pair=seconds is not None)
    if max_length <= specials + (seconds is not None):
        raise UserError(f"max_length: {max_length} tokens leave no room for {spec.name!r}'s text")
    cut = np.zeros(len(heads), dtype=bool)
    if tails is None:
        firsts = heads
    else:
        firsts, cut = _join(heads, tails, seconds, tokenizer, max_length - specials)
    has_types = "token_type_ids" in tokenizer.model_input_names
    ids, second_start, spans = [], [], []
    for start in range(0, len(firsts), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        batch = tokenizer(
            firsts[rows],
            None if seconds is None else seconds[rows],
            truncation="longest_first",
            max_length=max_length,
            return_attention_mask=False,
            return_token_type_ids=has_types,
        )
        ids.extend(np.array(sequence, dtype=np.int32) for sequence in batch["input_ids"])
        cut[rows] |= [bool(encoding.overflowing) for encoding in batch.encodings]
        for row, encoding in enumerate(batch.encodings if each else ()):
            each(start + row, encoding)
        if has_types:
            second_start.extend(len(types) - sum(types) for types in batch["token_type_ids"])
        else:
            second_start.extend(len(sequence) for sequence in batch["input_ids"])
        if spec.kind == "span":
            for row in range(len(batch["input_ids"])):
                spans.append(_word_spans(spec, columns, batch, row, start, max_length, origin))
    arrays = {
        "input_ids": np.concatenate(ids),
        "offsets": np.cumsum([0, *(len(sequence) for sequence in ids)], dtype=np.int64),
        "second_start": np.array(second_start, dtype=np.int32),
        "questions": np.array(questions, dtype=np.int64),
        "cut": cut,
    }
    if spec.kind == "span":
        arrays["spans"] = np.array(spans, dtype=np.int32)
    return arrays


def tokenise_targets(answers: Sequence[str], tokenizer) -> Arrays:
    """Arrays targets and target_offsets: each answer with the special tokens of a text."""
    ids = tokenizer(
        list(answers), truncation=True, max_length=TARGET_LENGTH, return_attention_mask=False
    )["input_ids"]
    return {
        "targets": np.array(list(chain.from_iterable(ids)), dtype=np.int32),
        "target_offsets": np.cumsum([0, *map(len, ids)], dtype=np.int64),
    }


def _segments(spec: TaskSpec, columns: dict[str, list]):
    """First texts, what is joined to them, second texts (each None: there are none), their rows."""
    heads = columns[spec.text[0]]
    seconds = columns[spec.text[1]] if len(spec.text) == 2 else None
    rows = list(range(len(heads)))
    tails = None
    if spec.joined:
        phrases = dict(spec.phrases)
        tails = [phrases.get(value, value) for value in columns[spec.joined]]
    if spec.kind == "options":
        options = columns[spec.choices[0]]
        seconds = list(chain.from_iterable(options))
        rows = [row for row in rows for _ in options[row]]
        heads = [heads[row] for row in rows]
    elif spec.choices and spec.kind != "text":
        seconds = list(chain.from_iterable(zip(*(columns[c] for c in spec.choices), strict=True)))
        rows = [row for row in rows for _ in spec.choices]
        heads = [heads[row] for row in rows]
        tails = tails and [tails[row] for row in rows]
    return heads, tails, seconds, rows


def _join(
    heads: Sequence[str], tails: Sequence[str], seconds: Sequence[str], tokenizer, room: int
) -> tuple[list[str], np.ndarray]:
    """Each head with its tail, the head shortened where the sequence has more tokens than `room`.

    With it which heads were shortened, bool [N].

    Cutting the joined text on the right would lose MultiRC's question: our choice is to cut the
    paragraph before it.
    """
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    # The same paragraph stands in many rows. The blank belongs to the first token of a tail.
    texts = list({*heads, *seconds, *(f" {tail}" for tail in tails)})
    pieces = dict(zip(texts, backend.encode_batch(texts, add_special_tokens=False), strict=True))
    joined, cut = [], np.zeros(len(heads), dtype=bool)
    for row, (head, tail, second) in enumerate(zip(heads, tails, seconds, strict=True)):
        tokens = len(pieces[head])
        excess = tokens + len(pieces[f" {tail}"]) + len(pieces[second]) - room
        if 0 < excess < tokens:
            head = head[: pieces[head].offsets[tokens - excess][0]].rstrip()
            cut[row] = True
        joined.append(f"{head} {tail}")
    return joined, cut


def _word_spans(
    spec: TaskSpec, columns: dict[str, list], batch, row: int, first: int, length: int, origin: str
) -> list[list[int]]:
    """The tokens [start, end) of the word in each of the two texts."""
    spans = []
    for part in (0, 1):
        begin, end = (columns[name][first + row] for name in spec.spans[2 * part : 2 * part + 2])
        text = columns[spec.text[part]][first + row]
        tokens = None
        if 0 <= begin < end <= len(text):
            tokens = (
                batch.char_to_token(row, begin, sequence_index=part),
                batch.char_to_token(row, end - 1, sequence_index=part),
            )
        if tokens is None or None in tokens:
            raise UserError(
                f"{origin}: row {first + row} (from 0): no word at characters {begin} to {end} "
                f"of column {spec.text[part]!r} within the first {length} tokens"
            )
        spans.append([tokens[0], tokens[1] + 1])
    return spans
