"""Notices under hydra (MPICH's mpirun) that a rank of this machine has gone before the ranks met.

torchrun, deepspeed and Open MPI end the ranks that are left, and srun does after --wait. hydra lets
them wait for the one that has gone, for hours; once they have met, the watchdog notices.

    watch_killed(environ)               # at the start: a rank that a signal ends ends the others
    with siblings_watched(environ):     # where all have to come: so does any end of a rank
        ...
"""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import psutil

from ds_moe_mtl.ranks.statuses import HUNG

PROXY = "hydra_pmi_proxy"
"""The process that starts and holds all ranks of a machine."""

SPEAKING = 3.0
"""Seconds in which a rank that has gone, and mpirun, say what they have to say."""

LINE = (
    "lost: a rank of this machine ended before the ranks had met; all of this machine end; "
    "start the run again\n"
)
_ENDS = threading.Lock()  # held by the thread that ends this process


@contextlib.contextmanager
def siblings_watched(environ: Mapping[str, str]) -> Iterator[None]:
    """End this process where a rank of this machine goes while the block waits for all ranks.

    What this process has started ends too. Does nothing under another launcher.
    """
    met = threading.Event()
    proxy, number = _proxy(environ)
    if proxy is not None:
        _start(proxy, lambda: len(_living(proxy)) < number, met.wait)
    try:
        yield
    finally:
        met.set()


def watch_killed(environ: Mapping[str, str]) -> None:
    """End this process where a signal ends a rank of this machine, until the ranks have met.

    A rank that ends by itself may have met a mistake that all ranks are about to meet.
    """
    proxy, _ = _proxy(environ)
    if proxy is not None:
        _start(proxy, lambda: _killed(proxy), _wait_for_meeting)


def _proxy(environ: Mapping[str, str]) -> tuple[psutil.Process | None, int]:
    """Return hydra's process of this machine and how many ranks it has started; or None, 0."""
    number = environ.get("MPI_LOCALNRANKS", "")
    parent = psutil.Process().parent()
    if number.isdigit() and parent is not None and parent.name() == PROXY:
        return parent, int(number)
    return None, 0


def _wait_for_meeting(seconds: float) -> bool:
    """Wait, and return whether torch's process group is there."""
    time.sleep(seconds)
    dist = sys.modules.get("torch.distributed")
    return dist is not None and getattr(dist, "is_initialized", bool)()  # imported in part as yet


def _start(proxy: psutil.Process, lost: Callable[[], bool], met: Callable[[float], bool]) -> None:
    threading.Thread(target=_watch, args=(proxy, lost, met), daemon=True).start()


def _watch(proxy: psutil.Process, lost: Callable[[], bool], met: Callable[[float], bool]) -> None:
    """End this process once `lost()`; met(seconds) waits and tells whether nothing can be lost."""
    while not lost():
        if met(1.0):
            return
    if met(SPEAKING) or not _ENDS.acquire(blocking=False):
        return
    if os.getpid() == min(_living(proxy), default=os.getpid()):  # one of this machine speaks
        os.write(2, LINE.encode())
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    os._exit(HUNG)


def _killed(proxy: psutil.Process) -> bool:
    """Return whether a signal has ended a process that the proxy has not taken leave of."""
    with contextlib.suppress(psutil.NoSuchProcess, OSError, ValueError):
        for child in proxy.children():
            if child.status() == psutil.STATUS_ZOMBIE:
                words = Path(f"/proc/{child.pid}/stat").read_text().split()
                if os.WIFSIGNALED(int(words[-1])):  # exit_code, man 5 proc
                    return True
    return False


def _living(proxy: psutil.Process) -> list[int]:
    """Return a proxy's processes that have not ended; none where it has gone itself."""
    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in proxy.children():
            with contextlib.suppress(psutil.NoSuchProcess):
                if child.status() != psutil.STATUS_ZOMBIE:
                    found.append(child.pid)
    return found
