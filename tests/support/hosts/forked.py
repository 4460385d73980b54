"""Trainings over hosts whose ranks are forked from one process that has imported everything.

    run = Training([hosts[0], hosts[1]], folder, [yaml])    # one rank on each
    run.wait(60); run.statuses, run.said(1)

Without imports a start takes two seconds, not eight. What a rank says is kept outside of the hosts.
"""

import ctypes
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from pathlib import Path

from ds_moe_mtl.cli.train import main
from tests.support.hanging import plant
from tests.support.hosts.host import Host
from tests.support.launch import ROOT, forkserver_context, rank_environ

KINDS = ("net", "uts", "ipc", "mnt", "pid")
PR_SET_PDEATHSIG = 1  # linux/prctl.h
KILLED = 128  # plus the signal: the status of a rank that one ended
_libc = ctypes.CDLL(None, use_errno=True)


class Training:
    """train.py on some hosts, `each` ranks on each, started and not waited for.

    folder: receives rank<N>.txt, both outputs of each rank; slow: half a second a step, so that a
    fault finds the run in its midst.
    """

    def __init__(
        self,
        hosts: Sequence[Host],
        folder: Path,
        arguments: Sequence[str | Path],
        port: int,
        each: int = 1,
        slow: bool = False,
    ):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.hosts = folder, hosts
        self.began = time.monotonic()
        self.ended: dict[int, float] = {}  # rank -> seconds after the start
        self.processes = []
        world = {
            "MASTER_ADDR": hosts[0].name,
            "MASTER_PORT": str(port),
            "WORLD_SIZE": str(len(hosts) * each),
            "LOCAL_WORLD_SIZE": str(each),
        }
        for rank in range(len(hosts) * each):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank % each)}
            process = forkserver_context().Process(
                target=_enter,
                args=(
                    hosts[rank // each].init,
                    rank_environ({**world, **place}),
                    str(folder / f"rank{rank}.txt"),
                    [str(word) for word in arguments],
                    slow,
                ),
            )
            process.start()
            self.processes.append(process)

    @property
    def statuses(self) -> list[int | None]:
        """Each rank's exit status; None of one that lives."""
        return [process.exitcode for process in self.processes]

    def said(self, rank: int) -> str:
        """Return what a rank has said so far."""
        path = self.folder / f"rank{rank}.txt"
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def text(self) -> str:
        """What all have said, with their statuses, for an assertion's message."""
        return "\n".join(
            f"{rank}: {end}\n{self.said(rank)}" for rank, end in enumerate(self.statuses)
        )

    def wait(self, time_limit: float, ranks: Sequence[int] | None = None) -> bool:
        """Return whether some ranks (all of them) have ended within `time_limit` seconds."""
        ranks = range(len(self.processes)) if ranks is None else ranks
        until = time.monotonic() + time_limit
        while True:
            living = [rank for rank in ranks if self.processes[rank].exitcode is None]
            now = time.monotonic()
            for rank in set(ranks) - set(living):
                self.ended.setdefault(rank, now - self.began)
            if not living or now > until:
                return not living
            wait([self.processes[rank].sentinel for rank in living], until - now)

    def wait_until(self, happened: Callable[[], bool], time_limit: float) -> None:
        """Return once `happened()`; AssertionError if a rank ends first or it is late."""
        until = time.monotonic() + time_limit
        while not happened():
            assert set(self.statuses) == {None} and time.monotonic() < until, self.text
            time.sleep(0.05)

    def kill(self) -> None:
        """End what is left of it: the ranks themselves end with their first process."""
        for process in self.processes:
            if process.exitcode is None:
                process.kill()
            process.join()


def _enter(init: int, environ: dict[str, str], out: str, arguments: list[str], slow: bool) -> None:
    """Be the parent of a rank on the host whose first process is `init`, and end as it ends."""
    file = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    spaces = [os.open(f"/proc/{init}/ns/{kind}", os.O_RDONLY) for kind in KINDS]
    for space in spaces:
        if _libc.setns(space, 0):
            raise OSError(ctypes.get_errno(), "setns")
        os.close(space)
    child = os.fork()  # a PID namespace takes children in, not who enters it
    if not child:
        _train(environ, arguments, slow)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os._exit(status if status >= 0 else KILLED - status)


def _train(environ: dict[str, str], arguments: list[str], slow: bool) -> None:
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.environ.clear()
    os.environ.update(environ)
    os.chdir(ROOT)
    status = 1
    try:
        if slow:
            plant("slow", 0, 0)
        status = main(arguments)
    except Exception:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)  # as train.py
