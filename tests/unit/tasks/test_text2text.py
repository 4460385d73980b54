"""CrossFit's tasks: the ontology, the partition, groups, and the metrics of options."""

from collections import Counter

import numpy as np
import pytest

from ds_moe_mtl.config import UserError
from ds_moe_mtl.tasks import expand_tasks, get_task
from ds_moe_mtl.tasks.metrics import score
from ds_moe_mtl.tasks.text2text import category, crossfit_tasks, gym_groups, of_seed, on_test


def test_the_ontology_has_160_tasks_in_the_random_partition():
    tasks = crossfit_tasks()
    assert len(tasks) == 160
    assert Counter(task.partition for task in tasks.values()) == {
        "train": 120,
        "dev": 20,
        "test": 20,
    }
    assert category("gym-boolq") == "qa/binary" and category("rte") == ""
    assert tasks["quoref"].partition == "test" and tasks["glue-mrpc"].partition == "train"


def test_an_encoder_has_at_least_60_upstream_and_12_unseen_tasks_that_do_not_overlap():
    groups = gym_groups()
    upstream, unseen = set(groups["gym_upstream"]), set(groups["gym_unseen"])
    assert (len(upstream), len(unseen)) == (63, 12) and not upstream & unseen
    assert all(get_task(name).kind == "options" for name in upstream | unseen)
    assert "gym-discovery" not in upstream and "gym-web_questions" in groups["gym_train"]
    assert expand_tasks(["gym_unseen", "gym-emo"]) == [*groups["gym_unseen"], "gym-emo"]


def test_metrics_are_crossfits():
    metrics = {"gym-glue-cola": "matthews", "gym-ag_news": "macro_f1", "gym-squad-with_context": ""}
    assert get_task("gym-glue-cola").metric == metrics["gym-glue-cola"]
    assert get_task("gym-ag_news").metric == metrics["gym-ag_news"]
    assert get_task("gym-squad-with_context").metric == "word_f1"
    assert get_task("gym-xsum").metric == "rouge_l"
    assert get_task("gym-kilt_nq").metric == "exact_match"
    assert get_task("gym-app_reviews").metric == "pearson"
    # CrossFit's macro F1 over answers that occur once each says nothing.
    assert get_task("gym-codah").metric == "accuracy"


def test_a_gym_task_that_is_not_there_is_one_line_with_the_nearest():
    with pytest.raises(UserError, match="unknown task 'gym-boolqq'; did you mean 'gym-boolq'"):
        expand_tasks(["gym-boolqq"])


def test_samples_and_test_rows_are_other_splits_of_the_same_row():
    spec = get_task("gym-emo")
    few = on_test(of_seed(spec, 42))
    assert (few.train_split, few.dev_splits) == ("train@42", ("test",))
    assert (spec.train_split, spec.dev_splits) == ("train", ("dev",))


def options_score(metric, chosen, right, options=3):
    """Score questions whose best scored option is chosen[i]."""
    spec = get_task("gym-ag_news")
    spec = spec.from_dict({**spec.to_dict(), "metric": metric})
    outputs = np.zeros((len(chosen) * options, 1), dtype=np.float32)
    labels = np.zeros(len(chosen) * options, dtype=np.float32)
    for question, (best, gold) in enumerate(zip(chosen, right, strict=True)):
        outputs[question * options + best] = 1.5
        labels[question * options + gold] = 1
    questions = np.repeat(np.arange(len(chosen)), options)
    return score(spec, outputs, labels, questions, np.zeros(len(labels), dtype=np.int8))


def test_options_are_scored_by_the_place_of_the_best_one():
    from sklearn.metrics import f1_score, matthews_corrcoef

    chosen, right = [0, 1, 1, 2, 0], [0, 1, 2, 2, 1]
    assert options_score("accuracy", chosen, right) == pytest.approx(60)
    assert options_score("exact_match", chosen, right) == pytest.approx(60)
    assert options_score("macro_f1", chosen, right) == pytest.approx(
        100 * f1_score(right, chosen, average="macro")
    )
    assert options_score("matthews", chosen, right) == pytest.approx(
        100 * matthews_corrcoef(right, chosen)
    )
