"""Notices that a run hangs, says which rank and where, and ends all ranks; the same for a failure.

Each rank watches its own main thread. Once a second it posts what that thread does to a small
store on rank 0, and reads the others' posts. The store is the watchdog's own: the process group's
is left alone, and so are its threads, which a hang may hold. Two threads a rank: a store whose
host is frozen blocks whoever asks it, and somebody has to notice.

    with Watchdog(ranks, timeout) as watchdog:      # after the process group has started
        watchdog.progress(step, "step")             # whenever something is done
"""

import itertools
import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta

from torch import distributed as dist

from ds_moe_mtl.config import RankError, UserError
from ds_moe_mtl.ranks.rendezvous import Ranks
from ds_moe_mtl.ranks.statuses import HUNG
from ds_moe_mtl.ranks.torchrun import prevent_restart

SILENT = 5.0  # seconds without a post after which a process counts as frozen
PATIENCE = 3.0  # seconds that ranks wait for one another while they end
CONNECT = timedelta(seconds=60)
# What an error says that only the end of another rank, or of the network, brings about.
_BROKEN = re.compile(
    r"Connection (?:closed by peer|reset by peer|timed out|aborted)|Broken pipe|remote process exit"
    r"|No route to host|(?:Network|Host) is (?:unreachable|down)",
    re.IGNORECASE,
)
_END, _SAID, _NOTHING = "end", "said", "-"


class Watchdog:
    """Watches one rank, from entering to leaving a `with` block that all ranks share.

    Until the first progress, and from `rest` to the next, this rank starts no alarm but for a rank
    that posts no more.
    """

    def __init__(self, ranks: Ranks, timeout: float) -> None:
        """timeout: seconds in which some rank must have made progress."""
        self.rank, self.world_size, self.host = ranks.rank, ranks.world_size, ranks.master_addr
        self.timeout = timeout
        self._names = ["rank 0"]  # as lines call the ranks
        self._interval = min(1.0, timeout / 10)
        self._silent = min(SILENT, timeout / 2)
        self._counter = itertools.count(1)
        self._now = (0, 0, "start", False)  # number, step, phase, whether it is watched
        self._saved: int | None = None
        self._clock = 0.0
        self._post: dict = self._look(0.0, 0)
        self._posts: dict[int, tuple[dict, float]] = {}  # post, and the clock when it changed
        self._heard = 0.0  # the clock when the store last answered
        self._lost = False  # the store has gone, and rank 0 with it
        self._wish: dict | None = None  # how this rank wants the run to end
        self._ends = threading.Event()  # the store has an end
        self._wake = threading.Event()
        self._closed = threading.Event()

    def progress(self, step: int, phase: str = "step") -> None:
        """Note that this rank has come so far; phase: step, dev scores, checkpoint or model."""
        self._now = (next(self._counter), step, phase, True)

    def saved(self, step: int) -> None:
        """Note the newest checkpoint."""
        self._saved = step

    def rest(self) -> None:
        """Start no alarm until the next progress, but for a rank that posts no more."""
        self._now = (next(self._counter), 0, "start", False)

    def __enter__(self) -> "Watchdog":
        """Start; a collective call."""
        if self.world_size > 1:
            self._store = self._open_store()
            self._store.set(f"post {self.rank}", json.dumps(self._post))
            hosts: list = [None] * self.world_size
            dist.all_gather_object(hosts, socket.gethostname())  # and all have posted
            self._names = names_of(hosts)
            self._exchanger = threading.Thread(target=self._keep_exchanging, daemon=True)
            self._exchanger.start()
        threading.Thread(target=self._keep_watching, daemon=True).start()
        return self

    def __exit__(self, kind, error, trace) -> None:
        """Stop. An error that this rank alone has met ends the others, with its status.

        A connection that breaks is another rank's end: that one is named, and this one is no more.
        """
        alone = error is not None and not (
            isinstance(error, UserError) and not isinstance(error, RankError)
        )
        if alone and self.world_size > 1:
            if reason := broken(error):
                self._end_by_loss(reason)
            status = 2 if isinstance(error, RankError) else 1  # one line, or a traceback
            if " on " in self._names[self.rank]:  # a launcher may not tell the host
                _, step, phase, _ = self._now
                _print(f"{self._names[self.rank]} failed {_doing(step, phase)}; all ranks end")
            self._propose({"rank": self.rank, "line": "", "status": status})
        self._closed.set()
        self._wake.set()
        if self.world_size > 1:
            self._exchanger.join(PATIENCE)
            if not self._exchanger.is_alive():  # else the store holds it, and would hold this one
                self._leave(self._living() if alone else range(self.world_size))

    def _open_store(self) -> dist.TCPStore:
        store, port = None, [0]
        if self.rank == 0:
            store = dist.TCPStore(
                self.host, 0, is_master=True, wait_for_workers=False, timeout=CONNECT
            )
            store.set(_END, _NOTHING)
            port = [store.port]
        dist.broadcast_object_list(port, src=0)
        return store or dist.TCPStore(self.host, port[0], timeout=CONNECT)

    def _keep_watching(self) -> None:
        """Count how long the main thread has made no progress, and end a run that hangs.

        Time is the sum of this thread's own ticks: what passes while the process is stopped (a
        suspended job) is no hang.
        """
        last, seen, idle = time.monotonic(), self._now, 0.0
        for number in itertools.count(1):
            if self._closed.wait(self._interval):
                return
            now = time.monotonic()
            tick, last = min(now - last, 2 * self._interval), now
            self._clock += tick
            idle = idle + tick if self._now is seen else 0.0
            seen = self._now
            self._post = self._look(idle, number)
            if idle >= self.timeout and seen[3]:
                self._end_if_all_wait()
            elif self.world_size > 1 and not seen[3]:
                self._end_if_silent()

    def _look(self, idle: float, number: int) -> dict:
        _, step, phase, _ = self._now
        where, waits = main_thread_place()
        return {
            **{"number": number, "step": step, "phase": phase, "idle": idle},
            **{"where": where, "waits": waits},
        }

    def _end_if_all_wait(self) -> None:
        if self.world_size == 1:
            _print(self._line(_told(self._names[0], self._post)))
            os._exit(HUNG)
        if self._clock - self._heard <= self._silent:
            posts = {r: post for r, (post, _) in self._posts.items()} | {self.rank: self._post}
            silent = self._silent_ranks(self._silent)
            living = sorted(posts.keys() - silent.keys())
            if any(posts[rank]["idle"] < self.timeout for rank in living):
                return
            line = self._line(hanging(posts, silent, self._names))
            self._propose({"rank": living[0], "line": line, "status": HUNG})
            if self._ends.is_set() and not self._lost:
                return  # this rank fails by itself
        self._end_without_rank_0("does not answer")

    def _end_if_silent(self) -> None:
        """End a run that has not begun its steps, and where a rank's process or host has gone."""
        if self._clock - self._heard > self.timeout:
            self._end_without_rank_0("does not answer")
        if silent := self._silent_ranks(self.timeout):
            posts = {rank: post for rank, (post, _) in self._posts.items()}
            line = self._line(hanging(posts, silent, self._names))
            self._propose({"rank": self.rank, "line": line, "status": HUNG})

    def _end_by_loss(self, reason: str) -> None:
        """End this process and the others with a line that names the rank that has gone.

        reason: how a connection of this rank broke. It returns only where the run ends by this
        rank's own failure meanwhile, or where the store does not take the end.
        """
        _, step, phase, _ = self._now
        line = f"{self._names[self.rank]} lost a connection {_doing(step, phase)}: {reason}"
        until = time.monotonic() + self._silent + PATIENCE
        while not self._ends.is_set() and time.monotonic() < until:
            if self._clock - self._heard > self._silent:
                self._end_without_rank_0(f"has gone: {reason}", "lost")
            if silent := self._silent_ranks(self._silent):
                gone = " and ".join(self._names[rank] for rank in sorted(silent))
                last = self._posts[min(silent)][0]
                seen = f"last seen {_doing(last['step'], last['phase'])} at {last['where']}"
                line = f"{gone} has gone: {reason} ({seen})"
                break
            time.sleep(0.05)
        if self._lost:
            self._end_without_rank_0(f"has gone: {reason}", "lost")
        self._propose({"rank": self.rank, "line": self._line(line, "lost"), "status": HUNG})

    def _silent_ranks(self, limit: float) -> dict[int, float]:
        """Return the other ranks that have not posted for `limit` seconds, and for how many."""
        since = {rank: self._clock - changed for rank, (_, changed) in self._posts.items()}
        return {rank: for_ for rank, for_ in since.items() if rank != self.rank and for_ > limit}

    def _end_without_rank_0(self, what: str, kind: str = "hang") -> None:
        """End this process: rank 0 has the store. The lowest rank that lived till then speaks."""
        last = self._posts[0][0] if 0 in self._posts else self._post
        living = [r for r, (_, at) in self._posts.items() if r and self._heard - at < self._silent]
        if self.rank == min(living, default=self.rank):
            seen = f"last seen {_doing(last['step'], last['phase'])} at {last['where']}"
            _print(self._line(f"{self._names[0]} {what} ({seen})", kind))
        os._exit(HUNG)

    def _line(self, what: str, kind: str = "hang") -> str:
        again = "no checkpoint yet"
        if self._saved is not None:
            again = f"it continues after step {self._saved}"
        return f"{kind}: {what}; all ranks end; start the run again ({again})"

    def _propose(self, end: dict) -> None:
        """Have the run end so unless it already ends otherwise; ends this process, or returns.

        It returns where the end is this rank's own failure, or where the store does not answer.
        """
        self._wish = end
        self._wake.set()
        self._ends.wait(self._silent + PATIENCE)
        if self._ends.is_set() and not self._lost and not self._failed_here:
            time.sleep(4 * PATIENCE)  # the exchanging thread ends the process meanwhile

    @property
    def _failed_here(self) -> bool:
        return not self._end["line"] and self._end["rank"] == self.rank

    def _keep_exchanging(self) -> None:
        """Post and read the others' posts until closed, or until rank 0 has gone.

        That rank 0 has gone the main thread learns from its collectives, or the watching thread
        from the silence.
        """
        while not self._closed.is_set():
            try:
                self._exchange()
            except RuntimeError:  # all of torch's store errors are
                self._lost = True
                self._ends.set()
                return
            if self._ends.is_set():
                return
            self._wake.wait(self._interval)
            self._wake.clear()

    def _exchange(self) -> None:
        self._store.set(f"post {self.rank}", json.dumps(self._post))
        if self._wish is not None:
            self._store.compare_set(_END, _NOTHING, json.dumps(self._wish))
        keys = [f"post {rank}" for rank in range(self.world_size)]
        *texts, end = self._store.multi_get([*keys, _END])
        self._heard = self._clock
        for rank, text in enumerate(texts):
            post = json.loads(text)
            before = self._posts.get(rank)
            if before is None or before[0]["number"] != post["number"]:
                self._posts[rank] = (post, self._clock)
        if end.decode() != _NOTHING:
            self._end = json.loads(end)
            self._ends.set()
            if not self._failed_here:
                self._end_process()

    def _end_process(self) -> None:
        """Say the line if it is this rank's to say, and end; rank 0 ends last."""
        end = self._end
        if end["line"]:
            if self.rank == end["rank"]:
                _print(end["line"])
                self._store.set(_SAID, "1")
            else:
                _wait_for(lambda: self._store.check([_SAID]))
        self._leave(self._living())
        prevent_restart(end["status"], os.environ)
        os._exit(end["status"])

    def _living(self) -> list[int]:
        """Return the ranks that post, of what this one knows."""
        now = self._clock
        return [r for r, (_, changed) in self._posts.items() if now - changed <= self._silent]

    def _leave(self, ranks: Sequence[int]) -> None:
        """Ask the store no more; rank 0 keeps it until all of `ranks` have left it, or a while."""
        try:
            self._store.set(f"gone {self.rank}", "1")
            if self.rank == 0:
                gone = [f"gone {rank}" for rank in ranks]
                _wait_for(lambda: self._store.check(gone))
        except RuntimeError:
            return  # rank 0 has gone


def broken(error: BaseException) -> str:
    """Return how a connection broke, as an error says or those that it came from; "" if none."""
    seen: BaseException | None = error
    while seen is not None:
        if found := _BROKEN.search(str(seen)):
            return found[0]
        seen = seen.__cause__ or seen.__context__
    return ""


def names_of(hosts: Sequence[str]) -> list[str]:
    """Return what to call each rank: by its host too where there are several."""
    several = len(set(hosts)) > 1
    return [
        f"rank {rank} on {host}" if several else f"rank {rank}" for rank, host in enumerate(hosts)
    ]


def hanging(posts: dict[int, dict], silent: dict[int, float], names: Sequence[str]) -> str:
    """Return who hangs, and where, of ranks that all make no progress.

    silent: seconds since ranks that post no more last did: frozen processes, or lost machines.
    Else it is a rank that the others' collectives wait for: one that is in none, or else the one
    with the lowest step.
    """
    if silent:
        rank = min(silent)
        more = f" (nor do {len(silent) - 1} more ranks)" if len(silent) > 1 else ""
        post = posts[rank]
        return (
            f"{names[rank]} has not answered for {silent[rank]:.0f} s{more}, last seen "
            f"{_doing(post['step'], post['phase'])} at {post['where']}"
        )
    outside = [rank for rank, post in posts.items() if not post["waits"]]
    rank = min(outside or posts, key=lambda r: (posts[r]["step"], -posts[r]["idle"], r))
    told = _told(names[rank], posts[rank])
    if not outside:
        return f"{told} (every rank waits in a collective: a network fault, or ranks that disagree)"
    if len(outside) == 1 and len(posts) > 1:
        return f"{told} (the others wait for it in a collective)"
    return told


def main_thread_place() -> tuple[str, bool]:
    """Return "file:line function" of the main thread, and whether a collective holds it."""
    frame = sys._current_frames().get(threading.main_thread().ident)
    places, waits, own = [], False, ""
    while frame is not None:
        path = frame.f_code.co_filename.replace(os.sep, "/")
        places.append(f"{path.rpartition('/')[2]}:{frame.f_lineno} {frame.f_code.co_name}")
        waits = waits or "/torch/distributed/" in path
        if not own and "/ds_moe_mtl/" in path:
            own = places[-1]
        frame = frame.f_back
    if not places:
        return "an unknown place", False
    called = f", called from {own}" if own and own != places[0] else ""
    return places[0] + called, waits


def _doing(step: int, phase: str) -> str:
    return f"in step {step}" if phase == "step" else f"in the {phase} of step {step}"


def _told(name: str, post: dict) -> str:
    doing = _doing(post["step"], post["phase"])
    return f"{name} has been {doing} for {post['idle']:.0f} s at {post['where']}"


def _wait_for(happened: Callable[[], bool]) -> None:
    """Wait until `happened()`, PATIENCE seconds at most."""
    until = time.monotonic() + PATIENCE
    while not happened() and time.monotonic() < until:
        time.sleep(0.05)


def _print(line: str) -> None:
    """Write to standard error without Python's lock on it, which a hung thread may hold."""
    os.write(2, (line + "\n").encode())
