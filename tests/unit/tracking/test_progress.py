"""The time that is left: by the median pace, and the evaluations to come."""

import time

import pytest

from ds_moe_mtl.tracking.progress import Clock, progress_line, scores_line


def test_a_slow_row_moves_no_estimate(monkeypatch):
    clock = Clock(total_steps=100, eval_every=0)
    for step, pace in ((10, 10.0), (20, 0.01), (30, 10.0)):
        left = clock.left(step, pace)
    assert left == pytest.approx(70 / 10)


def test_each_evaluation_to_come_is_counted_at_the_length_of_the_last(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    clock = Clock(total_steps=100, eval_every=30)
    clock.step_ends()
    now[0] = 7.0
    clock.evaluated()
    # after step 30: at 60, at 90 and at the end
    assert clock.left(30, steps_per_s=2.0) == pytest.approx(70 / 2 + 3 * 7)


def test_lines_name_few_tasks_and_count_many():
    row = {"step": 7, "loss": 1.0, "lr": 1e-4, "examples_per_s": 9, "tokens_per_s": 90, "stall": 0}
    few = progress_line(row | {"loss/a": 0.5}, 100, 3725.4)
    assert few.startswith("step   7/100  loss 1.000 (a 0.500)") and few.endswith("1:02:05 left")
    many = progress_line(row | {f"loss/{i}": 0.5 for i in range(17)}, 100, 0)
    assert "(17 tasks)" in many
    assert scores_line(7, {"a": 50.0}) == "step 7: dev  a 50.0"
    assert scores_line(7, dict.fromkeys(map(str, range(17)), 50.0)).endswith("over 17 tasks")
