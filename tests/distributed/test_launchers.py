"""Every launch line starts ranks that find each other, stop when asked, and go on afterwards.

The launchers are copied beside a two-second run of train.py's shape (tests/support/stoppable.py).
"""

import json
import os
import shutil
import signal
import socket
import time
from pathlib import Path

import pytest
from torch import distributed as dist

from ds_moe_mtl.config import UserError
from ds_moe_mtl.engine.engine import start_process_group
from ds_moe_mtl.ranks.rendezvous import Ranks
from tests.support.launch import ROOT, Running, free_port, launch, rank_environ, run_ranks
from tests.support.loopback_ssh import LoopbackSsh, missing_programs

STOPPABLE = ROOT / "tests" / "support" / "stoppable.py"
MPICH_ONE_RANK_A_HOST = "127.0.0.1:1\nlocalhost:1\n"  # two host names, so two nodes to mpirun


def start_on(port: int) -> int:
    """Start a world of one on a port and return the one that it took."""
    dist.destroy_process_group()
    start_process_group(Ranks(0, 1, 0, 1, "127.0.0.1", port, "python"))
    return int(os.environ["MASTER_PORT"])


def test_a_world_of_one_takes_another_port_where_its_own_is_taken():
    with socket.create_server(("", free_port())) as taken:
        port = taken.getsockname()[1]
        (found,) = run_ranks(start_on, port, ranks=1)
    assert found != port


def refusal_on(port: int) -> str:
    """Start rank 0 of two on a port and return why it would not."""
    dist.destroy_process_group()
    with pytest.raises(UserError) as refused:
        start_process_group(Ranks(0, 2, 0, 2, "127.0.0.1", port, "deepspeed"))
    start_process_group(Ranks(0, 1, 0, 1, "127.0.0.1", free_port(), "python"))  # for our starter
    return str(refused.value)


def test_a_taken_port_is_one_line_where_there_are_several_ranks():
    with socket.create_server(("", free_port())) as taken:
        port = taken.getsockname()[1]
        (said,) = run_ranks(refusal_on, port, ranks=1)
    assert said.startswith(f"port {port} is taken") and "--master_port N" in said
    assert "\n" not in said


@pytest.fixture
def checkout(tmp_path):
    """Return a folder with launchers/ and a train.py to launch."""
    shutil.copytree(ROOT / "launchers", tmp_path / "launchers")
    shutil.copy(STOPPABLE, tmp_path / "train.py")
    (tmp_path / "run").mkdir()
    return tmp_path


def started(checkout: Path, script: str, *words: str, **variables: str) -> Running:
    """Return launchers/`script` running two ranks of the checkout's train.py on run/."""
    environ = rank_environ({"RANKS": "2", "MASTER_PORT": str(free_port()), **variables})
    if script == "mpirun.sh":
        del environ["MASTER_PORT"]
    command = [str(checkout / "launchers" / script), str(checkout / "run"), *words]
    return Running(command, environ, Path("/"))


def log_of(checkout: Path) -> list[dict]:
    """Return what the ranks logged at their start, by rank."""
    lines = (checkout / "run" / "log.jsonl").read_text().splitlines()
    return sorted(map(json.loads, lines), key=lambda line: line["rank"])


def result_of(checkout: Path) -> dict:
    return json.loads((checkout / "run" / "results.json").read_text())


@pytest.mark.parametrize(
    ("script", "launcher"), [("torchrun.sh", "torchrun"), ("mpirun.sh", "mpirun")]
)
def test_launch_line_starts_ranks_that_meet(checkout, script, launcher):
    with started(checkout, script, "3", "0") as running:
        run = running.wait()
    assert run.returncode == 0, run.text
    assert result_of(checkout) == {"step": 3, "sum": 6}
    ranks = log_of(checkout)
    assert [line["launcher"] for line in ranks] == [launcher] * 2
    assert [line["LOCAL_RANK"] for line in ranks] == ["0", "1"]
    assert {line["LOCAL_WORLD_SIZE"] for line in ranks} == {"2"}
    assert len({line["MASTER_PORT"] for line in ranks}) == 1


def test_without_a_train_py_the_launch_line_starts_the_installed_module(checkout):
    (checkout / "train.py").unlink()
    words = ["no/such.yaml"]
    environ = rank_environ({"RANKS": "2"})
    with Running([checkout / "launchers" / "mpirun.sh", *words], environ, checkout) as running:
        run = running.wait()
    assert run.returncode == 2 and "error: no/such.yaml: no such file" in run.stderr, run.text


def test_plain_python_is_a_world_of_one(checkout):
    run = launch([checkout / "train.py", checkout / "run", "2", "0"], 1, "python")
    assert run.returncode == 0, run.text
    assert result_of(checkout) == {"step": 2, "sum": 2}


def test_mpirun_over_two_hosts_learns_the_address_of_rank_0(checkout):
    hosts = checkout / "hosts"
    hosts.write_text(MPICH_ONE_RANK_A_HOST)
    with started(checkout, "mpirun.sh", "2", "0", HOSTFILE=str(hosts)) as running:
        run = running.wait()
    assert run.returncode == 0, run.text
    ranks = log_of(checkout)
    assert [line["LOCAL_RANK"] for line in ranks] == ["0", "0"]
    assert [line["LOCAL_WORLD_SIZE"] for line in ranks] == ["1", "1"]
    addresses = {line["MASTER_ADDR"] for line in ranks}
    assert len(addresses) == 1 and "127.0.0.1" not in addresses


def test_mpirun_passes_sigterm_on_and_status_75_back(checkout):
    with started(checkout, "mpirun.sh", "100", "0.1") as running:
        wait_for_ranks(running, checkout)
        running.process.send_signal(signal.SIGTERM)
        run = running.wait()
    assert run.returncode == 75, run.text
    with started(checkout, "mpirun.sh", "100", "0") as running:
        again = running.wait()
    assert again.returncode == 0, again.text
    assert log_of(checkout)[-1]["start"]["step"] > 0
    assert result_of(checkout) == {"step": 100, "sum": 200}


def test_deepspeed_line_passes_sigterm_on_and_leaves_no_rank_behind(checkout):
    with started(checkout, "local_deepspeed.sh", "100", "0.2") as running:
        wait_for_ranks(running, checkout)
        running.process.send_signal(signal.SIGTERM)
        running.process.wait(60)
        left = running.processes()
        run = running.wait()
    assert run.returncode == 1, run.text
    assert left == []
    with started(checkout, "local_deepspeed.sh", "100", "0") as running:
        again = running.wait()
    assert again.returncode == 0, again.text
    assert {line["launcher"] for line in log_of(checkout)} == {"deepspeed"}
    assert log_of(checkout)[-1]["start"]["step"] > 0
    assert result_of(checkout) == {"step": 100, "sum": 200}


@pytest.mark.skipif(
    os.environ.get("DS_MOE_MTL_SSH") != "1" or missing_programs(),
    reason=f"half a minute: DS_MOE_MTL_SSH=1 runs it (missing: {missing_programs() or 'nothing'})",
)
def test_deepspeed_hostfile_starts_a_rank_on_each_host_over_ssh(checkout):
    hosts = checkout / "hostfile"
    hosts.write_text("localhost slots=1\n127.0.0.1 slots=1\n")
    with LoopbackSsh(checkout / "ssh") as ssh:
        environ = rank_environ()
        environ["PATH"] = f"{ssh.bin}:{environ['PATH']}"
        line = ["deepspeed", "--hostfile", str(hosts), "--master_port", str(free_port())]
        command = [*line, str(checkout / "train.py"), str(checkout / "run"), "3", "0"]
        with Running(command, environ, checkout) as running:
            run = running.wait()
    assert run.returncode == 0, run.text
    ranks = log_of(checkout)
    assert [line["launcher"] for line in ranks] == ["deepspeed"] * 2
    assert [line["LOCAL_RANK"] for line in ranks] == ["0", "0"]
    assert result_of(checkout) == {"step": 3, "sum": 6}


def ends_late_on_rank_0() -> int:
    dist.barrier()  # both have met: else one that ends at once closes what the other connects to
    if dist.get_rank() == 0:
        time.sleep(3)
    return dist.get_rank()


def test_mpirun_lets_a_rank_finish_its_work_when_another_has_ended():
    assert run_ranks(ends_late_on_rank_0, ranks=2, launcher="mpirun") == [0, 1]


def test_users_mistake_is_status_2_under_mpirun(checkout):
    with started(checkout, "mpirun.sh", "1", "0", "2") as running:
        run = running.wait()
    assert run.returncode == 2, run.text


def test_no_process_outlives_the_time_limit(checkout):
    # torchrun's workers are sessions of their own: killing its process group alone misses them.
    with started(checkout, "torchrun.sh", "100", "0.2") as running:
        wait_for_ranks(running, checkout)
        assert len(running.ranks()) == 2
        run = running.wait(time_limit=0.1)
        assert run.timed_out
        assert running.processes() == []


def wait_for_ranks(running: Running, checkout: Path) -> None:
    """Return once both ranks have their signal handlers and have logged their start."""
    running.wait_until(
        lambda: (checkout / "run" / "log.jsonl").exists() and len(log_of(checkout)) == 2
    )
