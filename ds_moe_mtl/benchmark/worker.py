"""One rank of a benchmark: `python -m ds_moe_mtl.benchmark.worker FOLDER`, started by ranks.py."""

import json
import os
import sys
from importlib import import_module
from pathlib import Path

from ds_moe_mtl.config import UserError, load_config
from ds_moe_mtl.engine.engine import start_process_group, stop_process_group
from ds_moe_mtl.ranks.rendezvous import rendezvous

WORK = {"calibrate": "calibration", "contest": "throughput"}
"""Functions by name, with their module in ds_moe_mtl.benchmark."""


def main(folder: Path) -> int:
    """Do the work of request.json; rank 0 writes answer.json. Returns the exit status."""
    request = json.loads((folder / "request.json").read_text())
    ranks = rendezvous(os.environ)
    try:
        config = load_config(folder / "config.yaml")
        device = start_process_group(ranks)
        name = request.pop("work")
        work = getattr(import_module(f"ds_moe_mtl.benchmark.{WORK[name]}"), name)
        found = work(config, ranks, device, **request)
        stop_process_group()
    except UserError as error:
        (folder / f"mistake{ranks.rank}").write_text(str(error))
        return 2
    if ranks.rank == 0:
        (folder / "answer.json").write_text(json.dumps(found))
    return 0


if __name__ == "__main__":
    status = main(Path(sys.argv[1]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # gloo's threads abort the interpreter's shutdown now and then
