"""A process under a time limit, ended with all that it started.

Standard library alone, as the rest of what runs the parts: it works where a part's packages lack.
"""

import os
import signal
import subprocess
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

MARK = "DS_MOE_MTL_GPU_PART"
"""In the environment of a part and of all that it starts, in whatever session that runs."""


def run_limited(
    command: Sequence[str], seconds: float, environ: Mapping[str, str], log: Path
) -> int | None:
    """Return the command's status, or None where `seconds` had passed and it was killed.

    What it started is killed too, at its limit, at its own end, and when this process is asked to
    stop. log: the file of what it prints.
    """
    mark = uuid.uuid4().hex
    with log.open("wb") as file:
        process = subprocess.Popen(
            list(command),
            env={**environ, MARK: mark},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        return process.wait(timeout=max(0.0, seconds))
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            process.kill()
        _kill_marked(mark)
        process.wait()


def _kill_marked(mark: str) -> None:
    """Kill every process that carries the mark, until none is left."""
    while found := _marked(mark):
        for number in found:
            try:
                os.kill(number, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.01)


def _marked(mark: str) -> list[int]:
    """Return the living processes with the mark in their environment (Linux)."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for file in Path("/proc").glob("[0-9]*/environ"):
        try:
            if wanted in file.read_bytes().split(b"\0"):
                found.append(int(file.parent.name))
        except OSError:  # it has ended, or is another user's
            continue
    return found
