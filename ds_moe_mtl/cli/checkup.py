"""ds-moe-mtl doctor --distributed: the ranks of a launcher, their clocks and their network."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from datetime import timedelta

from ds_moe_mtl.config import RankError, UserError

FAULT = 1
"""Exit status where something is wrong with the ranks."""

PATIENCE = timedelta(minutes=3)
"""What ranks may wait for one another."""

_PACKAGES = ("torch", "deepspeed", "transformers", "ds_moe_mtl")


def distributed_doctor(as_json: bool) -> int:
    """Look at the ranks that a launcher started, print a table on rank 0, return the status.

    Raises UserError, one line, where the ranks cannot be told or do not meet.
    """
    from ds_moe_mtl.engine.engine import check_devices, start_process_group, stop_process_group
    from ds_moe_mtl.ranks.checkup import check_up
    from ds_moe_mtl.ranks.machine import installed_versions
    from ds_moe_mtl.ranks.preflight import source_hash
    from ds_moe_mtl.ranks.rendezvous import rendezvous

    ranks = rendezvous(os.environ)
    try:
        check_devices(ranks)
        device = start_process_group(ranks, PATIENCE)
    except UserError as error:
        return _fault(0 if isinstance(error, RankError) else ranks.rank, str(error))
    except RuntimeError as error:  # torch's: some rank has not come, or its name is unknown
        reason = str(error).strip().splitlines()[0]
        return _fault(
            0, f"rank {ranks.rank} of {ranks.world_size} has not met the others: {reason}"
        )
    versions = {**installed_versions(_PACKAGES), "sources": source_hash()}
    found = check_up(ranks, device, versions)
    stop_process_group()
    if ranks.rank == 0:
        _print(found, ranks, as_json)
    return FAULT if found.faults else 0


def _fault(rank: int, line: str) -> int:
    if rank == 0:
        print(f"fault: {line}", file=sys.stderr, flush=True)
    return FAULT


def _print(found, ranks, as_json: bool) -> None:
    if as_json:
        speeds = {"all_reduce": found.all_reduce, "all_to_all": found.all_to_all}
        told = {"launcher": ranks.launcher, "ranks": list(found.ranks), "faults": found.faults}
        print(json.dumps(told | {"bytes_per_s": speeds if ranks.world_size > 1 else None}))
        return
    print(f"{ranks.world_size} ranks by {ranks.launcher}, rank 0 at {ranks.master_addr}")
    for line in table(found.ranks):
        print(line)
    if ranks.world_size > 1:
        print(f"all-reduce  {found.all_reduce / 1e9:.2f} GB/s a rank")
        print(f"all-to-all  {found.all_to_all / 1e9:.2f} GB/s a rank")
    for fault in found.faults:
        print(f"fault: {fault}")
    print("nothing is wrong" if not found.faults else f"{len(found.faults)} fault(s)", flush=True)


def table(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Return rows of the same columns as lines with a head, each column as wide as it needs."""
    columns = list(rows[0])
    widths = [max(len(column), *(len(row[column]) for row in rows)) for column in columns]
    lines = [dict(zip(columns, columns, strict=True)), *rows]
    return [
        "  ".join(line[column].ljust(width) for column, width in zip(columns, widths, strict=True))
        for line in lines
    ]
