"""Low-resource samples: a share of the published examples, class by class, fixed by a seed."""

from collections import Counter

from ds_moe_mtl.data import encode_task
from ds_moe_mtl.data.sample import stratified
from ds_moe_mtl.tasks import TaskSpec, get_task
from tests.support.paths import minilm_tokenizer, shared_data
from tests.support.splits import spec_of_size


def rows(labels):
    return {"text": [f"text {i}" for i in range(len(labels))], "label": list(labels)}


def test_a_sample_keeps_the_proportion_of_the_classes_and_the_order_of_the_rows():
    columns = rows([0] * 600 + [1] * 300 + [2] * 100)
    drawn = stratified(spec_of_size("task", 1000), columns, 0.1, seed=0)
    assert Counter(drawn["label"]) == {0: 60, 1: 30, 2: 10}
    numbers = [int(text.split()[1]) for text in drawn["text"]]
    assert numbers == sorted(numbers)


def test_the_share_is_of_the_published_size_and_a_smaller_set_is_taken_whole():
    columns = rows([0, 1] * 79)
    scitail = spec_of_size("scitail", 23_596)
    assert len(stratified(scitail, columns, 0.1, 0)["label"]) == 158
    assert len(stratified(scitail, columns, 0.001, 0)["label"]) == 24
    assert len(stratified(spec_of_size("own"), columns, 0.5, 0)["label"]) == 79


def test_a_rare_class_keeps_one_example_and_the_total_is_exact():
    drawn = stratified(spec_of_size("task", 1000), rows([0] * 990 + [1] * 10), 0.01, seed=3)
    assert Counter(drawn["label"]) == {0: 9, 1: 1}
    drawn = stratified(spec_of_size("task", 999), rows([0, 1, 2] * 333), 0.01, seed=3)
    assert len(drawn["label"]) == 10


def test_the_seed_fixes_the_draw_and_another_draws_others():
    columns = rows([0, 1] * 500)
    spec = spec_of_size("task", 1000)
    assert stratified(spec, columns, 0.1, 1) == stratified(spec, columns, 0.1, 1)
    assert stratified(spec, columns, 0.1, 1) != stratified(spec, columns, 0.1, 2)


def test_a_regression_is_drawn_without_classes():
    spec = TaskSpec("score", "regression", ("text",), published_size=200)
    assert len(stratified(spec, rows([i / 7 for i in range(200)]), 0.1, 0)["label"]) == 20


def test_one_percent_of_imdb_is_250_reviews_half_of_each_class(tmp_path):
    spec = get_task("imdb")
    arguments = (spec, "train", minilm_tokenizer(), str(shared_data()), tmp_path, 64)
    split = encode_task(*arguments, sample=(0.01, 0))
    assert split.num_examples == 250 and split.labels.sum() == 125
    again = encode_task(*arguments, seed=7, sample=(0.01, 0))
    assert again.cached and (again.input_ids == split.input_ids).all()
