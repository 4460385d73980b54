"""Rows of the few-shot gym, from one table and from CrossFit's and MetaICL's folders."""

import json

import numpy as np
import pytest

from ds_moe_mtl.config import OwnTask, UserError
from ds_moe_mtl.data import encode_task, own_spec, read_split
from ds_moe_mtl.tasks import get_task, task_groups
from ds_moe_mtl.tasks.text2text import as_text, of_seed, on_test
from tests.support.gym import write_gym
from tests.support.paths import minilm_tokenizer, shared_data
from tests.support.tiny import write_encoder


@pytest.fixture(scope="module")
def gym(tmp_path_factory):
    return write_gym(tmp_path_factory.mktemp("gym"))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(write_encoder(tmp_path_factory.mktemp("encoder")))


def rows(columns):
    return set(zip(columns["input"], columns["output"], strict=True))


def test_a_sample_has_its_own_rows_and_the_pool_has_all(gym):
    spec = get_task("gym-quarel")
    pool = read_split(spec, "train", str(gym))
    samples = [read_split(of_seed(spec, s), f"train@{s}", str(gym)) for s in (13, 21, 42, 87, 100)]
    assert all(len(sample["input"]) == 8 for sample in samples)
    assert rows(pool) == set().union(*map(rows, samples))
    assert all(text.startswith("[quarel] ") for text in pool["input"])


def test_the_pooled_dev_split_has_no_input_of_the_pooled_train(tmp_path):
    spec = get_task("gym-quarel")
    write_gym(tmp_path, rows=60)
    train, dev = (read_split(spec, split, str(tmp_path)) for split in ("train", "dev"))
    assert dev["input"] and not set(train["input"]) & set(dev["input"])


def test_every_option_is_a_sequence_of_its_question(gym, tokenizer):
    spec = on_test(of_seed(get_task("gym-quarel"), 13))
    split = encode_task(spec, "train", tokenizer, str(gym), gym / "cache")
    assert (split.num_examples, split.num_sequences) == (8, 24)
    np.testing.assert_array_equal(np.add.reduceat(split.labels, np.arange(0, 24, 3)), 1)
    np.testing.assert_allclose(split.weights, 1 / 3)
    test = encode_task(spec, "dev", tokenizer, str(gym), gym / "cache")
    assert test.num_examples == 12
    first = tokenizer.decode(test.input_ids[: test.offsets[1]])
    assert first.count("[SEP]") == 2


def test_a_task_as_text_has_its_answers_as_targets(gym, tokenizer):
    split = encode_task(
        as_text(get_task("gym-quarel")), "train", tokenizer, str(gym), gym / "cache"
    )
    columns = read_split(as_text(get_task("gym-quarel")), "train", str(gym))
    assert split.num_sequences == split.num_examples == len(columns["output"])
    ends = split.target_offsets
    answers = [
        tokenizer.decode(split.targets[a:b], skip_special_tokens=True)
        for a, b in zip(ends[:-1], ends[1:], strict=True)
    ]
    assert answers == columns["output"]
    # The options are not fixed, so the input has to show them.
    assert all(f"({letter})" in columns["input"][0] for letter in "ABC")


def test_folders_of_metaicl_and_crossfit_are_read_where_there_is_no_table(tmp_path):
    folder = tmp_path / "fewshot_gym" / "emo"
    folder.mkdir(parents=True)
    row = {
        "task": "emo",
        "input": "glad to see you",
        "output": "happy",
        "options": ["sad", "happy"],
    }
    (folder / "emo_16_13_train.jsonl").write_text(json.dumps(row) + "\n")
    columns = read_split(of_seed(get_task("gym-emo"), 13), "train@13", str(tmp_path))
    assert columns == {
        "input": ["[emo] glad to see you"],
        "output": ["happy"],
        "options": [["sad", "happy"]],
    }
    folder = tmp_path / "fewshot_gym" / "web_questions"
    folder.mkdir()
    (folder / "web_questions_16_13_train.tsv").write_text("who wrote it\tShelley\tMary Shelley\n")
    columns = read_split(of_seed(get_task("gym-web_questions"), 13), "train@13", str(tmp_path))
    assert (columns["input"], columns["output"]) == (["[web_questions] who wrote it"], ["Shelley"])


@pytest.mark.parametrize(
    ("task", "split", "root", "words"),
    [
        ("gym-emo", "train@13", "{}/nowhere", "needs .*fewshot.parquet or .*emo_16_<seed>_train"),
        ("gym-emo", "train@14", "{}", "task 'gym-emo' has no train@14 rows"),
        ("gym-anli", "train", "{}", "task 'gym-anli' has no train rows"),
        ("gym-emo", "train", None, "of the few-shot gym, which no single set of the Hub holds"),
    ],
)
def test_what_is_not_there_is_one_line(gym, task, split, root, words):
    with pytest.raises(UserError, match=words):
        read_split(get_task(task), split, root and root.format(gym))


def test_an_answer_that_is_no_option_is_refused_with_its_row(tmp_path, tokenizer):
    folder = tmp_path / "fewshot_gym" / "emo"
    folder.mkdir(parents=True)
    row = {"input": "glad", "output": "merry", "options": ["sad", "happy"]}
    (folder / "emo_16_13_train.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match="row 0 .*'merry' is not one of the options"):
        encode_task(
            of_seed(get_task("gym-emo"), 13), "train", tokenizer, str(tmp_path), tmp_path / "c"
        )


def test_every_unseen_task_of_the_real_gym_has_16_rows_a_sample_and_test_rows(tmp_path):
    root = str(shared_data())
    for name in task_groups()["gym_unseen"]:
        spec = get_task(name)
        for seed in (13, 100):
            for part in ("train", "dev"):
                split = read_split(of_seed(spec, seed), f"{part}@{seed}", root)
                assert 14 <= len(split["input"]) <= 16, (name, seed, part)
        test = read_split(spec, "test", root)
        assert len(test["input"]) >= 50
    split = encode_task(
        of_seed(get_task("gym-ai2_arc"), 13), "train", minilm_tokenizer(), root, tmp_path
    )
    assert split.num_examples == 16 and 3 * 16 <= split.num_sequences <= 5 * 16


def test_prompts_in_p3s_form_are_rows_of_the_users_own(tmp_path, tokenizer):
    rows = [
        {
            "inputs_pretokenized": f"{word} is a colour?",
            "targets_pretokenized": "\n" + ("yes" if word == "red" else "no"),
            "answer_choices": ["yes", "no"],
        }
        for word in ("red", "cat", "dog", "bird")
    ]
    (tmp_path / "p3.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = {
        "name": "colour",
        "train": str(tmp_path / "p3.jsonl"),
        "dev": str(tmp_path / "p3.jsonl"),
        "text": "inputs_pretokenized",
        "label": "targets_pretokenized",
    }
    spec = own_spec(OwnTask(**own, options="answer_choices"))
    split = encode_task(spec, "train", tokenizer, None, tmp_path / "cache")
    assert (split.num_examples, split.num_sequences, spec.metric) == (4, 8, "accuracy")
    np.testing.assert_array_equal(split.labels, [1, 0, 0, 1, 0, 1, 0, 1])
    text = own_spec(OwnTask(**own, kind="text", metric="exact_match"))
    assert encode_task(text, "dev", tokenizer, None, tmp_path / "cache").targets is not None
    with pytest.raises(ValueError, match="kind = text and options; allowed: one of them"):
        OwnTask(**own, kind="text", options="answer_choices")
