"""A run of train.py's shape in two seconds, for tests of launchers: steps, stop, resume, result.

    stoppable.py DIR STEPS SECONDS_A_STEP [EXIT_STATUS]

Each step adds 1 on every rank of a gloo group. SIGTERM or SIGINT: all ranks agree to stop, rank 0
writes DIR/checkpoint.json, status 75. At the end rank 0 writes DIR/results.json. DIR/log.jsonl
gets a line from each rank at its start. EXIT_STATUS other than 0: every rank ends with it at once.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from ds_moe_mtl.ranks.rendezvous import apply, rendezvous


def main(folder: Path, steps: int, seconds: float, status: int = 0) -> int:
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda signum, frame: asked.append(signum))
    ranks = rendezvous(os.environ)
    apply(ranks, os.environ)
    checkpoint, results = folder / "checkpoint.json", folder / "results.json"
    if status or results.exists():
        return status
    import torch
    from torch import distributed as dist

    dist.init_process_group("gloo")
    state = json.loads(checkpoint.read_text()) if checkpoint.exists() else {"step": 0, "sum": 0}
    log(folder, launcher=ranks.launcher, rank=ranks.rank, world=ranks.world_size, start=state)
    stop = False
    while state["step"] < steps and not stop:
        time.sleep(seconds)
        sums = torch.tensor([1, len(asked)])
        dist.all_reduce(sums)
        state = {"step": state["step"] + 1, "sum": state["sum"] + int(sums[0])}
        stop = bool(sums[1])
    if ranks.rank == 0:
        target = checkpoint if stop else results
        target.with_suffix(".new").write_text(json.dumps(state))
        target.with_suffix(".new").rename(target)
    dist.barrier()
    dist.destroy_process_group()
    return 75 if stop else 0


def log(folder: Path, **line: object) -> None:
    """Append one line; the environment's own view of where this rank runs comes with it."""
    names = ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    slurm = ("SLURMD_NODENAME", "SLURM_RESTART_COUNT")
    line |= {name: os.environ.get(name) for name in names + slurm}
    with open(folder / "log.jsonl", "a") as file:
        file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if not word.startswith("--local_rank")]
    sys.exit(main(Path(words[0]), int(words[1]), float(words[2]), *map(int, words[3:])))
