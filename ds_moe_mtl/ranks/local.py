"""Ranks on this machine: started together, ended together, their answer read from rank 0.

    found = on_ranks("package.module", {"steps": 3}, count=2)    # in the command
    serve(work)                                                  # at the end of that module

They speak through the files of a folder: request.json, answer.json, what each rank prints and how
it failed. What they print is shown where a rank fails and not otherwise: DeepSpeed's and PyTorch's
own lines do not stand among the command's, and no error is lost.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from ds_moe_mtl.config import UserError
from ds_moe_mtl.ranks.rendezvous import LOOPBACK, Ranks, free_port, rendezvous

LINES_SHOWN = 12
PATIENCE = 5.0
"""Seconds that a rank has to end by itself after SIGTERM."""

_BAD_INPUT = 2


def on_ranks(worker: str, request: Mapping[str, object], count: int) -> object:
    """Return what `worker` answers on rank 0 of `count` ranks.

    worker: a module that calls `serve` when it is run. request: plain JSON values. Each rank gets
    its share of the cores unless OMP_NUM_THREADS is set. A rank that fails ends the others, and a
    SIGTERM of this process ends all. Raises UserError with a rank's own line for a user's mistake,
    or with its signal where one has killed it, and RuntimeError with the last lines of what the
    rank printed for any other failure: of several ranks, those of the first that failed.
    """
    with _ending_on_sigterm(), tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "request.json").write_text(json.dumps(request))
        processes: list[subprocess.Popen] = []
        try:
            port = free_port()
            for rank in range(count):
                processes.append(_start(worker, folder, rank, count, port))
            statuses = _wait(processes)
        finally:
            _end(processes)
        _check(statuses, folder)
        return json.loads((folder / "answer.json").read_text())


def serve(work: Callable[[dict, Ranks], object]) -> NoReturn:
    """Be one rank of `on_ranks`: do work(request, ranks) and end the process.

    Rank 0's answer, plain JSON values, is on_ranks' answer.
    """
    folder, rank, status = Path(sys.argv[1]), os.environ["RANK"], 0
    try:
        ranks = rendezvous(os.environ)
        answer = work(json.loads((folder / "request.json").read_text()), ranks)
        if ranks.rank == 0:
            (folder / "answer.json").write_text(json.dumps(answer))
    except Exception as error:
        # Before this process's connections close: the others fail by that, and later.
        mistake = str(error) if isinstance(error, UserError) else None
        failure = {"at": time.monotonic(), "mistake": mistake}
        (folder / f"failure{rank}.json").write_text(json.dumps(failure))
        traceback.print_exc()
        status = 1 if mistake is None else _BAD_INPUT
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # gloo's threads abort the interpreter's shutdown now and then


@contextlib.contextmanager
def _ending_on_sigterm() -> Iterator[None]:
    """Leave the block by SystemExit on SIGTERM, so that what it has started is ended with it."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may say what a signal does
        return
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _start(worker: str, folder: Path, rank: int, count: int, port: int) -> subprocess.Popen:
    threads = max(1, len(os.sched_getaffinity(0)) // count)
    environ = {
        "OMP_NUM_THREADS": str(threads),
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": LOOPBACK,
        "MASTER_PORT": str(port),
    }
    with (folder / f"rank{rank}.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", worker, str(folder)],
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def _wait(processes: Sequence[subprocess.Popen]) -> list[int | None]:
    """Return the ranks' statuses when all have ended, or one has failed (None: it still runs)."""
    while True:
        statuses = [process.poll() for process in processes]
        if None not in statuses or any(statuses):
            return statuses
        time.sleep(0.05)


def _end(processes: Sequence[subprocess.Popen]) -> None:
    """End what still runs: it may wait for ever for a rank that has failed."""
    for process in processes:
        process.terminate()  # nothing where it has ended
    until = time.monotonic() + PATIENCE
    for process in processes:
        try:
            process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _check(statuses: Sequence[int | None], folder: Path) -> None:
    """Raise the error of the rank that failed first; return where all have ended well."""
    failed = [rank for rank, status in enumerate(statuses) if status]
    if not failed:
        if not (folder / "answer.json").exists():
            raise RuntimeError(f"no rank has answered:\n{_last_lines(folder, 0)}")
        return
    told = {}
    for rank in failed:
        file = folder / f"failure{rank}.json"
        if file.exists():
            told[rank] = json.loads(file.read_text())
    mistakes = [rank for rank in told if told[rank]["mistake"] is not None]
    if mistakes:
        raise UserError(told[min(mistakes, key=lambda rank: told[rank]["at"])]["mistake"])
    # A rank that could not tell (a signal, an import that failed) is what the others fell over.
    silent = [rank for rank in failed if rank not in told]
    first = silent[0] if silent else min(told, key=lambda rank: told[rank]["at"])
    status = statuses[first]
    if status < 0:
        name = signal.Signals(-status).name
        why = "; is there memory enough?" if -status == signal.SIGKILL else ""
        lines = _last_lines(folder, first).splitlines()
        last = f": {lines[-1]}" if lines else ""
        raise UserError(f"rank {first} was ended by {name}{why}{last}")
    raise RuntimeError(f"rank {first} ended with status {status}:\n{_last_lines(folder, first)}")


def _last_lines(folder: Path, rank: int) -> str:
    lines = (folder / f"rank{rank}.log").read_text(errors="replace").splitlines()
    return "\n".join(lines[-LINES_SHOWN:])
