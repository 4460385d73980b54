"""Runs that are killed, stopped, damaged or started twice, with real processes."""

import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ds_moe_mtl.cli.export import main as export
from ds_moe_mtl.cli.train import main as train_here
from ds_moe_mtl.config import dump_config
from ds_moe_mtl.engine.checkpoints import damage, list_checkpoints
from ds_moe_mtl.export.topology import Topology, reshape
from tests.support.ends import differences, rows_of
from tests.support.launch import ROOT, launch, start
from tests.support.tiny import tiny_config, write_tiny

STEPS, SAVE_EVERY = 8, 2


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny"))


def yaml_of(tiny: Path, folder: Path, **sections) -> Path:
    """Write the YAML of an 8-step run in `folder` beside it and return its path."""
    train = {"steps": STEPS, "save_every": SAVE_EVERY, "keep_checkpoints": 3, "eval_every": 4}
    sections["train"] = {**train, **sections.get("train", {})}
    sections.setdefault("model", {"dropout": 0.1})
    deepspeed = sections.pop("deepspeed", str(ROOT / "ds_configs/deepspeed/zero1.json"))
    config = tiny_config(
        tiny, run={"dir": str(folder), **sections.pop("run", {})}, deepspeed=deepspeed, **sections
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.parent / f"{folder.name}.yaml"
    path.write_text(dump_config(config))
    return path


def train(yaml: Path, *overrides: str, ranks: int = 1):
    return launch([ROOT / "train.py", yaml, *overrides], ranks, "fork", time_limit=240)


@pytest.fixture(scope="module")
def unbroken(tiny, tmp_path_factory) -> Path:
    """A finished one-rank run that was never stopped."""
    run = tmp_path_factory.mktemp("unbroken") / "run"
    result = train(yaml_of(tiny, run))
    assert result.returncode == 0, result.text
    return run


@pytest.fixture
def copied(unbroken, tmp_path) -> Path:
    """A copy of the unbroken run with its results and last checkpoint gone, and its YAML."""
    run = tmp_path / "run"
    shutil.copytree(unbroken, run)
    for name in ("results.json", "lock"):
        (run / name).unlink()
    shutil.rmtree(run / "model")
    shutil.rmtree(run / f"checkpoints/step_{STEPS:08d}")
    text = (run / "config.yaml").read_text().replace(str(unbroken), str(run))
    (run / "config.yaml").write_text(text)
    (tmp_path / "run.yaml").write_text(text)
    return run


def test_two_ranks_killed_and_then_without_room_on_one_end_bit_for_bit_as_if_they_never_were(
    tiny, tmp_path
):
    sections = {"moe": {"ep_size": 2}, "deepspeed": str(ROOT / "ds_configs/deepspeed/zero2.json")}
    whole = yaml_of(tiny, tmp_path / "whole", **sections)
    assert train(whole, ranks=2).returncode == 0
    assert (tmp_path / "whole/routes.png").exists()  # rank 0's last work, the others gone
    broken = yaml_of(tiny, tmp_path / "broken", **sections)
    with start([ROOT / "train.py", broken], 2, "fork") as running:
        metrics = tmp_path / "broken/metrics.jsonl"
        running.wait_until(
            lambda: metrics.exists() and metrics.read_text().count("\n") >= 5, time_limit=120
        )
        running.kill()
    assert not (tmp_path / "broken/results.json").exists()
    checkpoints = list_checkpoints(tmp_path / "broken/checkpoints")
    smallest = min(f.stat().st_size for f in checkpoints[0].rglob("*.pt"))
    full = launch([ROOT / "tests/support/limited.py", 1, smallest // 2, broken], 2, "fork")
    assert full.returncode == 2 and "cannot write a checkpoint" in full.stderr, full.text
    assert "Traceback" not in full.stderr and "hang" not in full.stderr, full.text
    assert list_checkpoints(tmp_path / "broken/checkpoints") == checkpoints
    assert [damage(checkpoint) for checkpoint in checkpoints] == [""] * len(checkpoints)
    again = train(broken, ranks=2)
    assert again.returncode == 0 and "continuing" in again.stdout, again.text
    assert differences(tmp_path / "broken", tmp_path / "whole") == []


def test_sigterm_checkpoints_with_status_75_and_the_next_start_goes_on(tiny, unbroken, tmp_path):
    yaml = yaml_of(tiny, tmp_path / "run")
    with start([ROOT / "train.py", yaml], 1, "fork") as running:
        metrics = tmp_path / "run/metrics.jsonl"
        running.wait_until(lambda: metrics.exists() and '"step": 1,' in metrics.read_text(), 120)
        running.process.send_signal(signal.SIGTERM)
        stopped = running.wait(120)
    assert stopped.returncode == 75, stopped.text
    assert "SIGTERM received" in stopped.stdout
    assert not (tmp_path / "run/results.json").exists()
    again = train(yaml)
    assert again.returncode == 0, again.text
    assert differences(tmp_path / "run", unbroken) == []


def test_ctrl_c_before_the_first_step_is_one_line_and_status_130(tiny, tmp_path):
    yaml = yaml_of(tiny, tmp_path / "run", train={"steps": 100_000})
    with start([ROOT / "train.py", yaml], 1, "fork") as running:
        running.wait_until(lambda: "data: amount" in running.output()[0], 120)
        running.process.send_signal(signal.SIGINT)
        ended = running.wait(120)
    assert ended.returncode in (75, 130), ended.text  # 75: the steps had begun on a fast machine
    assert ended.stderr.count("\n") <= 1 and "Traceback" not in ended.stderr, ended.text


def test_a_finished_run_started_again_says_so_and_changes_nothing(unbroken):
    before = (unbroken / "results.json").read_bytes()
    again = train(unbroken / "config.yaml")
    assert again.returncode == 0, again.text
    assert again.stdout.startswith(f"{unbroken} is complete already"), again.text  # no noise first
    assert (unbroken / "results.json").read_bytes() == before


def test_a_checkpoint_exported_for_other_ranks_is_continued_by_them(unbroken, tmp_path):
    topology = "ranks=2,ep_size=2,zero_stage=2"
    arguments = ["--checkpoint", "step_00000006", "--to-topology", topology]
    assert export([str(unbroken), *arguments, "--output", str(tmp_path / "two")]) == 0
    checkpoint = shutil.copytree(tmp_path / "two", tmp_path / "cut") / "checkpoints/step_00000006"
    (part,) = checkpoint.glob("*zero_pp_rank_1_*")
    part.write_bytes(part.read_bytes()[:1000])
    with pytest.raises(RuntimeError, match="rank 0 ended with status 1"):
        reshape(checkpoint, Topology(1, 1, 1), tmp_path / "none", print)
    assert not (tmp_path / "none").exists()
    again = train(tmp_path / "two/config.yaml", ranks=2)
    assert again.returncode == 0 and "step_00000006 after step 6" in again.stdout, again.text
    assert "reshaping" not in again.stdout
    assert rows_of(tmp_path / "two")[:6] == rows_of(unbroken)[:6]
    assert [row["step"] for row in rows_of(tmp_path / "two")][6:] == [7, 8]


def test_a_checkpoint_exported_as_a_model_has_the_weights_of_that_step(unbroken, tmp_path):
    assert export([str(unbroken), "--output", str(tmp_path / "model")]) == 0
    mine = load_file(tmp_path / "model/model.safetensors")
    theirs = load_file(unbroken / "model/model.safetensors")
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize(
    ("arguments", "wants"),
    [
        (["--to-topology", "ranks=4,ep=2"], ["ep=2", "allowed: ranks=4,ep_size=2,zero_stage=1"]),
        (["--to-topology", "ranks=3,ep_size=2"], ["ep_size = 2 does not divide ranks = 3"]),
        (["--to-topology", "ranks=2,zero_stage=3"], ["zero_stage = 3", "0, 1, 2"]),
        (["--checkpoint", "step_00000099"], ["no step_00000099", "step_00000008"]),
    ],
)
def test_a_wrong_export_is_one_line(unbroken, tmp_path, capsys, arguments, wants):
    assert export([str(unbroken), *arguments, "--output", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and all(word in said for word in wants), said
    assert not (tmp_path / "out").exists()


def test_a_truncated_checkpoint_is_named_and_the_one_before_is_used(copied, unbroken):
    newest = copied / "checkpoints/step_00000006"
    file = next(newest.glob("*optim_states.pt"))
    file.write_bytes(file.read_bytes()[:1000])
    result = train(copied.parent / "run.yaml")
    assert result.returncode == 0, result.text
    assert "step_00000006 is damaged" in result.stdout
    assert "continuing" in result.stdout and "after step 4" in result.stdout
    assert differences(copied, unbroken) == []


def test_a_bit_flip_is_found_by_its_checksum(copied):
    for folder in (copied / "checkpoints").glob("step_*"):
        file = next(folder.glob("*optim_states.pt"))
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    result = train(copied.parent / "run.yaml")
    assert result.returncode == 2
    errors = result.stderr.strip().splitlines()
    assert len(errors) == 1 and "no checkpoint in" in errors[0] and "is whole" in errors[0]
    assert result.stdout.count("does not match its checksum") == 2


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["train.lr=0.5"], ["another configuration", "train.lr"]),
        (["run.resume=/nowhere"], ["run.resume", "/nowhere", "not a checkpoint"]),
    ],
)
def test_what_does_not_fit_the_run_is_one_line_and_status_2(copied, overrides, words):
    result = train(copied.parent / "run.yaml", *overrides)
    assert result.returncode == 2, result.text
    errors = result.stderr.strip().splitlines()
    assert len(errors) == 1 and all(word in errors[0] for word in words), result.text


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([], []),
        (["train.precision=bf16"], ["precision is fp32 there and bf16 here"]),
        (["run.seed=3"], ["the checkpoint's loader has seed 0, this run has 3"]),
        (["mixture.sampling=uniform"], ["loader has mixture.sampling natural", "has uniform"]),
        (["train.limit_examples=9"], ["the checkpoint's loader has examples", "this run has [9"]),
    ],
)
def test_another_runs_checkpoint_continues_only_in_its_precision_and_order_of_data(
    unbroken, tmp_path, capfd, overrides, words
):
    checkpoint = unbroken / "checkpoints/step_00000006"
    places = [f"run.dir={tmp_path / 'run'}", f"run.resume={checkpoint}"]
    status = train_here([str(unbroken / "config.yaml"), *places, *overrides])
    said = capfd.readouterr()
    assert status == (2 if overrides else 0), said.err
    if overrides:
        assert said.err.count("\n") == 1 and all(word in said.err for word in words), said.err
    else:
        assert rows_of(tmp_path / "run") == rows_of(unbroken)[6:]


def test_a_checkpoint_of_another_encoder_or_task_map_says_what_differs(copied, tiny, tmp_path):
    checkpoint = copied / "checkpoints/step_00000006"
    yaml = yaml_of(
        tiny, tmp_path / "other", run={"resume": str(checkpoint)}, model={"kind": "mt_switch"}
    )
    result = train(yaml)
    assert result.returncode == 2
    assert "model_kind is mt_tag there and mt_switch here" in result.stderr, result.text


def test_a_folder_that_a_live_run_holds_is_refused_and_a_dead_ones_lock_is_not(copied, unbroken):
    yaml = copied.parent / "run.yaml"
    (copied / "lock").write_text("process 1 on nowhere\n")
    with start([ROOT / "train.py", yaml, "train.log_every=1"], 1, "fork") as running:
        running.wait_until(lambda: "ready in" in running.output()[0], 120)
        running.process.send_signal(signal.SIGSTOP)
        refused = train(yaml)
        running.process.send_signal(signal.SIGCONT)
        ended = running.wait(120)
    assert refused.returncode == 2 and "is in use by process" in refused.stderr, refused.text
    assert ended.returncode == 0, ended.text
    assert differences(copied, unbroken) == []


def test_no_room_while_saving_leaves_the_checkpoints_before_whole(copied, unbroken):
    before = {path.name for path in (copied / "checkpoints").iterdir()}
    largest = max(f.stat().st_size for f in (copied / "checkpoints").rglob("*.pt"))
    limited = [ROOT / "tests/support/limited.py", 0, largest // 2]  # the write fails half-way
    result = launch([*limited, copied.parent / "run.yaml"], 1, "fork")
    assert result.returncode == 2, result.text
    errors = result.stderr.strip().splitlines()
    assert len(errors) == 1 and "cannot write a checkpoint" in errors[0], errors
    assert "the checkpoints before it are whole" in errors[0]
    assert {path.name for path in (copied / "checkpoints").iterdir()} == before
    assert all(damage(copied / "checkpoints" / name) == "" for name in before)
    again = train(copied.parent / "run.yaml")
    assert again.returncode == 0 and "after step 6" in again.stdout, again.text
    assert differences(copied, unbroken) == []


def test_a_folder_that_takes_no_checkpoint_is_told_before_the_first_step(tiny, tmp_path):
    yaml = yaml_of(tiny, tmp_path / "run")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/checkpoints").touch()  # as good as a folder that cannot be written
    result = train(yaml)
    assert result.returncode == 2, result.text
    errors = result.stderr.strip().splitlines()
    assert len(errors) == 1 and "cannot write a checkpoint" in errors[0], errors
    assert "ready in" not in result.stdout
