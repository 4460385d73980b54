"""A run's folder: nothing in it is lost, and it belongs to one configuration."""

import json
import shutil
import threading
import time

import pytest
import torch

from ds_moe_mtl.config import UserError
from ds_moe_mtl.engine.engine import check_devices
from ds_moe_mtl.ranks.rendezvous import Ranks
from ds_moe_mtl.training import run_folder
from ds_moe_mtl.training.run_folder import RunFolder
from tests.support.steps import quiet
from tests.support.tiny import tiny_config, write_tiny


@pytest.fixture
def config(tmp_path):
    return tiny_config(write_tiny(tmp_path))


def finished_run(config) -> RunFolder:
    folder = RunFolder(config, quiet)
    folder.claim()
    folder.write_start({}, {})
    (folder.path / "results.json").write_text(json.dumps({"steps": 4}))
    folder.release()
    return folder


def test_resume_never_puts_the_earlier_run_aside_whole(config):
    finished_run(config)
    never = config.model_copy(update={"run": config.run.model_copy(update={"resume": "never"})})
    said = []
    folder = RunFolder(never, said.append)
    assert folder.finished() is None
    folder.claim()
    aside = folder.path / "previous-1"
    assert json.loads((aside / "results.json").read_text()) == {"steps": 4}
    assert (aside / "config.yaml").exists() and str(aside) in said[0]
    assert not (folder.path / "results.json").exists()
    folder.release()


def test_an_elastic_run_waits_for_the_lock_of_a_lost_host_and_another_does_not(config, monkeypatch):
    monkeypatch.setattr(run_folder, "LOST_HOLDER", 10.0)
    elastic = config.model_copy(update={"run": config.run.model_copy(update={"elastic": True})})
    holder, other, next_start = (RunFolder(each, quiet) for each in (config, config, elastic))
    holder.claim()
    with pytest.raises(UserError, match="is in use by process"):
        other.claim()
    lease = threading.Timer(0.7, holder.release)
    lease.start()
    began = time.monotonic()
    next_start.claim()
    assert 0.6 < time.monotonic() - began < 10
    lease.join()
    next_start.release()


def test_another_configuration_is_refused_by_the_keys_that_differ(config):
    finished_run(config)
    train = config.train.model_copy(update={"lr": 0.5, "log_every": 7})
    other = RunFolder(config.model_copy(update={"train": train}), quiet)
    with pytest.raises(UserError, match="different: train.lr; set another"):
        other.finished()


def test_what_changes_no_number_may_change(config):
    finished_run(config)
    train = config.train.model_copy(update={"log_every": 7, "save_every": 1, "threads": 2})
    other = RunFolder(config.model_copy(update={"train": train}), quiet)
    assert other.finished() == {"steps": 4}


def test_the_sparse_layers_keys_belong_to_a_sparse_run_alone(config):
    for kind, same in (("mt_dense", True), ("mt_tag", False)):
        model = config.model.model_copy(update={"kind": kind})
        before = config.moe.model_copy(update={"gate_scale": "paper"})
        first = config.model_copy(update={"model": model, "moe": before})
        finished_run(first)
        again = RunFolder(first.model_copy(update={"moe": config.moe}), quiet)
        if same:
            assert again.finished() == {"steps": 4}
        else:
            with pytest.raises(UserError, match="different: moe.gate_scale"):
                again.finished()
        shutil.rmtree(config.run.dir)


def test_a_checkpoint_of_a_run_with_another_gate_scale_is_refused(config, tmp_path):
    finished_run(config)
    checkpoint = f"{config.run.dir}/checkpoints/step_00000001"
    run = config.run.model_copy(update={"dir": str(tmp_path / "other"), "resume": checkpoint})
    moe = config.moe.model_copy(update={"gate_scale": "paper"})
    RunFolder(config.model_copy(update={"run": run}), quiet).claim()
    with pytest.raises(UserError, match="moe.gate_scale is preserve in .* and paper here"):
        RunFolder(config.model_copy(update={"run": run, "moe": moe}), quiet).claim()


def test_a_folder_that_cannot_be_made_is_one_line(config, tmp_path):
    (tmp_path / "file").write_text("")
    run = config.run.model_copy(update={"dir": str(tmp_path / "file/run")})
    with pytest.raises(UserError, match="run.dir: .*Not a directory"):
        RunFolder(config.model_copy(update={"run": run}), quiet).claim()


def test_more_ranks_than_gpus_is_refused_and_a_machine_without_any_is_not(monkeypatch):
    ranks = Ranks(0, 4, 0, 4, "127.0.0.1", 29500, "torchrun")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="4 ranks on this machine but 2 GPUs"):
        check_devices(ranks)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    check_devices(ranks)
