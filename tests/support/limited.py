"""train.py on a rank whose disk takes no file above a size, for tests of a full disk.

limited.py RANK BYTES CONFIG [section.key=value ...]
"""

import os
import resource
import sys

from ds_moe_mtl.cli.train import main
from ds_moe_mtl.training.plan import RunPlan


def plant(full_rank: int, most: int) -> None:
    """Limit the rank's files once it makes its loader: what starts ranks writes files too."""
    original = RunPlan.super_batches

    def super_batches(plan: RunPlan, rank: int = 0, world_size: int = 1, *rest):
        if rank == full_rank:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        return original(plan, rank, world_size, *rest)

    RunPlan.super_batches = super_batches


if __name__ == "__main__":
    plant(int(sys.argv[1]), int(sys.argv[2]))
    status = main(sys.argv[3:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # as train.py
