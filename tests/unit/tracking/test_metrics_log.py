"""metrics.jsonl after kills and resumes: whole lines, each step once."""

import math

from ds_moe_mtl.tracking.metrics_log import MetricsLog, StepLines, read_metrics
from ds_moe_mtl.tracking.tracker import Followed, Trackers


def open_log(folder, first_step=0, names=("tensorboard",)):
    run = Followed(folder, {"train.lr": 0.1}, ("rte",), first_step)
    return MetricsLog(folder, first_step, Trackers(names, run, print))


def test_rows_beyond_the_checkpoint_and_a_cut_line_are_dropped_on_resume(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 3}\n{"step": 2, "loss": 2}\n{"step": 3, "lo')
    log = open_log(tmp_path, first_step=1)
    log.write({"step": 2, "loss": 2.5})
    log.close()
    assert read_metrics(path) == [{"step": 1, "loss": 3}, {"step": 2, "loss": 2.5}]


def test_tensorboard_gets_the_same_numbers(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = open_log(tmp_path)
    log.write({"step": 5, "loss/rte": 0.25})
    log.close()
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [(e.step, e.value) for e in board.Scalars("loss/rte")] == [(5, 0.25)]


def test_what_is_not_finite_is_left_out_of_both(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = open_log(tmp_path)
    log.write({"step": 1, "loss": math.nan, "grad_norm": math.inf, "lr": 0.5})
    log.close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "lr": 0.5}\n'
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert board.Tags()["scalars"] == ["lr"]


def test_lines_of_steps_beyond_the_checkpoint_stand_once_and_are_counted(tmp_path):
    path = tmp_path / "skipped.jsonl"
    assert not StepLines(path, 0).count and not path.exists()
    for first_step, steps in ((0, [3, 5]), (4, [5, 7])):
        lines = StepLines(path, first_step)
        for step in steps:
            lines.write({"step": step})
        lines.close()
    assert [row["step"] for row in read_metrics(path)] == [3, 5, 7] and lines.count == 3
