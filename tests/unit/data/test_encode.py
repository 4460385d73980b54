"""Text to tokens: segments, truncation, word spans, ranking, labels, subsets."""

import numpy as np
import pytest

from ds_moe_mtl.config import UserError
from ds_moe_mtl.data import encode_columns, encode_task
from ds_moe_mtl.tasks import expand_tasks, get_task
from tests.support.paths import minilm_tokenizer, shared_data


def columns_of(name, *rows):
    """Columns of a known task from one tuple a row, in the order of the spec's columns."""
    names = get_task(name).columns
    return {column: [row[i] for row in rows] for i, column in enumerate(names)}


def encoded(name, *rows, max_length=None):
    return encode_columns(
        get_task(name), columns_of(name, *rows), minilm_tokenizer(), max_length, "here"
    )


def text_of(split, row, part=slice(None)):
    ids = split.input_ids[split.offsets[row] : split.offsets[row + 1]][part]
    return minilm_tokenizer().decode(ids)


def test_a_pair_is_two_segments_and_a_single_text_one():
    pair = encoded("rte", ("A dog ran.", "It moved.", 0))
    assert text_of(pair, 0) == "[CLS] a dog ran. [SEP] it moved. [SEP]"
    assert text_of(pair, 0, slice(pair.second_start[0], None)) == "it moved. [SEP]"
    single = encoded("cola", ("A dog ran.", 1))
    assert single.second_start[0] == single.lengths[0]


def test_the_longer_text_of_a_pair_is_cut_on_the_right():
    split = encoded("rte", ("one two three four five six", "seven eight", 0), max_length=9)
    assert text_of(split, 0) == "[CLS] one two three four [SEP] seven eight [SEP]"


def test_tokens_are_those_of_transformers_with_padding_removed():
    root = shared_data()
    spec, tokenizer = get_task("rte"), minilm_tokenizer()
    from ds_moe_mtl.data import read_split

    columns = read_split(spec, "validation", str(root))
    split = encode_columns(spec, columns, tokenizer, 64, "rte")
    padded = tokenizer(
        *(columns[name] for name in spec.text),
        truncation="longest_first",
        max_length=64,
        padding="longest",
        return_tensors="np",
    )
    for row in range(split.num_sequences):
        real = padded["attention_mask"][row].astype(bool)
        ids = split.input_ids[split.offsets[row] : split.offsets[row + 1]]
        assert np.array_equal(ids, padded["input_ids"][row][real])
        types = (np.arange(len(ids)) >= split.second_start[row]).astype(int)
        assert np.array_equal(types, padded["token_type_ids"][row][real])


def test_a_ranking_question_gives_one_sequence_a_choice_of_half_the_weight():
    split = encoded(
        "copa",
        ("It rained.", "effect", "Grass grew.", "Grass burned.", 0),
        ("The glass broke.", "cause", "It slept.", "It fell.", 1),
    )
    assert split.questions.tolist() == [0, 0, 1, 1] and split.num_examples == 2
    assert split.labels.tolist() == [1, 0, 0, 1]
    assert split.weights.tolist() == [0.5] * 4
    assert text_of(split, 1) == (
        "[CLS] it rained. what happened as a result? [SEP] grass burned. [SEP]"
    )


def test_a_long_paragraph_is_cut_before_its_question():
    paragraph = " ".join(f"word{i}" for i in range(200))
    split = encoded("multirc", (paragraph, "The cat.", "Who came home?", 1), max_length=40)
    assert split.lengths[0] == 40
    assert text_of(split, 0).endswith("who came home? [SEP] the cat. [SEP]")


def test_word_spans_cover_the_pieces_of_the_word_in_each_text():
    first, second = "The zymurgist left.", "A tall zymurgist, they say, came back."
    split = encoded("wic", (first, second, 4, 13, 7, 16, 1))
    for part in (0, 1):
        begin, end = split.spans[0, part]
        assert text_of(split, 0, slice(begin, end)) == "zymurgist"


def test_every_word_of_wic_is_found_where_its_offsets_say():
    spec, root = get_task("wic"), shared_data()
    from ds_moe_mtl.data import read_split

    columns = read_split(spec, "validation", str(root))
    split = encode_columns(spec, columns, minilm_tokenizer(), None, "wic")
    for row in range(split.num_sequences):
        for part, name in enumerate(spec.text):
            begin, end = (columns[column][row] for column in spec.spans[2 * part : 2 * part + 2])
            word = columns[name][row][begin:end].lower()
            pieces = text_of(split, row, slice(*split.spans[row, part])).replace(" ", "")
            assert word.replace(" ", "") in pieces


def test_a_word_that_truncation_cut_off_is_told_with_its_row():
    good = ("A bat.", "A bat flew.", 2, 5, 2, 5, 1)
    late = ("A bat.", "x " * 50 + "bat", 2, 5, 100, 103, 1)
    with pytest.raises(UserError, match=r"here: row 1 .*sentence2.*first 32 tokens"):
        encoded("wic", good, late, max_length=32)


def test_a_word_span_beyond_the_text_is_told_with_its_row():
    with pytest.raises(UserError, match=r"row 0 .*characters 4 to 90"):
        encoded("wic", ("A bat.", "A bat.", 4, 90, 2, 5, 0))


def test_a_label_outside_the_label_set_is_told_with_its_row():
    with pytest.raises(UserError, match=r"here: row 1 .*label 2 in .*entailment, not_entailment"):
        encoded("rte", ("a b", "c", 0), ("a b", "c", 2))
    with pytest.raises(UserError, match=r"row 0 .*label -1"):
        encoded("rte", ("a b", "c", -1))
    with pytest.raises(UserError, match=r"row 0 .*label 'maybe'"):
        encoded("scitail", ("a b", "c", "maybe"))
    with pytest.raises(UserError, match=r"row 1 .*label None .*not a finite number"):
        encoded("stsb", ("a b", "c", 1.5), ("a b", "c", None))


def test_labels_may_be_class_names_or_numbers():
    split = encoded("scitail", ("a b", "c", "neutral"), ("a b", "c", 0))
    assert split.labels.tolist() == [1, 0]


def test_a_text_column_that_is_empty_or_not_text_is_told():
    with pytest.raises(UserError, match="here: every text of column 'sentence2' is empty"):
        encoded("rte", ("a b", "", 0), ("c d", "  ", 1))
    with pytest.raises(UserError, match=r"row 1 .*'sentence1' holds 7, not text"):
        encoded("rte", ("a b", "c", 0), (7, "d", 1))


def test_a_length_without_room_for_text_is_told():
    with pytest.raises(UserError, match="max_length: 4 tokens"):
        encoded("rte", ("a b", "c", 0), max_length=4)
    with pytest.raises(UserError, match="train.max_length: 1024 tokens.*at most 512"):
        encoded("rte", ("a b", "c", 0), max_length=1024)


def test_a_tokenizer_without_segments_gives_one_segment():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"[UNK]": 0, "dog": 1, "cat": 2}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="[UNK]",
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=16,
    )
    split = encode_columns(
        get_task("rte"), columns_of("rte", ("dog dog", "cat", 0)), tokenizer, None, "here"
    )
    assert split.input_ids.tolist() == [1, 1, 2] and split.second_start.tolist() == [3]


def roberta_like():
    """A byte-level tokenizer with RoBERTa's special tokens: <s> a </s></s> b </s>, no segments."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    specials = ["<s>", "</s>", "<pad>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["the bat flew", "a wooden bat"], trainer)
    backend.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=64,
    )


def test_word_spans_and_segments_of_a_roberta_like_tokenizer():
    tokenizer, spec = roberta_like(), get_task("wic")
    row = ("the bat flew", "a wooden bat", 4, 7, 9, 12, 0)
    split = encode_columns(spec, columns_of("wic", row), tokenizer, None, "here")
    assert tokenizer.decode(split.input_ids) == "<s>the bat flew</s></s>a wooden bat</s>"
    assert split.second_start[0] == split.lengths[0]
    for begin, end in split.spans[0]:
        assert tokenizer.decode(split.input_ids[begin:end]).strip() == "bat"


def test_a_roberta_like_tokenizer_keeps_the_question_of_a_long_paragraph():
    tokenizer, spec = roberta_like(), get_task("multirc")
    row = ("the wooden bat " * 60 + "flew", "the bat", "who flew?", 1)
    split = encode_columns(spec, columns_of("multirc", row), tokenizer, 40, "here")
    assert split.lengths[0] in (39, 40)  # a blank that is a token of its own may go with the cut
    assert tokenizer.decode(split.input_ids).endswith(" who flew?</s></s>the bat</s>")


def test_a_subset_is_fixed_by_the_seed_and_takes_both_dev_splits_alike(tmp_path):
    root, spec = str(shared_data()), get_task("mnli")

    def dev(seed):
        cache = tmp_path / "cache"
        return encode_task(spec, "dev", minilm_tokenizer(), root, cache, limit=21, seed=seed)

    first, other = dev(0), dev(1)
    assert np.bincount(first.parts).tolist() == [11, 10]
    assert first.questions.tolist() == list(range(21))
    assert not np.array_equal(first.input_ids, other.input_ids)
    assert np.array_equal(dev(0).input_ids, first.input_ids)


@pytest.mark.parametrize("name", expand_tasks(["glue++", "scitail"]))
def test_every_set_of_the_paper_reads_from_the_local_layout(name, tmp_path):
    root = shared_data()
    spec = get_task(name)
    if not (root / spec.folder).is_dir() and not spec.stand_ins:
        pytest.skip(f"no {spec.folder} in the data root")
    for split in ("train", "dev"):
        found = encode_task(
            spec, split, minilm_tokenizer(), str(root), tmp_path, max_length=64, limit=20
        )
        assert found.num_examples == 20
        assert found.weights.sum() == pytest.approx(20)
        assert (found.spans is not None) == (spec.kind == "span")
        if spec.stand_ins and split == "train":
            assert "not the published train split" in found.origin
