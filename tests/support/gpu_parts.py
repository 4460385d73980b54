"""Parts of a GPU report for tests: small ones, and the real ones' rehearsal in one process."""

import json
import os
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path

from ds_moe_mtl.benchmark.gpu.parts import HOME, Part


def part(do: str, seconds: float = 60.0) -> Part:
    """Return a part that does what `measure` knows by that name."""
    return Part(do, f"what {do} does", seconds, __name__, {"do": do})


def measure(request: dict, tell) -> dict:
    """Do what the request says: end well, hang with a child, lack a package, be refused."""
    tell({"tables": [{"title": "early", "columns": ["a|b"], "rows": [[1.5]]}]})
    if request["do"] == "hang":
        child = subprocess.Popen(
            [sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True
        )
        tell({"child": child.pid})
        time.sleep(600)
    if request["do"] == "lack":
        import a_package_that_is_not_there  # noqa: F401
    if request["do"] == "refuse":
        from ds_moe_mtl.config import UserError

        raise UserError("train.steps = -1; allowed: 1 or more")
    if request["do"] == "fail":
        raise RuntimeError("two\nlines")
    return {"value": 7}


def rehearse(names: list[str], answer: Path) -> None:
    """Run parts without a card, one after another in this process, and write what they found."""
    with tempfile.TemporaryDirectory() as scratch:
        request = {"gpu": False, "overrides": [], "before": None, "scratch": scratch}
        found = {
            name: import_module(f"{HOME}.{name}").measure(request, lambda _: None) for name in names
        }
        answer.write_text(json.dumps(found))


if __name__ == "__main__":
    rehearse(sys.argv[2:], Path(sys.argv[1]))
    sys.stdout.flush()
    os._exit(0)  # threads that gloo leaves behind abort the shutdown
