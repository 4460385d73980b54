"""Launchers over two hosts of two ranks: they meet, stop, fail and go on as on one machine.

The hosts are namespaces with a network of their own (tests/support/hosts). Skipped, with the
reason printed, where they cannot be had; DS_MOE_MTL_HOSTS=0 leaves them out, and
DS_MOE_MTL_HOSTS=all adds a whole training under MPICH's and Open MPI's mpirun and deepspeed, and
SIGTERM to mpirun, which the tests of the checkup and of the pre-flight use without it.
"""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import psutil
import pytest

from ds_moe_mtl.config import RunConfig, dump_config
from tests.support.ends import differences
from tests.support.hosts.fixture import hosts_or_skip, require_or_skip
from tests.support.hosts.forked import Training
from tests.support.hosts.host import OnHost
from tests.support.hosts.hosts import Hosts
from tests.support.hosts.openmpi import open_mpi_environ
from tests.support.hosts.packages import Unavailable
from tests.support.hosts.slurm import SLURM_PROGRAMS, HostCluster
from tests.support.launch import LIMIT, ROOT, run_ranks
from tests.support.tiny import tiny_config, write_data, write_tiny

HANGING = ROOT / "tests" / "support" / "hanging.py"
RANKS, STEPS, SAVED = 4, 6, 2  # ranks, steps, steps between checkpoints
RENDEZVOUS = ("--rdzv-backend", "c10d", "--rdzv-endpoint", "node0:29400", "--rdzv-id", "tiny")
TORCHRUN = ("torchrun", "--nnodes", "2", "--nproc-per-node", "2", *RENDEZVOUS)
EXPORTED = "OMP_NUM_THREADS=1\nHF_HUB_OFFLINE=1\nDS_ACCELERATOR=cpu\n"  # by deepspeed, to ranks
PDSH = {"pdsh": "pdsh", "pkill": "procps"}
AHEAD = 5  # seconds
PORT = 29511
needs_all = pytest.mark.skipif(
    os.environ.get("DS_MOE_MTL_HOSTS") != "all",
    reason="up to half a minute: DS_MOE_MTL_HOSTS=all runs it",
)


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    yield from hosts_or_skip(tmp_path_factory.mktemp("hosts") / "of", ssh=True)


@pytest.fixture(scope="module")
def tiny(hosts) -> Path:
    """Return a folder of tiny data on all hosts, with whole.yaml: a run that was never stopped."""
    folder = write_tiny(hosts.shared / "tiny")
    whole = folder / "whole"
    statuses = run_ranks(train_here, str(folder), str(whole), ranks=RANKS)
    assert statuses == [0] * RANKS
    return folder


def config_of(folder: Path, run: Path) -> RunConfig:
    return tiny_config(
        folder,
        run={"dir": str(run)},
        moe={"ep_size": 2},
        train={"steps": STEPS, "save_every": SAVED, "hang_timeout": 60.0},
        deepspeed=str(ROOT / "ds_configs/deepspeed/zero1.json"),
    )


def train_here(folder: str, run: str) -> int:
    from ds_moe_mtl.ranks.rendezvous import rendezvous
    from ds_moe_mtl.training.train import train

    config = config_of(Path(folder), Path(run))
    return train(config, rendezvous(os.environ), lambda line: None, last=False)


def written(tiny: Path, name: str) -> tuple[Path, Path]:
    """Return the YAML of a run and the run's folder."""
    run, yaml = tiny / name, tiny / f"{name}.yaml"
    yaml.write_text(dump_config(config_of(tiny, run)))
    return yaml, run


@pytest.fixture
def light(hosts, tmp_path) -> Path:
    """Return a folder on all hosts with launchers/ and, as train.py, a run of two seconds."""
    folder = hosts.shared / tmp_path.name
    shutil.copytree(ROOT / "launchers", folder / "launchers")
    shutil.copy(ROOT / "tests" / "support" / "stoppable.py", folder / "train.py")
    (folder / "run").mkdir()
    (folder / "mpich").write_text("node0:2\nnode1:2\n")
    (folder / "deepspeed").write_text("node0 slots=2\nnode1 slots=2\n")
    (folder / ".deepspeed_env").write_text(EXPORTED)
    return folder


def started(light: Path) -> list[dict]:
    """Return what the ranks logged at their starts, by start and rank."""
    log = light / "run" / "log.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def test_a_rank_that_fails_on_node1_ends_both_torchruns_and_a_start_goes_on_to_the_same_bits(
    hosts, tiny, tmp_path
):
    yaml, run = written(tiny, "passed_on")
    failing = [*TORCHRUN, HANGING, "raise", "2", "4", yaml]
    hosts.names(debian=True)
    ended = [running.wait() for running in [host.popen(failing) for host in hosts]]
    hosts.names()
    assert [each.returncode for each in ended] == [1, 1], ended[0].text + ended[1].text
    assert "rank 2 on node1 failed in step 4; all ranks end\n" in ended[1].stderr, ended[1].text
    log = (run / "logs/rank2.log").read_text()
    assert " rank 2 on node1: " in log and "OSError: no batch for step 4" in log
    again = Training(list(hosts), tmp_path, [yaml], PORT, each=2)
    assert again.wait(LIMIT) and again.statuses == [0] * RANKS, again.text
    assert f"continuing {run}/checkpoints/step_00000002" in again.said(0)
    assert differences(run, tiny / "whole") == []


@needs_all
def test_slurm_over_two_hosts_trains_to_the_bits_of_one(hosts, tiny):
    require_or_skip(SLURM_PROGRAMS, "Slurm")
    yaml, run = written(tiny, "slurm")
    cluster = HostCluster(hosts)
    options = ["--ntasks-per-node=2", "--cpus-per-task=1", "--gpus-per-node=0"]
    script = ROOT / "launchers/slurm/multi_node.sbatch"
    train = f"--export=ALL,TRAIN=python {ROOT / 'train.py'}"
    job = cluster.ask("sbatch", "--parsable", *options, train, script, yaml, cwd=tiny)
    cluster.wait_for_state(job, "COMPLETED")
    assert sorted(path.name for path in (tiny / "logs").iterdir()) == [
        f"{job}-{rank}.log" for rank in range(RANKS)
    ]
    assert differences(run, tiny / "whole") == []


@needs_all
@pytest.mark.parametrize("launcher", ["mpirun", "openmpi", "deepspeed"])
def test_a_training_over_two_hosts_is_that_of_one_to_the_bit(hosts, tiny, light, launcher):
    yaml, run = written(tiny, launcher)
    shutil.copy(ROOT / "train.py", light / "train.py")
    ended = launched(hosts, light, launcher, yaml).wait()
    assert ended.returncode == 0, ended.text
    assert differences(run, tiny / "whole") == []


def launched(hosts: Hosts, light: Path, launcher: str, *words: object) -> OnHost:
    """Return light's train.py started from node0 over both hosts."""
    if launcher in ("mpirun", "openmpi"):
        environ = {"HOSTFILE": str(light / "mpich"), "RANKS": str(RANKS)}
        if launcher == "openmpi":
            environ["HOSTFILE"] = str(light / "deepspeed")  # written alike
            environ |= open_mpi_or_skip(light / "openmpi")
        return hosts[0].popen([light / "launchers/mpirun.sh", *words], environ)
    require_or_skip(PDSH, "deepspeed --hostfile")
    line = ["deepspeed", "--hostfile", light / "deepspeed", light / "train.py"]
    return hosts[0].popen([*line, *words], cwd=light)


def open_mpi_or_skip(folder: Path) -> dict[str, str]:
    try:
        return open_mpi_environ(folder, os.environ["PATH"])
    except Unavailable as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize(
    ("launcher", "address", "status"),
    [
        pytest.param("mpirun", "node0", 75, marks=needs_all),
        ("deepspeed", "10.77.0.1", 1),
    ],
)
def test_sigterm_to_the_launcher_stops_the_ranks_of_both_hosts_with_a_checkpoint(
    hosts, light, launcher, address, status
):
    run = light / "run"
    with launched(hosts, light, launcher, run, "1000", "0.1") as running:
        running.wait_until(lambda: len(started(light)) == RANKS)
        running.signal(signal.SIGTERM)
        running.process.wait(60)
        until = time.monotonic() + 30  # deepspeed does not wait for them
        while left := [p for host in hosts for p in host.processes() if "train.py" in line_of(p)]:
            assert time.monotonic() < until, left
            time.sleep(0.1)
        ended = running.wait()
    assert ended.returncode == status, ended.text
    assert json.loads((run / "checkpoint.json").read_text())["step"] > 0
    ranks = sorted(started(light), key=lambda line: line["rank"])
    assert [line["launcher"] for line in ranks] == [launcher] * RANKS
    assert [line["LOCAL_RANK"] for line in ranks] == ["0", "1", "0", "1"]
    assert {(line["MASTER_ADDR"], line["LOCAL_WORLD_SIZE"]) for line in ranks} == {(address, "2")}


def line_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


@pytest.fixture
def each_its_own(hosts) -> list[str]:
    """Return a launch line of one rank a host, by a `rank` that may differ between them."""
    for host in hosts:
        write_program(host.kept / "rank", "exec python")
    (hosts.shared / "one_each").write_text("node0:1\nnode1:1\n")
    return ["mpirun", "-n", "2", "-hostfile", str(hosts.shared / "one_each"), hosts.folder / "rank"]


def write_program(path: Path, line: str) -> None:
    path.write_text(f'#!/bin/sh\n{line} "$@"\n')
    path.chmod(0o755)


def test_the_checkup_names_the_host_whose_clock_and_whose_package_are_others(hosts, each_its_own):
    require_or_skip({"faketime": "faketime"}, "a clock that is ahead")
    other = hosts[1].kept / "site" / "torch-9.9.9.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 9.9.9\n")
    path = f"PYTHONPATH={hosts.folder}/site:$PYTHONPATH FAKETIME_DONT_FAKE_MONOTONIC=1"
    write_program(hosts[1].kept / "rank", f"{path} exec faketime -f +{AHEAD}s python")
    ended = hosts[0].run([*each_its_own, "-m", "ds_moe_mtl", "doctor", "--distributed", "--json"])
    assert ended.returncode == 1, ended.text
    told = json.loads(ended.stdout.strip().splitlines()[-1])
    assert [row["host"] for row in told["ranks"]] == ["node0", "node1"]
    package, clock = told["faults"]
    assert package.startswith("torch differs: ") and "rank 1 on node1 has 9.9.9" in package
    assert clock.startswith(f"rank 1 on node1: its clock is +{AHEAD}.0 s from rank 0's")


def test_the_preflight_names_the_host_whose_clock_and_whose_data_are_others(
    hosts, tiny, each_its_own
):
    require_or_skip({"faketime": "faketime"}, "a clock that is ahead")
    faked = f"FAKETIME_DONT_FAKE_MONOTONIC=1 exec faketime -f +{AHEAD}s python"
    write_program(hosts[1].kept / "rank", faked)
    for number, host in enumerate(hosts):
        write_data(host.kept / "data", rows=60 + number)
    yaml, _ = written(tiny, "other_data")
    config = yaml.read_text().replace(f"{tiny}/data/", f"{hosts.folder}/data/")
    yaml.write_text(config.replace(f"{tiny}/cache", f"{hosts.folder}/cache"))
    ended = hosts[0].run([*each_its_own, ROOT / "train.py", yaml])
    assert ended.returncode == 2, ended.text
    errors = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in ended.stderr, ended.text
    assert errors[0].startswith("error: data of colour differs between the ranks: rank 1 on node1")
    assert "; rank 0 on node0 has " in errors[0]
    clock = f"note: rank 1 on node1: its clock is +{AHEAD}.0 s from rank 0's; allowed: 1 s\n"
    assert ended.stdout.count("its clock is") == 1 and clock in ended.stdout, ended.text


def test_an_unknown_name_of_rank_0s_host_is_one_line_that_names_both(hosts):
    place = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    script = (
        "import os; from ds_moe_mtl.ranks.rendezvous import rendezvous, resolves;"
        "rendezvous(os.environ, known=lambda host: resolves(host, 0.1))"
    )
    there = {**place, "MASTER_ADDR": "node7", "MASTER_PORT": "29500"}
    ended = hosts[1].run(["python", "-c", script], there)
    said = ended.stderr.splitlines()[-1]
    assert "rank 0's host 'node7', as environment has it, is unknown on node1: export" in said
