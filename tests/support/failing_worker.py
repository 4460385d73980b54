"""One rank of ranks.local.on_ranks for its tests: rank 1 fails, the others wait for it.

request: {"how": "mistake" | "error" | "signal" | "nothing", "started": a file}
"""

import os
import signal
from pathlib import Path

import torch
from torch import distributed as dist

from ds_moe_mtl.config import UserError
from ds_moe_mtl.ranks.local import serve


def work(request: dict, ranks) -> dict:
    """Meet, then do what is asked in rank 1 while the others are in a collective."""
    dist.init_process_group("gloo")
    Path(f"{request['started']}{ranks.rank}").write_text(str(os.getpid()))
    if ranks.rank == 1:
        if request["how"] == "mistake":
            raise UserError("rank 1 has no data; allowed: data")
        if request["how"] == "error":
            raise KeyError("nonsense")
        if request["how"] == "signal":
            os.kill(os.getpid(), signal.SIGKILL)
    total = torch.ones(1)
    dist.all_reduce(total)
    return {"sum": float(total)}


if __name__ == "__main__":
    serve(work)
