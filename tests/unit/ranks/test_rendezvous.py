"""What each launcher's variables are taken to mean."""

import os
import random
import socket
import subprocess
import sys

import pytest

from ds_moe_mtl.config import UserError
from ds_moe_mtl.ranks.rendezvous import (
    Ranks,
    apply,
    expand_nodelist,
    free_port,
    rendezvous,
    resolves,
    slurm_port,
)

MASTER = {"MASTER_ADDR": "head", "MASTER_PORT": "29400"}
TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "TORCHELASTIC_RUN_ID": "none",
    **MASTER,
}
DEEPSPEED = {
    "RANK": "1",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "1",
    "LOCAL_SIZE": "2",
    "CROSS_RANK": "0",
    "CROSS_SIZE": "1",
    **MASTER,
}
OPENMPI = {
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
HYDRA = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
# As srun of Slurm 22.05 sets them for the first task of the third node.
SRUN = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "2",
    "SLURM_PROCID": "4",
    "SLURM_NTASKS": "5",
    "SLURM_STEP_NUM_TASKS": "5",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "2",
    "SLURM_STEP_NODELIST": "gpu[07-08,11]",
    "SLURM_JOB_NODELIST": "gpu[06-11]",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
}
BATCH_SCRIPT = {"SLURM_JOB_ID": "4711", "SLURM_PROCID": "0", "SLURM_NTASKS": "4"}


def no_broadcast(address, world_size):
    raise AssertionError("nothing had to be broadcast")


def ranks_of(environ, broadcast=no_broadcast):
    return rendezvous(environ, broadcast, find_port=lambda: 40_000, known=lambda host: True)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, Ranks(0, 1, 0, 1, "127.0.0.1", 40_000, "python")),
        (TORCHRUN, Ranks(3, 4, 1, 2, "head", 29_400, "torchrun")),
        (DEEPSPEED, Ranks(1, 2, 1, 2, "head", 29_400, "deepspeed")),
        (OPENMPI | MASTER, Ranks(2, 4, 0, 2, "head", 29_400, "mpirun")),
        (HYDRA | MASTER, Ranks(1, 2, 1, 2, "head", 29_400, "mpirun")),
        (SRUN, Ranks(4, 5, 0, 1, "gpu07", 20_000 + 4711 + 202, "srun")),
        (SRUN | MASTER, Ranks(4, 5, 0, 1, "head", 29_400, "srun")),
        (BATCH_SCRIPT, Ranks(0, 1, 0, 1, "127.0.0.1", 40_000, "python")),
    ],
    ids=["alone", "torchrun", "deepspeed", "openmpi", "hydra", "srun", "srun+master", "batch"],
)
def test_every_launcher_is_understood(environ, expected):
    assert ranks_of(environ) == expected


def test_innermost_launcher_wins():
    assert ranks_of(SRUN | {"SLURM_STEP_NUM_TASKS": "2"} | TORCHRUN).launcher == "torchrun"
    # hydra starts one proxy a node through srun: SLURM_PROCID is the proxy's, not the rank's.
    assert ranks_of(SRUN | HYDRA | MASTER).rank == 1
    # srun --mpi=pmi2 sets PMI_RANK beside its own, without local ranks.
    assert ranks_of(SRUN | {"PMI_RANK": "4", "PMI_SIZE": "5"}).launcher == "srun"


def test_mpirun_without_a_master_asks_rank_0():
    asked = []

    def broadcast(address, world_size):
        asked.append((address, world_size))
        return "node-a", 12_345

    two_nodes = ranks_of(OPENMPI, broadcast)
    assert (two_nodes.master_addr, two_nodes.master_port) == ("node-a", 12_345)
    assert ranks_of(HYDRA | {"PMI_RANK": "0", "MPI_LOCALRANKID": "0"}, broadcast)
    assert asked[0][0][1] == 0, "only rank 0 looks for a port"
    assert asked[1] == (("127.0.0.1", 40_000), 2), "one machine: the loopback address"


def test_tasks_on_one_slurm_node_meet_on_loopback():
    one_node = SRUN | {"SLURM_STEP_NODELIST": "gpu07", "SLURM_STEP_TASKS_PER_NODE": "5"}
    one_node |= {"SLURM_NODEID": "0", "SLURM_LOCALID": "4"}
    ranks = ranks_of(one_node)
    assert (ranks.master_addr, ranks.local_rank, ranks.local_world_size) == ("127.0.0.1", 4, 5)


def test_slurm_port_differs_between_jobs_steps_and_requeues():
    ports = [
        slurm_port(SRUN),
        slurm_port(SRUN | {"SLURM_JOB_ID": "4712"}),
        slurm_port(SRUN | {"SLURM_STEP_ID": "3"}),
        slurm_port(SRUN | {"SLURM_RESTART_COUNT": "1"}),
        slurm_port(SRUN | {"SLURM_JOB_ID": "99999999"}),
    ]
    assert len(set(ports)) == len(ports)
    assert all(20_000 <= port < 30_000 for port in ports)


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 is set without RANK"),
        ({"LOCAL_RANK": "1"}, "LOCAL_RANK=1 is set without RANK"),
        ({"RANK": "0"}, "RANK=0 is set, but WORLD_SIZE is missing"),
        ({"RANK": "0", "WORLD_SIZE": "2", **MASTER}, "LOCAL_RANK is missing"),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "MASTER_ADDR is missing"),
        (TORCHRUN | {"RANK": "4"}, "ranks go from 0 to 3"),
        (TORCHRUN | {"RANK": "one"}, "RANK='one'"),
        (TORCHRUN | {"LOCAL_RANK": "2"}, "local rank 2 of 2"),
        (TORCHRUN | {"MASTER_PORT": "70000"}, "MASTER_PORT=70000"),
        (SRUN | {"RANK": "0", "WORLD_SIZE": "1"}, "unset RANK and WORLD_SIZE"),
        (HYDRA | {"RANK": "0", "WORLD_SIZE": "1"}, "PMI_SIZE=2 processes were started"),
        (SRUN | {"WORLD_SIZE": "2"}, "WORLD_SIZE=2 is set"),
        ({"PMI_RANK": "0", "PMI_SIZE": "2"}, "MPI_LOCALRANKID is missing"),
        (SRUN | {"SLURM_STEP_NODELIST": "gpu[7"}, "cannot be read at 'gpu[7'"),
        (SRUN | {"SLURM_NODEID": "3"}, "has fewer nodes"),
    ],
)
def test_partial_and_contradictory_variables_are_refused(environ, message):
    with pytest.raises(UserError) as refusal:
        ranks_of(environ)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_unknown_name_of_rank_0_is_refused_and_not_waited_for_in_silence():
    with pytest.raises(UserError, match="'gpu07', as srun has it, is unknown.*MASTER_ADDR"):
        rendezvous(SRUN, known=lambda host: resolves(host + ".invalid", patience=0.1))
    assert resolves("127.0.0.1")


def test_mpirun_without_an_mpi_library_says_what_to_install():
    # In a process of its own: mpi4py keeps the library that it once loaded.
    code = "from ds_moe_mtl.ranks.rendezvous import mpi_broadcast\nmpi_broadcast(('here', 1), 2)"
    environ = os.environ | {"MPI4PY_LIBMPI": "/no/such/libmpi.so"}
    run = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True)
    assert run.returncode == 1
    assert "install mpich or openmpi" in run.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("nodelist", "hosts"),
    [
        ("node7", ["node7"]),
        ("n[01-03,7],login", ["n01", "n02", "n03", "n7", "login"]),
        ("rack[1-2]n[08-09]-x", ["rack1n08-x", "rack1n09-x", "rack2n08-x", "rack2n09-x"]),
    ],
)
def test_node_lists_expand_as_scontrol_does(nodelist, hosts):
    assert expand_nodelist(nodelist) == hosts


@pytest.mark.parametrize("nodelist", ["", "n[1", "n1]", "n[a-b]", "a,,b", "n[]"])
def test_broken_node_lists_are_refused(nodelist):
    with pytest.raises(UserError, match="Slurm node list"):
        expand_nodelist(nodelist)


def test_applied_ranks_read_back_as_they_were():
    environ = dict(SRUN)
    apply(ranks_of(SRUN), environ)
    again = ranks_of(environ)
    assert again == Ranks(4, 5, 0, 1, "gpu07", 24_913, "environment")


def test_a_free_port_is_not_taken_and_not_one_that_the_system_gives_out():
    found = [free_port() for _ in range(20)]
    assert len(set(found)) > 15 and all(20_000 <= port < 30_000 for port in found)
    with socket.socket() as held:
        held.bind(("127.0.0.1", found[0]))
        draws = iter([found[0], found[1]])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(random.SystemRandom, "randrange", lambda self, *_: next(draws))
            assert free_port() == found[1]
