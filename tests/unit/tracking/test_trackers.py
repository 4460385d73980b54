"""Trackers: what each gets of a run, which run a continued one is, and what a failing one costs.

Those whose packages are not installed are skipped; all work without a server or a network here.
"""

import json
import sys
from importlib.util import find_spec

import numpy as np
import pytest

from ds_moe_mtl.config import RankError, UserError
from ds_moe_mtl.tracking.metrics_log import MetricsLog, read_metrics
from ds_moe_mtl.tracking.route_image import CELL, colours, route_image
from ds_moe_mtl.tracking.tracker import IDS, Followed, Trackers, check_trackers

SHARES = {"rte": np.array([[0.75, 0.25], [0.0, 1.0]]), "cola+": np.array([[0.5, 0.5], [1.0, 0.0]])}
HPARAMS = {"train.lr": 1e-4, "model.kind": "mt_tag", "train.steps": 4, "moe.gate_momentum": True}
needs = {
    name: pytest.mark.skipif(find_spec(name) is None, reason=f"{name} is not installed")
    for name in ("wandb", "trackio", "mlflow")
}


def follow(folder, names, first_step=0, said=None):
    """Log two rows and an evaluation as a run that goes on after first_step; return the ids."""
    folder.mkdir(exist_ok=True)
    run = Followed(folder, HPARAMS, tuple(SHARES), first_step)
    say = print if said is None else said.append
    log = MetricsLog(folder, first_step, Trackers(names, run, say))
    log.write({"step": first_step + 1, "loss": 2.0, "loss/rte": 0.5})
    log.write({"step": first_step + 2, "loss": 1.0, "dev/rte": 60.0, "dev/cola+": 5.0})
    log.evaluated(first_step + 2, SHARES)
    log.finish()
    log.close()
    return json.loads((folder / IDS).read_text()) if (folder / IDS).exists() else {}


def test_tensorboard_has_scalars_hparams_a_picture_and_histograms(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    follow(tmp_path, ["tensorboard"])
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    tags = board.Tags()
    assert {"loss", "dev/rte", "dev/cola."} <= set(tags["scalars"])
    assert tags["images"] == ["routes"] and board.Images("routes")[0].step == 2
    assert set(tags["histograms"]) == {"routes/rte", "routes/cola."}
    assert board.Histograms("routes/rte")[0].histogram_value.num == 4
    plugin = board.summary_metadata["_hparams_/experiment"].plugin_data
    assert b"model.kind" in plugin.content and b"dev/rte" in plugin.content
    assert "_hparams_/session_end_info" in board.summary_metadata


@needs["mlflow"]
def test_mlflow_has_one_run_with_parameters_metrics_and_artifacts_after_a_resume(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path}/mlruns")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow import MlflowClient

    ids = follow(tmp_path / "run", ["mlflow"])
    assert follow(tmp_path / "run", ["mlflow"], first_step=2) == ids
    client = MlflowClient()
    run = client.get_run(ids["mlflow"])
    assert run.info.status == "FINISHED" and run.info.run_name == "run"
    assert run.data.params["train.lr"] == "0.0001" and run.data.metrics["dev/cola."] == 5.0
    steps = [metric.step for metric in client.get_metric_history(ids["mlflow"], "train_loss")]
    assert steps == [1, 2, 3, 4]
    assert "routes/step_00000004.json" in {
        each.path for each in client.list_artifacts(ids["mlflow"], "routes")
    }


@needs["wandb"]
def test_wandb_offline_continues_the_run_of_the_same_id(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    ids = follow(tmp_path / "run", ["wandb"])
    assert follow(tmp_path / "run", ["wandb"], first_step=2) == ids
    parts = sorted((tmp_path / "run" / "wandb").glob("offline-run-*"))
    assert len(parts) == 2 and all(part.name.endswith(ids["wandb"]) for part in parts)
    assert [*parts[0].rglob("*.png")]


@needs["trackio"]
def test_trackio_continues_the_run_of_the_same_name(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    ids = follow(tmp_path / "run", ["trackio"])
    assert follow(tmp_path / "run", ["trackio"], first_step=2) == ids
    assert [*(tmp_path / "trackio").rglob("*.db")]


def test_a_tracker_that_fails_in_the_run_is_told_once_and_the_rows_go_on(tmp_path):
    (tmp_path / "tensorboard").write_text("a file where TensorBoard wants a folder")
    said = []
    follow(tmp_path, ["tensorboard"], first_step=5, said=said)
    assert len(said) == 1 and said[0].startswith("note: tensorboard has failed, the run goes on")
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [6, 7]


def test_a_tracker_that_cannot_be_opened_for_a_new_run_is_one_line(tmp_path):
    (tmp_path / "tensorboard").write_text("a file where TensorBoard wants a folder")
    with pytest.raises(RankError, match="track: tensorboard cannot be opened: "):
        follow(tmp_path, ["tensorboard"])


def test_absent_packages_are_named_and_a_folder_of_that_name_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "mlflow", raising=False)
    (tmp_path / "mlflow").mkdir()
    with pytest.raises(UserError, match=r"track: mlflow: not installed; .*track=\[\]"):
        check_trackers(["mlflow"])
    check_trackers([])


def test_the_picture_has_a_cell_for_each_task_layer_and_expert_in_its_shares_colour():
    picture_HWC = route_image(SHARES)
    first = colours(np.array(0.75))
    assert (picture_HWC == first).all(axis=2).sum() == CELL * CELL
    assert (picture_HWC == colours(np.array(1.0))).all(axis=2).sum() == 2 * CELL * CELL
    assert colours(np.array([0.0, 1.0])).tolist() == [[68, 1, 84], [253, 231, 37]]
