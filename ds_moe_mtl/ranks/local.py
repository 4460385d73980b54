"""Work done in ranks of its own: started on this machine, their answer read from rank 0.

Their output goes to files and is shown where a rank fails: DeepSpeed's and PyTorch's own lines do
not stand among the figures, and no error is lost.
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
from collections.abc import Mapping
from pathlib import Path

from ds_moe_mtl.config import RunConfig, UserError, dump_config
from ds_moe_mtl.ranks.rendezvous import free_port

WORKER = "ds_moe_mtl.benchmark.worker"
LINES_SHOWN = 12


def on_ranks(
    work: str, config: RunConfig, options: Mapping[str, object], count: int
) -> dict[str, object]:
    """Return what `work` (a name of benchmark/worker.py) answers on rank 0 of `count` ranks.

    Each rank gets its share of the cores unless OMP_NUM_THREADS is set. Raises UserError with the
    worker's own line for a user's mistake, and RuntimeError with its last lines for any other end.
    """
    with _ending_on_sigterm(), tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.yaml").write_text(dump_config(config))
        (folder / "request.json").write_text(json.dumps({"work": work, **options}))
        processes = [_start(folder, rank, count, free) for rank, free in _ports(count)]
        try:
            _wait(processes)
        finally:
            for process in processes:
                if process.poll() is None:
                    process.kill()
                process.wait()
        _check(processes, folder)
        return json.loads((folder / "answer.json").read_text())


@contextlib.contextmanager
def _ending_on_sigterm():
    """Leave the block by SystemExit on SIGTERM, so that what it has started is ended with it."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may say what a signal does
        return
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _ports(count: int):
    port = free_port()
    return [(rank, port) for rank in range(count)]


def _start(folder: Path, rank: int, count: int, port: int) -> subprocess.Popen:
    threads = max(1, len(os.sched_getaffinity(0)) // count)
    environ = {
        "OMP_NUM_THREADS": str(threads),
        **os.environ,
        "RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    with (folder / f"rank{rank}.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", WORKER, str(folder)],
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def _wait(processes: list[subprocess.Popen]) -> None:
    """Return when all have ended, or one has failed: the others may wait for it for ever."""
    while any(process.poll() is None for process in processes):
        if any(process.poll() for process in processes):
            return
        time.sleep(0.05)


def _check(processes: list[subprocess.Popen], folder: Path) -> None:
    for rank in range(len(processes)):
        mistake = folder / f"mistake{rank}"
        if mistake.exists():
            raise UserError(mistake.read_text())
    for rank, process in enumerate(processes):
        if process.returncode > 0 or not (folder / "answer.json").exists():
            lines = (folder / f"rank{rank}.log").read_text(errors="replace").splitlines()
            raise RuntimeError(
                f"rank {rank} ended with status {process.returncode}:\n"
                + "\n".join(lines[-LINES_SHOWN:])
            )
