"""One part in a process of its own: `python -m ds_moe_mtl.benchmark.gpu.worker REQUEST ANSWER`."""

import json
import os
import sys
import traceback
from importlib import import_module
from pathlib import Path


def main(request: dict, answer: Path) -> int:
    """Do the part and return the process's status; what it finds is in `answer` as it finds it.

    A package that is missing, and what the configuration refuses, are no failures of the report:
    the part says which, and the others go on.
    """
    told: dict = {"found": {}}

    def write(**more) -> None:
        told.update(more)
        new = answer.with_suffix(".new")
        new.write_text(json.dumps(told))
        new.replace(answer)

    try:
        write(found=import_module(request["module"]).measure(request, lambda f: write(found=f)))
    except ImportError as error:
        traceback.print_exc()
        write(status="cannot run", reason=f"{type(error).__name__}: {error}")
    except Exception as error:
        traceback.print_exc()
        kind = type(error).__name__
        status = "refused" if kind == "UserError" else "failed"
        write(status=status, reason=f"{kind}: {error}".strip().splitlines()[0][:300])
    return 0


if __name__ == "__main__":
    status = main(json.loads(sys.argv[1]), Path(sys.argv[2]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # threads that gloo leaves behind abort the shutdown
