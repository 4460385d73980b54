"""Every task name that the schema allows trains, predicts, continues and is exported."""

import json
import shutil

import pytest

from ds_moe_mtl.cli.export import main as export
from ds_moe_mtl.cli.train import main
from ds_moe_mtl.config import dump_config
from ds_moe_mtl.evaluation import MultiTaskModel
from ds_moe_mtl.training.run_folder import task_folder
from tests.support.tiny import tiny_config, write_tiny

ATTRIBUTES = ["type", "train", "values", "options", "forward", "training", "keys", "eval", "half"]
WORDS = ["own", "random", "auto", "default", "results", "expert", "deepspeed_experts", "wg", "gate"]
FORMS = ["a+b", "a_b", "A_B", "0", "x" * 100]
FOLDERS = ["model", "checkpoints", "tensorboard", "best", "lock", "previous-1", "finetune"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("names"))


def yaml_of(folder, names, **sections):
    row = json.loads((folder / "tasks.json").read_text())[0]
    config = tiny_config(folder, tasks=[{**row, "name": name} for name in names], **sections)
    path = folder / "run.yaml"
    path.write_text(dump_config(config))
    return path


def test_names_that_mean_something_inside_are_free(folder, capsys):
    names = [*ATTRIBUTES, *WORDS, *FORMS]
    run = {"dir": str(folder / "run")}
    train = {"steps": 2, "save_every": 1, "batch_size": 50, "keep_checkpoints": 2}
    yaml = yaml_of(folder, names, run=run, train=train)
    assert main([str(yaml)]) == 0
    run = folder / "run"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert list(json.loads((run / "results.json").read_text())["tasks"]) == names
    model = MultiTaskModel.from_pretrained(run, "cpu")
    for name in names:
        assert model.predict(name, ["a red cat"])[0] in ("coloured", "plain")
        assert f"dev/{name}" in rows[-1]
    assert export([str(run), "--output", str(folder / "exported")]) == 0
    exported = MultiTaskModel.from_pretrained(folder / "exported", "cpu")
    split = ["the red cat", "a dog sleeps", "green"]
    assert [exported.predict(n, split) for n in names] == [model.predict(n, split) for n in names]
    (run / "results.json").unlink()
    shutil.rmtree(run / "checkpoints/step_00000002")
    assert main([str(yaml)]) == 0 and "continuing" in capsys.readouterr().out
    again = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert again[-1]["loss"] == rows[-1]["loss"]


def test_curves_of_like_named_tasks_stay_apart_in_tensorboard(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from ds_moe_mtl.tracking.metrics_log import MetricsLog
    from ds_moe_mtl.tracking.tracker import Followed, Trackers

    (folder / "log").mkdir(exist_ok=True)
    run = Followed(folder / "log", {}, ("a+b", "a_b"), 0)
    log = MetricsLog(folder / "log", 0, Trackers(["tensorboard"], run, print))
    log.write({"step": 1, "loss/a+b": 1.0, "loss/a_b": 2.0})
    log.close()
    events = EventAccumulator(str(folder / "log/tensorboard"))
    events.Reload()
    found = {
        tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }
    assert found == {"loss/a.b": [1.0], "loss/a_b": [2.0]}


def test_single_task_runs_may_be_called_as_what_a_run_folder_holds(folder):
    names = ["plain", *FOLDERS]
    run = folder / "single"
    yaml = yaml_of(
        folder, names, run={"dir": str(run)}, model={"kind": "single"}, train={"steps": 1}
    )
    assert main([str(yaml)]) == 0
    assert list(json.loads((run / "results.json").read_text())["tasks"]) == names
    for name in names:
        own = task_folder(run, name)
        assert json.loads((own / "results.json").read_text())["tasks"].keys() == {name}
        assert MultiTaskModel.from_pretrained(own, "cpu").predict(name, [""])
    assert (run / "plain").is_dir() and not (run / "model").exists()
    assert main([str(yaml), "run.resume=never"]) == 0
    assert (run / "previous-1/model.task/model/config.json").is_file()
