"""run.elastic over hosts that come and go: the run ends as the one that kept all of them.

The hosts are namespaces with a network of their own (tests/support/hosts). Skipped, with the
reason printed, where they cannot be had; DS_MOE_MTL_HOSTS=0 leaves them out, and
DS_MOE_MTL_HOSTS=all adds the launchers that start the ranks again: torchrun and Slurm.
"""

import json
import os
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from ds_moe_mtl.config import RunConfig, dump_config, load_config
from ds_moe_mtl.engine.checkpoints import list_checkpoints
from ds_moe_mtl.ranks.statuses import HUNG
from tests.support.hosts.fixture import hosts_or_skip
from tests.support.hosts.forked import Training
from tests.support.hosts.hosts import Hosts
from tests.support.hosts.packages import Unavailable, require
from tests.support.hosts.slurm import SLURM_PROGRAMS, HostCluster
from tests.support.launch import ROOT, run_ranks
from tests.support.tiny import tiny_config, write_tiny

STEPS, LONG, SAVED = 10, 60, 2  # steps, those of a launcher's run, those between checkpoints
TIMEOUT = 20.0  # seconds without progress
PORT = 29500
SMALLER = "run.elastic: moe.ep_size = 4 does not divide the number of ranks, 2: 2 on these, where "
SLOW = (
    "from tests.support.hanging import plant\n"
    "from ds_moe_mtl.train import run\n"
    "plant('slow', 0, 0)\n"
    "run()\n"
)
needs_all = pytest.mark.skipif(
    os.environ.get("DS_MOE_MTL_HOSTS") != "all",
    reason="two minutes each: DS_MOE_MTL_HOSTS=all runs it",
)


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    yield from hosts_or_skip(tmp_path_factory.mktemp("elastic") / "of")


@pytest.fixture(scope="module")
def tiny(hosts) -> Path:
    return write_tiny(hosts.shared / "tiny")


def config_of(folder: Path, run: Path, steps: int = STEPS) -> RunConfig:
    return tiny_config(
        folder,
        run={"dir": str(run), "elastic": True},
        moe={"ep_size": 4},
        train={"steps": steps, "save_every": SAVED, "hang_timeout": TIMEOUT},
        deepspeed=str(ROOT / "ds_configs/deepspeed/zero1.json"),
    )


def written(tiny: Path, name: str, steps: int = STEPS) -> tuple[Path, Path]:
    """Return the YAML of a run and the run's folder."""
    run, yaml = tiny / name, tiny / f"{name}.yaml"
    yaml.write_text(dump_config(config_of(tiny, run, steps)))
    run.mkdir()
    (run / "routes.png").touch()  # a picture that is there already is not drawn, which takes long
    return yaml, run


def train_here(folder: str, run: str, steps: int) -> int:
    from ds_moe_mtl.ranks.rendezvous import rendezvous
    from ds_moe_mtl.training.train import train

    config = config_of(Path(folder), Path(run), steps)
    return train(config, rendezvous(os.environ), lambda line: None, last=False)


def whole(tiny: Path, steps: int) -> list[dict]:
    """Return the rows of a run of four ranks that kept them."""
    run = tiny / f"whole-{steps}"
    assert run_ranks(train_here, str(tiny), str(run), steps, ranks=4) == [0] * 4
    return rows_of(run)


def rows_of(run: Path) -> list[dict]:
    """Return the whole lines of a run's metrics.jsonl."""
    file = run / "metrics.jsonl"
    text = file.read_text() if file.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def step_of(run: Path) -> int:
    return max((row["step"] for row in rows_of(run)), default=0)


def past(run: Path, step: int) -> Callable[[], bool]:
    """Return whether a run has logged a step after `step`, as a question."""
    return lambda: step_of(run) > step


def kept(run: Path) -> int:
    """Return the step of the newest checkpoint."""
    return int(list_checkpoints(run / "checkpoints")[0].name.removeprefix("step_"))


def assert_same(run: Path, expected: list[dict]) -> None:
    """Assert that each step stands once, with the loss of the run that kept its ranks.

    To what test_reshape.py allows after a reshaping: rounding moves tokens between two experts.
    """
    rows = rows_of(run)
    assert [row["step"] for row in rows] == [row["step"] for row in expected]
    losses = [row["loss"] for row in rows]
    assert losses == pytest.approx([row["loss"] for row in expected], rel=5e-3)
    assert (run / "results.json").exists()


def test_a_run_of_four_ranks_that_loses_a_host_goes_on_with_two_and_later_with_four(hosts, tiny):
    yaml, run = written(tiny, "down_and_up")
    said, one, both = hosts.home / "said", [hosts[0]], list(hosts)
    first = Training(both, said / "first", [yaml], PORT, each=2, slow=True)
    first.wait_until(past(run, SAVED), 60)
    hosts[1].kill()
    assert first.wait(30, ranks=(0, 1)) and first.statuses[:2] == [HUNG, HUNG], first.text
    lost = step_of(run) - kept(run)
    assert 0 <= lost <= SAVED
    less = Training(one, said / "less", [yaml], PORT + 1, each=2, slow=True)
    less.wait_until(past(run, kept(run) + SAVED), 60)
    less.kill()
    text = less.said(0)
    assert SMALLER in text and "world_size is 4 there and 2 here; ep_size is 4 there" in text, text
    assert load_config(run / "config.yaml", check_files=False).moe.ep_size == 4
    environment = json.loads((run / "environment.json").read_text())
    assert (environment["world_size"], environment["ep_size"]) == (2, 2)
    hosts.boot(hosts[1])
    again = Training(both, said / "again", [yaml], PORT + 2, each=2)
    assert again.wait(60) and again.statuses == [0] * 4, again.text
    text = again.said(0)
    assert "run.elastic: " not in text and "ep_size is 2 there and 4 here" in text, text
    assert_same(run, whole(tiny, STEPS))


@pytest.fixture
def light(hosts, tmp_path) -> Path:
    """Return a folder on all hosts with launchers/ and a train.py of half a second a step."""
    folder = hosts.shared / tmp_path.name
    shutil.copytree(ROOT / "launchers", folder / "launchers")
    (folder / "train.py").write_text(SLOW)
    return folder


@needs_all
@pytest.mark.parametrize(("meeting", "lost"), [("file", 0), ("node0", 1)])
def test_torchrun_goes_on_with_the_host_that_is_left_and_takes_it_back(
    hosts, tiny, light, meeting, lost
):
    yaml, run = written(tiny, f"torchrun_{meeting}", LONG)
    environ = {
        "NODES": "1:2",
        "RANKS": "2",
        "RUN_ID": meeting,
        "LAST_CALL": "5",
        "MASTER": str(light / "meeting") if meeting == "file" else meeting,
    }
    line = [light / "launchers/torchrun.sh", yaml]
    with ExitStack() as ending:
        running = [ending.enter_context(host.popen(line, environ)) for host in hosts]
        running[1 - lost].wait_until(past(run, SAVED), 120)
        hosts[lost].kill()
        stood, at = step_of(run), time.monotonic()
        running[1 - lost].wait_until(past(run, stood), 120)
        print(f"went on after {time.monotonic() - at:.0f} s")
        environment = json.loads((run / "environment.json").read_text())
        assert (environment["world_size"], environment["ep_size"]) == (2, 2)
        hosts.boot(hosts[lost])
        back, at = ending.enter_context(hosts[lost].popen(line, environ)), time.monotonic()

        def four() -> bool:
            text = (run / "environment.json").read_text()
            return text.endswith("}\n") and json.loads(text)["world_size"] == 4

        running[1 - lost].wait_until(four, 120)
        print(f"grew after {time.monotonic() - at:.0f} s")
        ended = [running[1 - lost].wait(), back.wait()]
    said = "\n".join(each.text for each in ended)
    assert [each.returncode for each in ended] == [0, 0], said
    assert SMALLER in said and "ep_size is 2 there and 4 here" in said, said
    assert_same(run, whole(tiny, LONG))


@needs_all
def test_slurm_requeues_a_job_that_lost_a_node_and_starts_it_on_what_is_left(tmp_path):
    try:
        require(SLURM_PROGRAMS, "Slurm")
    except Unavailable as reason:
        pytest.skip(str(reason))
    with Hosts(tmp_path / "of") as hosts:
        tiny = write_tiny(hosts.shared / "tiny")
        yaml, run = written(tiny, "slurm", LONG)
        (tiny / "train.py").write_text(SLOW)
        cluster = HostCluster(hosts)
        script = ROOT / "launchers/slurm/elastic.sbatch"
        ours = ["--gpus-per-node=0", f"--export=ALL,RANKS=2,TRAIN=python {tiny / 'train.py'}"]
        job = cluster.ask("sbatch", "--parsable", *ours, script, yaml, cwd=tiny)
        cluster.wait_until(job, past(run, SAVED))
        hosts[1].kill()
        stood, at = step_of(run), time.monotonic()
        cluster.wait_until(job, past(run, stood), 300)
        print(f"went on after {time.monotonic() - at:.0f} s")
        cluster.wait_for_state(job, "COMPLETED")
        assert cluster.job(job)["Restarts"] != "0"
        said = (tiny / f"logs/{job}-0.log").read_text()
        assert SMALLER in said and "world_size is 4 there and 2 here" in said, said
        assert_same(run, whole(tiny, LONG))
