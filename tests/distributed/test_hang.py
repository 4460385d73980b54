"""Ranks that wait for ever, are frozen or fail: all end, one line says which, a restart goes on."""

import json
import signal
import time
from pathlib import Path

import psutil
import pytest

from ds_moe_mtl.config import dump_config
from ds_moe_mtl.engine.checkpoints import damage, list_checkpoints
from ds_moe_mtl.ranks.statuses import HUNG
from tests.support.launch import ROOT, Running, launch, start
from tests.support.tiny import tiny_config, write_tiny

HANGING = ROOT / "tests/support/hanging.py"
TIMEOUT, STEPS, SAVED = 10.0, 6, 2  # seconds, steps, steps between checkpoints
LONG = 16  # steps of half a second: time enough to freeze a rank after its third


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def yaml(tiny, tmp_path) -> Path:
    config = tiny_config(
        tiny,
        run={"dir": str(tmp_path / "run")},
        train={"steps": STEPS, "save_every": SAVED, "hang_timeout": TIMEOUT},
    )
    path = tmp_path / "run.yaml"
    path.write_text(dump_config(config))
    return path


def hang_lines(stderr: str) -> list[str]:
    return [line for line in stderr.splitlines() if line.startswith("hang: ")]


def assert_whole(yaml: Path, step: int) -> None:
    """Assert that the newest checkpoint is that of `step`, and whole."""
    newest = list_checkpoints(yaml.parent / "run/checkpoints")[0]
    assert newest.name == f"step_{step:08d}" and damage(newest) == ""


def assert_restart_finishes(yaml: Path, ranks: int) -> None:
    again = launch([ROOT / "train.py", yaml, "train.hang_timeout=600"], ranks, "fork")
    assert again.returncode == 0 and "continuing" in again.stdout, again.text
    rows = (yaml.parent / "run/metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == list(range(1, STEPS + 1))


def test_a_rank_that_waits_for_ever_is_named_with_its_step_and_line_and_all_ranks_end(yaml):
    result = launch([HANGING, "wait", "2", "4", yaml], 3, "fork", time_limit=120)
    assert result.returncode == HUNG and not result.timed_out, result.text
    (line,) = hang_lines(result.stderr)
    assert line.startswith("hang: rank 2 has been in step 4 for "), line
    assert " at hanging.py:" in line and " wait_for_ever, called from loop.py:" in line, line
    assert "(the others wait for it in a collective)" in line, line
    assert f"(it continues after step {SAVED})" in line, line
    assert "Traceback" not in result.stderr, result.text
    assert_whole(yaml, SAVED)
    assert_restart_finishes(yaml, ranks=3)


def freeze(running: Running, yaml: Path, rank: int) -> None:
    """Stop a rank in step 4 or 5, after a checkpoint; return once all others have ended."""
    metrics = yaml.parent / "run/metrics.jsonl"
    running.wait_until(lambda: metrics.exists() and '"step": 3,' in metrics.read_text(), 120)
    ranks = running.ranks()
    ranks[rank].send_signal(signal.SIGSTOP)
    until = time.monotonic() + 60
    while not all(ended(process) for place, process in enumerate(ranks) if place != rank):
        assert time.monotonic() < until, running.output()
        time.sleep(0.1)


def ended(process: psutil.Process) -> bool:
    """True for a process that is gone or only waits for its parent, which may be frozen too."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize("rank", [0, 1])
def test_a_frozen_process_is_named_all_others_end_and_a_restart_goes_on(yaml, rank):
    with start([HANGING, "slow", "0", "0", yaml, f"train.steps={LONG}"], 3, "fork") as running:
        freeze(running, yaml, rank)
        (line,) = hang_lines(running.output()[1])
    silent = "does not answer" if rank == 0 else "has not answered for "
    assert line.startswith(f"hang: rank {rank} {silent}"), line
    assert "last seen in " in line and "step " in line and "it continues after step " in line, line
    newest = list_checkpoints(yaml.parent / "run/checkpoints")[0]
    assert damage(newest) == ""
    again = launch([ROOT / "train.py", yaml, f"train.steps={LONG}"], 3, "fork")
    assert again.returncode == 0 and f"continuing {newest}" in again.stdout, again.text


def test_a_job_that_was_suspended_for_longer_than_the_time_out_goes_on(yaml):
    slow = [HANGING, "slow", "0", "0", yaml]
    with start(slow, 2, "fork") as running:
        running.wait_until(lambda: len(list_checkpoints(yaml.parent / "run/checkpoints")) > 0, 120)
        ranks = running.ranks()
        for process in ranks:
            process.send_signal(signal.SIGSTOP)
        psutil.wait_procs(ranks, timeout=TIMEOUT + 5)  # nobody ends: a suspended job is no hang
        for process in ranks:
            process.send_signal(signal.SIGCONT)
        ended = running.wait(120)
    assert ended.returncode == 0 and not hang_lines(ended.stderr), ended.text


def test_one_process_alone_says_where_it_hangs(yaml):
    result = launch([HANGING, "wait", "0", "2", yaml], 1, "fork", time_limit=120)
    assert result.returncode == HUNG, result.text
    (line,) = hang_lines(result.stderr)
    assert line.startswith("hang: rank 0 has been in step 2 for ") and "wait_for_ever" in line
    assert "(no checkpoint yet)" in line, line


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("raise", "OSError: no batch for step 4"),
        ("die", "rank 1: the thread that builds batches died before step 4 was built"),
    ],
)
def test_a_loader_that_fails_or_dies_on_one_rank_ends_all_with_its_message_alone(
    yaml, kind, message
):
    result = launch([HANGING, kind, "1", "4", yaml], 3, "fork", time_limit=120)
    assert result.returncode == 1 and not result.timed_out, result.text
    assert result.stderr.count("Traceback") == 1, result.text
    assert message in result.stderr, result.text
    assert not hang_lines(result.stderr), result.text
    assert_whole(yaml, SAVED)


def test_a_disk_that_is_full_on_one_rank_is_told_by_it_and_ends_all_with_status_2(yaml):
    result = launch([HANGING, "full", "1", "4", yaml], 2, "fork", time_limit=120)
    assert result.returncode == 2 and not result.timed_out, result.text  # rank 0's own status
    assert result.stderr.count("No space left on device") == 1, result.text
    assert f"error: {yaml.parent / 'run'}: No space left on device" in result.stderr
    assert "Traceback" not in result.text
    assert_whole(yaml, SAVED)
