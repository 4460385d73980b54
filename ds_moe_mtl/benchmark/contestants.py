"""Who takes part in a contest, by name."""

from importlib.util import find_spec

from ds_moe_mtl.benchmark.workload import Workload
from ds_moe_mtl.config import UserError

OURS = ("mt_dense", "mt_switch", "mt_tag")
STOCK = {"stock_capacity": True, "stock_no_drop": False}
"""DeepSpeed's own layer in our network, on the same unpadded tokens: whether it drops tokens."""

TRAINER = "trainer"
CONTESTANTS = (*OURS, *STOCK, TRAINER)

SHARED = "mt_tag_ep"
"""MT-TaG with its experts over all ranks; added where there are several and they divide them."""


def chosen(only: str | None) -> list[str]:
    """Return the contestants that a comma-separated list names; None: all.

    Raises UserError for a name that is none, and where the Trainer's package is missing.
    """
    names = list(CONTESTANTS) if only is None else only.split(",")
    for name in names:
        if name not in CONTESTANTS:
            raise UserError(f"--only names {name!r}; allowed: {', '.join(CONTESTANTS)}")
    if TRAINER in names and find_spec("accelerate") is None:
        raise UserError(
            "the contestant trainer needs the package accelerate: pip install 'ds-moe-mtl[bench]', "
            f"or leave it out: --only {','.join(name for name in names if name != TRAINER)}"
        )
    return list(dict.fromkeys(names))


def of_kind(workload: Workload, name: str, world_size: int) -> Workload:
    """Return the workload of a contestant by its name."""
    if name.startswith(SHARED):
        return workload.of_kind("mt_tag", world_size)
    return workload.of_kind("mt_switch" if name in STOCK else name)
