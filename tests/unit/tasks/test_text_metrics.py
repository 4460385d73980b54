"""Metrics of generated answers on hand-worked examples."""

import pytest

from ds_moe_mtl.tasks.text_metrics import normalised, score_text


def test_answers_are_compared_without_case_punctuation_and_articles():
    assert normalised(" The  Beatles, (a band)! ") == "beatles band"
    assert score_text("exact_match", ["The cat.", "dog"], ["cat", "a dig"]) == 50
    assert score_text("accuracy", ["Yes ", "The cat"], ["yes", "cat"]) == 50


def test_word_f1_counts_shared_words_as_often_as_they_occur():
    # 2 of 3 predicted and 2 of 2 wanted: 0.8; nothing shared: 0
    assert score_text("word_f1", ["big red dog", "x"], ["red dog", "y"]) == pytest.approx(40)


def test_rouge_l_is_the_f_measure_of_the_longest_common_subsequence():
    # "the cat on mat" of "the cat sat on the mat": 4 of 4 and 4 of 6 words
    value = score_text("rouge_l", ["the cat on mat"], ["the cat sat on the mat"])
    assert value == pytest.approx(100 * 2 * 1 * (4 / 6) / (1 + 4 / 6))


def test_class_metrics_take_words_as_classes():
    gold, predicted = ["yes", "no", "no", "yes"], ["yes", "no", "yes", "yes"]
    # yes: 2 of 3 and 2 of 2 (0.8); no: 1 of 1 and 1 of 2 (2 / 3)
    assert score_text("macro_f1", predicted, gold) == pytest.approx(100 * (0.8 + 2 / 3) / 2)
    # true positives 2, false positives 1, true negatives 1
    matthews = (2 * 1 - 1 * 0) / (3 * 2 * 2 * 1) ** 0.5
    assert score_text("matthews", predicted, gold) == pytest.approx(100 * matthews)


def test_pearson_reads_numbers_and_takes_other_text_for_their_mean():
    assert score_text("pearson", ["1", "2", "3"], ["2", "4", "6"]) == pytest.approx(100)
    assert score_text("pearson", ["1", "good", "3"], ["2", "4", "6"]) == pytest.approx(100)
    assert score_text("pearson", ["good", "bad"], ["2", "4"]) == 0


def test_a_metric_that_text_has_none_of_is_refused():
    with pytest.raises(ValueError, match="metric 'spearman'; allowed for text: exact_match"):
        score_text("spearman", ["1"], ["1"])


@pytest.mark.parametrize("odd", ["inf", "-inf", "nan", "1e400", "1_0", "many"])
def test_a_prediction_that_is_no_finite_number_counts_as_the_mean_of_the_others(odd):
    answers = ["1", "2", "3", "4"]
    found = score_text("pearson", ["1", "2", odd, "6"], answers)
    assert found == pytest.approx(score_text("pearson", ["1", "2", "3", "6"], answers))


def test_an_answer_that_is_no_number_has_no_correlation():
    with pytest.raises(ValueError, match="answer 1 is no number: 'two'"):
        score_text("pearson", ["1", "2"], ["1", "two"])
