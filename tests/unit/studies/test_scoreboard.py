"""Scores of several runs: intervals and paired differences as a bootstrap by hand gives them."""

from dataclasses import replace

import numpy as np
import pytest

from ds_moe_mtl.evaluation.predictions import TaskPredictions
from ds_moe_mtl.studies.scoreboard import SEED, Scored, scoreboard

DRAWS = 250  # one round of the library's draws


def task(right, ids=None, metric="accuracy"):
    """Return predictions of a task of two classes whose rows are answered rightly or not."""
    right = np.asarray(right)
    labels = np.arange(len(right)) % 2
    answers = np.where(right, labels, 1 - labels)
    rows = np.arange(len(right), dtype=np.uint32) if ids is None else np.asarray(ids, np.uint32)
    return TaskPredictions(
        "classification",
        metric,
        ("no", "yes"),
        np.eye(2)[answers],
        labels.astype(np.float32),
        np.arange(len(right), dtype=np.int32),
        np.zeros(len(right), np.int8),
        rows,
    )


def run(tasks, seed=0):
    """Return a run whose results are what its predictions come to."""
    scores = {
        name: {
            "metric": of.metric,
            "value": 100 * float((of.outputs.argmax(1) == of.labels).mean()),
            "examples": len(of.labels),
        }
        for name, of in tasks.items()
    }
    return Scored({"tasks": scores, "seed": seed, "steps": 5, "encoder": {}}, tasks)


@pytest.fixture(scope="module")
def rights():
    draw = np.random.default_rng(4)
    return draw.random(60) < 0.6, draw.random(60) < 0.75


def test_intervals_and_differences_are_those_of_a_bootstrap_by_hand(rights):
    first, second = rights
    board = scoreboard(["one", "two"], [run({"a": task(r)}) for r in rights], draws=DRAWS)
    (row,) = board.rows
    picks = np.random.default_rng(SEED).integers(60, size=(DRAWS, 60))
    drawn = [100 * right[picks].mean(axis=1) for right in rights]
    for score, right, each in zip(row.scores, rights, drawn, strict=True):
        assert score.value == 100 * right.mean()
        assert (score.low, score.high) == pytest.approx(tuple(np.quantile(each, [0.025, 0.975])))
    (delta,) = row.deltas
    assert delta.value == pytest.approx(100 * (second.mean() - first.mean()))
    ends = np.quantile(drawn[1] - drawn[0], [0.025, 0.975])
    assert (delta.low, delta.high) == pytest.approx(tuple(ends))
    assert board.mean is None and board.notes == ()


def test_the_mean_is_over_tasks_and_only_where_runs_have_the_same(rights):
    tasks = [{"a": task(r), "b": task(r[::-1])} for r in rights]
    board = scoreboard(["one", "two"], [run(of) for of in tasks], draws=DRAWS)
    values = [[score.value for score in row.scores] for row in board.rows]
    assert [s.value for s in board.mean.scores] == pytest.approx(np.mean(values, axis=0).tolist())
    assert board.mean.deltas[0].low < board.mean.deltas[0].value < board.mean.deltas[0].high
    short = {"a": tasks[1]["a"]}
    board = scoreboard(["one", "two"], [run(tasks[0]), run(short)], draws=DRAWS)
    assert board.mean is None and board.rows[1].scores[1] is None


def test_other_rows_have_no_difference_and_other_seeds_are_told(rights):
    other = run({"a": task(rights[1], ids=np.arange(60) + 7)}, seed=1)
    board = scoreboard(["one", "two"], [run({"a": task(rights[0])}), other], draws=DRAWS)
    assert board.rows[0].deltas == (None,) and board.rows[0].scores[1].low is not None
    assert any("other dev rows than one in a" in note for note in board.notes)
    assert "two and one have different seeds." in board.notes
    unknown = run({"a": replace(task(rights[0]), kind="of_tomorrow")})
    board = scoreboard(["one"], [unknown], draws=DRAWS)
    assert board.rows[0].scores[0].low is None and board.notes == ("one: no interval for a.",)
