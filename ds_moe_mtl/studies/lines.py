"""Evidence: a file of JSON lines, one per finished run, that outlives the machine it was made on.

{"run": ..}    a finished run: what it was, its scores, what it answered on every dev row
{"dev": ..}    the dev rows of a task, once: what is right, and which rows they are

Only whole lines count. What a killed process left of one is no line, and the next line starts anew.
"""

import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ds_moe_mtl.config import UserError
from ds_moe_mtl.config.files import disk_errors_named
from ds_moe_mtl.evaluation.units import DevUnits, packed, unpacked


@dataclass
class Evidence:
    """What a file of lines holds: runs in the order they ended, and dev rows by checksum."""

    runs: list[dict] = field(default_factory=list)
    dev: dict[str, dict] = field(default_factory=dict)

    def units(self, run: Mapping) -> dict[str, DevUnits]:
        """Return the dev rows of a run's tasks with its answers.

        Raises UserError where the file does not have them.
        """
        found = {}
        for name, task in run["tasks"].items():
            rows = self.dev.get(task["dev"])
            if rows is None:
                raise UserError(f"{run['run']}: no line with the dev rows of {name}")
            found[name] = DevUnits(
                rows["metric"],
                unpacked(rows["truth"]),
                unpacked(task["answer"]),
                unpacked(rows["parts"]),
                unpacked(rows["ids"]),
                task["dev"],
            )
        return found


def read_evidence(path: Path) -> Evidence:
    """Return a file's lines; nothing for a file that is not there.

    Raises UserError for a file of something else.
    """
    found = Evidence()
    if not path.exists():
        return found
    for number, line in enumerate(path.read_text().split("\n"), 1):
        try:
            values = json.loads(line) if line else {}
        except ValueError:
            continue  # what a killed process left
        if not isinstance(values, dict):
            raise UserError(f"{path}:{number}: no line of a study")
        if "run" in values:
            found.runs.append(values)
        elif "dev" in values:
            found.dev[values["dev"]] = values
    return found


def append_run(path: Path, run: Mapping, units: Mapping[str, DevUnits]) -> None:
    """Append a run, and the dev rows that the file does not have yet, whole or not at all.

    Several processes may append at a time. run["tasks"] gets what each task needs to be scored
    again.
    """
    tasks = {
        name: {**task, "dev": units[name].sha256, "answer": packed(units[name].answer_U)}
        for name, task in run["tasks"].items()
    }
    with _locked(path):
        known = read_evidence(path).dev
        lines = [
            {
                "dev": rows.sha256,
                "task": name,
                "metric": rows.metric,
                "truth": packed(rows.truth_U),
                "parts": packed(rows.parts_U),
                "ids": packed(rows.ids_U),
            }
            for name, rows in units.items()
            if rows.sha256 not in known
        ]
        _append(path, [*lines, {**run, "tasks": tasks}])


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the file for one writer; the lock ends with the process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _append(path: Path, lines: Sequence[Mapping]) -> None:
    with path.open("rb+", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        torn = False
        if size:
            file.seek(-1, os.SEEK_END)
            torn = file.read(1) != b"\n"
        text = "".join(json.dumps(line) + "\n" for line in lines)
        content = (b"\n" if torn else b"") + text.encode()
        try:
            with disk_errors_named(path):
                if file.write(content) < len(content):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(file.fileno())
        except OSError:
            file.truncate(size)
            raise
