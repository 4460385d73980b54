"""metrics.jsonl after kills and resumes: whole lines, each step once."""

from ds_moe_mtl.training.metrics_log import MetricsLog, read_metrics


def test_rows_beyond_the_checkpoint_and_a_cut_line_are_dropped_on_resume(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 3}\n{"step": 2, "loss": 2}\n{"step": 3, "lo')
    log = MetricsLog(tmp_path, first_step=1)
    log.write({"step": 2, "loss": 2.5})
    log.close()
    assert read_metrics(path) == [{"step": 1, "loss": 3}, {"step": 2, "loss": 2.5}]


def test_tensorboard_gets_the_same_numbers(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = MetricsLog(tmp_path, first_step=0)
    log.write({"step": 5, "loss/rte": 0.25})
    log.close()
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [(e.step, e.value) for e in board.Scalars("loss/rte")] == [(5, 0.25)]
