"""Notices under hydra (MPICH's mpirun) that a rank of this machine has gone before the ranks met.

torchrun, deepspeed and Open MPI end the ranks that are left, and srun does after --wait. hydra lets
them wait for the one that has gone, for hours; once they have met, the watchdog notices.
"""

import contextlib
import os
import threading
from collections.abc import Iterator, Mapping

import psutil

from ds_moe_mtl.ranks.statuses import HUNG

PROXY = "hydra_pmi_proxy"
"""The process that starts and holds all ranks of a machine."""

SPEAKING = 3.0
"""Seconds in which a rank that has gone, and mpirun, say what they have to say."""


@contextlib.contextmanager
def siblings_watched(environ: Mapping[str, str]) -> Iterator[None]:
    """End this process where a rank of this machine goes while the block waits for all ranks.

    What this process has started ends too. Does nothing under another launcher.
    """
    met = threading.Event()
    number = environ.get("MPI_LOCALNRANKS", "")
    proxy = psutil.Process().parent()
    if number.isdigit() and proxy is not None and proxy.name() == PROXY:
        threading.Thread(target=_watch, args=(proxy, int(number), met), daemon=True).start()
    try:
        yield
    finally:
        met.set()


def _watch(proxy: psutil.Process, number: int, met: threading.Event) -> None:
    while _living(proxy) == number:
        if met.wait(1.0):
            return
    if met.wait(SPEAKING):
        return
    gone = f"{number - _living(proxy)} of {number} ranks of this machine"
    line = f"lost: {gone} ended before the ranks had met; this one ends too; start the run again\n"
    os.write(2, line.encode())
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    os._exit(HUNG)


def _living(proxy: psutil.Process) -> int:
    """Return how many processes a proxy has that have not ended; 0 where it has gone itself."""
    found = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in proxy.children():
            with contextlib.suppress(psutil.NoSuchProcess):
                found += child.status() != psutil.STATUS_ZOMBIE
    return found
