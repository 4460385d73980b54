"""What a rank fell over, in a file of its own: launchers mix the ranks' outputs, or cut them."""

import contextlib
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from ds_moe_mtl.config import RankError, UserError
from ds_moe_mtl.config.files import DISK_ERRORS

LOGS = "logs"
"""The folder in a run's own that holds the ranks' failures."""


def file_error_line(error: OSError, run: Path | None) -> str | None:
    """Return where a file or a disk failed and how, or None where the error is none of theirs.

    run: the run's folder, into which a run writes all that it writes; None where there is none.
    """
    where = error.filename
    if where is None and error.errno in DISK_ERRORS:
        where = run or "standard output, or a file that is written"
    return None if where is None else f"{where}: {error.strerror}"


@contextlib.contextmanager
def file_errors_told(run: Path) -> Iterator[None]:
    """Turn an error of a file or a disk, which one rank alone meets, into a RankError."""
    try:
        yield
    except OSError as error:
        line = file_error_line(error, run)
        if line is None:
            raise
        raise RankError(line) from error


@contextlib.contextmanager
def kept_by_rank(run: Path, rank: int) -> Iterator[None]:
    """Append an error that leaves the block to <run>/logs/rank<N>.log.

    A mistake of the user's that all ranks tell in one line is no failure of a rank.
    """
    try:
        yield
    except Exception as error:
        if not isinstance(error, UserError) or isinstance(error, RankError):
            with contextlib.suppress(OSError):  # no room, or no folder: the error itself goes on
                _write(run / LOGS / f"rank{rank}.log", rank, error)
        raise


def _write(path: Path, rank: int, error: Exception) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    when = time.strftime("%Y-%m-%d %H:%M:%S")
    with path.open("a") as file:
        file.write(f"{when} rank {rank} on {socket.gethostname()}: {' '.join(sys.argv)}\n")
        file.write("".join(traceback.format_exception(error)) + "\n")
