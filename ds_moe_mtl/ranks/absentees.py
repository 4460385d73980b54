"""Who is waited for while the ranks of a run meet: a line after a minute, long before a time-out.

torch waits in silence, and tells at the end how many have come but not who has not.
"""

import contextlib
import os
import socket
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta

from torch import distributed as dist

from ds_moe_mtl.ranks.rendezvous import Ranks

TOLD_AFTER = 60.0
"""Seconds after which rank 0 tells who has not come, and one rank a host that it has not."""

SETTLED_AFTER = 10.0  # seconds that a usual start takes less than: nothing is sent before
_CONNECT = timedelta(seconds=5)


@contextlib.contextmanager
def absentees_told(ranks: Ranks) -> Iterator[None]:
    """Tell who is missing as long as the block, in which the ranks meet, does not end."""
    met = threading.Event()
    if ranks.world_size > 1:
        threading.Thread(target=_tell, args=(ranks, met), daemon=True).start()
    try:
        yield
    finally:
        met.set()


def _tell(ranks: Ranks, met: threading.Event) -> None:
    if met.wait(SETTLED_AFTER):
        return
    if ranks.rank and _reaches(ranks):
        with contextlib.suppress(RuntimeError):  # rank 0 has gone, and this rank hears of it
            _store(ranks).set(_key(ranks.rank), "1")
            return
    if met.wait(TOLD_AFTER - SETTLED_AFTER):
        return
    here = f"rank {ranks.rank} on {socket.gethostname()}"
    place = f"{ranks.master_addr}:{ranks.master_port}"
    if ranks.rank == 0:
        with contextlib.suppress(RuntimeError):
            store = _store(ranks)
            others = range(1, ranks.world_size)
            absent = [str(rank) for rank in others if not store.check([_key(rank)])]
            named = f"{', '.join(absent[:8])}{' ...' if len(absent) > 8 else ''}"
            if absent:
                of = f"{len(absent)} of {ranks.world_size} ranks"
                _say(f"{here} waits at {place} for {of}: {named}")
    elif ranks.local_rank == int(ranks.rank == ranks.local_rank) and not _reaches(ranks):
        _say(f"{here} does not reach rank 0 at {place}: it has not come, or a firewall is between")


def _key(rank: int) -> str:
    """Return the store's key of a rank that waits: torchrun's store outlives a start of ranks."""
    return f"waits {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)} {rank}"


def _reaches(ranks: Ranks) -> bool:
    try:
        socket.create_connection(
            (ranks.master_addr, ranks.master_port), _CONNECT.total_seconds()
        ).close()
    except OSError:
        return False
    return True


def _store(ranks: Ranks) -> dist.TCPStore:
    return dist.TCPStore(
        ranks.master_addr, ranks.master_port, wait_for_workers=False, timeout=_CONNECT
    )


def _say(what: str) -> None:
    print(f"note: {what} ({TOLD_AFTER:.0f} s so far)", file=sys.stderr, flush=True)
