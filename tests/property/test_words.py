"""Words and pieces: whatever the words are, a word's piece is one of its own characters."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ds_moe_mtl.data import encode_columns
from ds_moe_mtl.data.tagged import first_pieces
from ds_moe_mtl.tasks import TaskSpec
from tests.support.paths import minilm_tokenizer

SPEC = TaskSpec("t", "tags", ("tokens",), label="tags", labels=("O", "B-X"), max_length=32)
odd = st.sampled_from(
    ["", " ", "é", "é", "한국어", "👩‍👩‍👧", "\u200b", "́", "x" * 300, "a b", "don't", "ﬁ"]
)
words = st.lists(st.text(max_size=8) | odd, min_size=1, max_size=12)
quick = settings(max_examples=100, deadline=None)


def is_unicode(row):
    return all(word.encode(errors="replace").decode() == word for word in row)


@quick
@given(words.filter(is_unicode))
def test_a_words_first_piece_begins_within_the_word_and_no_earlier_one_does(row):
    text = " ".join(row)
    encoding = minilm_tokenizer()(text, truncation=True, max_length=32).encodings[0]
    found = first_pieces(row, encoding.offsets)
    begin = 0
    for word, place in zip(row, found.tolist(), strict=True):
        end = begin + len(word)
        inside = [n for n, (a, b) in enumerate(encoding.offsets) if a < b and a < end and b > begin]
        assert place == (inside[0] if inside else -1)
        begin = end + 1


@quick
@given(st.lists(words.filter(is_unicode), min_size=1, max_size=4))
def test_every_word_has_a_tag_and_those_that_are_seen_have_a_unit(rows):
    tags = [["B-X"] * len(row) for row in rows]
    columns = {"tokens": rows, "tags": tags}
    split = encode_columns(SPEC, columns, minilm_tokenizer(), None, "here")
    assert np.diff(split.word_offsets).tolist() == list(map(len, rows))
    assert (split.word_tags == 1).all() and (split.unit_labels == 1).all()
    lengths = split.lengths[np.repeat(np.arange(len(rows)), np.diff(split.unit_offsets))]
    assert (split.unit_places > 0).all() and (split.unit_places < lengths - 1).all()
    assert split.unseen_words == sum(map(len, rows)) - len(split.unit_places)


@pytest.mark.parametrize("row", [["plain", "words", "Tokenization"], ["x" * 300, "after"]])
def test_the_library_finds_the_same_pieces_of_plain_words(row):
    found = minilm_tokenizer()(row, is_split_into_words=True, truncation=True, max_length=32)
    ids = found.word_ids()
    expected = [ids.index(word) if word in ids else -1 for word in range(len(row))]
    encoding = minilm_tokenizer()(" ".join(row), truncation=True, max_length=32).encodings[0]
    assert first_pieces(row, encoding.offsets).tolist() == expected
