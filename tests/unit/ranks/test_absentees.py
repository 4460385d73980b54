"""Who is waited for while ranks meet is told, by rank 0 and by a host that does not reach it."""

import socket
import threading
import time
from contextlib import ExitStack

import pytest
from torch import distributed as dist

from ds_moe_mtl.ranks import absentees
from ds_moe_mtl.ranks.absentees import absentees_told
from ds_moe_mtl.ranks.rendezvous import LOOPBACK, Ranks, free_port

HERE = socket.gethostname()


@pytest.fixture
def told(monkeypatch, capsys):
    """Return what some of four ranks tell that wait for the others, as lines; server: rank 0's."""
    monkeypatch.setattr(absentees, "SETTLED_AFTER", 0.2)
    monkeypatch.setattr(absentees, "TOLD_AFTER", 1.0)

    def told(waiting: list[int], server: bool, seconds: float = 2.0) -> list[str]:
        store = dist.TCPStore(LOOPBACK, 0, is_master=True, wait_for_workers=False)
        port = store.port if server else free_port()
        before = threading.active_count()
        with ExitStack() as meeting:
            for rank in waiting:
                ranks = Ranks(rank, 4, rank % 2, 2, LOOPBACK, port, "environment")
                meeting.enter_context(absentees_told(ranks))
            time.sleep(seconds)
        until = time.monotonic() + 10
        while threading.active_count() > before and time.monotonic() < until:
            time.sleep(0.01)
        return sorted(capsys.readouterr().err.replace(str(port), "PORT").splitlines())

    return told


def test_rank_0_names_the_ranks_that_have_not_come(told):
    (line,) = told([0, 2], server=True)
    assert (
        line
        == f"note: rank 0 on {HERE} waits at 127.0.0.1:PORT for 2 of 4 ranks: 1, 3 (1 s so far)"
    )


def test_a_host_that_does_not_reach_rank_0_says_so_once(told):
    (line,) = told([2, 3], server=False)
    assert line.startswith(
        f"note: rank 2 on {HERE} does not reach rank 0 at 127.0.0.1:PORT: it has"
    )


def test_ranks_that_have_met_say_nothing(told):
    assert told([0, 2], server=True, seconds=0.05) == []
