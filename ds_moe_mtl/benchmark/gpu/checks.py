"""Part: tests on a card. What has passed stays counted where the part is cut."""

import importlib.util
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]
FOLDERS = ("tests/kernels", "tests/gpu")
NEW = (
    *("tests/gpu/test_graphs.py", "tests/gpu/test_short_attention.py"),
    *("tests/kernels/test_update.py", "tests/kernels/test_short_attention.py"),
    *("tests/kernels/test_residual_norm.py", "tests/kernels/test_projection.py"),
)
"""Tests of what has not run on a card yet: these come first."""
REHEARSED = ("tests/kernels/test_arguments.py",)
"""Without a card: what shows in a second that the part works."""
PROCESSES = 4
LINES = 40
"""Of a failure's text that are kept."""


def measure(request: dict, tell: Callable[[dict], None]) -> dict:
    """Run the tests and return how many passed, failed and were skipped, and the failures."""
    if importlib.util.find_spec("pytest") is None:
        raise ImportError("the tests need the package pytest")
    if not (REPOSITORY / "tests").is_dir():
        raise ImportError(f"no folder tests in {REPOSITORY}: the package was installed without it")
    import pytest

    files = chosen_files(request)
    if not files:
        return {"tables": [], "files": []}
    recorder = _Recorder(files, tell)
    arguments = ["-q", "-p", "no:cacheprovider", "--rootdir", str(REPOSITORY)]
    if request["gpu"] and importlib.util.find_spec("xdist") is not None:
        arguments += ["-n", str(PROCESSES), "--dist", "loadfile"]
    os.chdir(REPOSITORY)
    status = pytest.main([*arguments, *files], plugins=[recorder])
    found = recorder.found() | {"status": int(status)}
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        tell(found)
        raise RuntimeError(f"{recorder.counts['failed']} tests failed, pytest's status {status}")
    return found


def chosen_files(request: dict) -> list[str]:
    """Return the files of tests: the new ones that are there, or all the others."""
    new = [name for name in NEW if (REPOSITORY / name).is_file()]
    if not request["gpu"]:
        return [*new[:1], *REHEARSED] if request["which"] == "new" else []
    if request["which"] == "new":
        return new
    found = sorted(file for folder in FOLDERS for file in (REPOSITORY / folder).glob("test_*.py"))
    names = [str(file.relative_to(REPOSITORY)) for file in found]
    return [name for name in names if name not in NEW]


class _Recorder:
    """Counts tests as they end."""

    def __init__(self, files: list[str], tell: Callable[[dict], None]) -> None:
        self.files, self.tell = files, tell
        self.counts: Counter[str] = Counter()
        self.failures: dict[str, str] = {}
        self.skipped: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report) -> None:
        if report.when != "call" and report.passed:
            return
        self.counts[report.outcome] += 1
        if report.failed:
            text = str(report.longrepr).splitlines()[-LINES:]
            self.failures[report.nodeid] = "\n".join(text)
        elif report.skipped:
            reason = report.longrepr[-1] if isinstance(report.longrepr, tuple) else ""
            self.skipped[str(reason)] += 1
        self.tell(self.found())

    def found(self) -> dict:
        """Return what is reported."""
        counts = [self.counts[name] for name in ("passed", "failed", "skipped")]
        rows = [[", ".join(self.files), *counts]]
        columns = ["files", "passed", "failed", "skipped"]
        tables = [{"title": "tests", "columns": columns, "rows": rows}]
        if self.failures:
            named = [[name, text.splitlines()[-1]] for name, text in self.failures.items()]
            tables.append({"title": "failures", "columns": ["test", "last line"], "rows": named})
        return {
            "tables": tables,
            "counts": dict(self.counts),
            "failures": self.failures,
            "skipped": dict(self.skipped),
        }
