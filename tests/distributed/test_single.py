"""model.kind single: a model a task under one run folder, one results.json for all."""

import json

from ds_moe_mtl.config import dump_config
from tests.support.launch import ROOT, launch
from tests.support.tiny import tiny_config, write_tiny


def test_single_trains_a_model_a_task_and_gathers_one_result(tmp_path):
    native = json.loads((ROOT / "ds_configs/deepspeed/zero1.json").read_text())
    timed = tmp_path / "timed.json"
    monitored = {"csv_monitor": {"enabled": True, "output_path": str(tmp_path / "csv")}}
    timers = {"wall_clock_breakdown": True, "steps_per_print": 1}
    timed.write_text(json.dumps(native | timers | monitored))
    config = tiny_config(
        write_tiny(tmp_path),
        model={"kind": "single"},
        train={"steps": 2},
        deepspeed=str(timed),
    )
    (tmp_path / "run.yaml").write_text(dump_config(config))
    command = [ROOT / "train.py", tmp_path / "run.yaml"]
    first = launch(command, 1, "fork", time_limit=240)
    assert first.returncode == 0, first.text
    native = json.loads((tmp_path / "run/colour/deepspeed.json").read_text())
    assert native["wall_clock_breakdown"]  # the steps ran with DeepSpeed's own timers on
    written = list((tmp_path / "csv").rglob("*train_loss*"))
    assert written and all(float(f.read_text().split(",")[-1]) > 0 for f in written)
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert list(results["tasks"]) == ["colour", "same", "amount"]
    assert (results["model_kind"], results["steps"]) == ("single", 6)
    values = [task["value"] for task in results["tasks"].values()]
    assert results["all_tasks"] == sum(values) / 3
    for name in results["tasks"]:
        own = json.loads((tmp_path / "run" / name / "results.json").read_text())
        assert own["tasks"] == {name: results["tasks"][name]}
        described = json.loads((tmp_path / "run" / name / "model/config.json").read_text())
        assert described["kind"] == "single" and described["routing"] is None

    again = launch(command, 1, "fork", time_limit=240)
    assert again.returncode == 0 and "complete already" in again.stdout, again.text
    other = launch([*command, "train.lr=0.5"], 1, "fork", time_limit=240)
    assert other.returncode == 2 and "different: train.lr" in other.stderr, other.text
