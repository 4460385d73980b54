"""Checks, before the first step, that every rank is about to do the same thing.

A node with an older checkout, another torch or a half-copied data set does not fail: it hangs in
a collective, or trains a model that nobody can explain. Each rank describes itself in a few short
strings; they are exchanged once and compared.

    local = fingerprints(configuration=config_hash, data={"rte": ..., "cola": ...})
    check_agreement(local, gather)
    check_shared(folder, rank, gather)
    tell_clocks(gather, say)
"""

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import socket
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ds_moe_mtl.config import UserError
from ds_moe_mtl.ranks.clocks import clock_faults, clock_skews

PACKAGES = ("ds_moe_mtl", "moe_kernels", "encoder_kernels", "update_kernels")
LIBRARIES = ("torch", "deepspeed", "transformers")
SOURCES = (".py", ".cpp", ".cu", ".cuh", ".h")
SHARED_PATIENCE = 10.0
"""Seconds in which a file that one host has written must be there on another (our choice).

NFS remembers for up to 3 s, by default, that a file was not there."""
NAMED = 3  # differing ranks that one message names; the rest are counted

# A rank's host and fingerprints -> those of all ranks, in rank order.
Description = tuple[str, Mapping[str, str]]
Gather = Callable[[Description], Sequence[Description]]


def fingerprints(configuration: str, data: Mapping[str, str]) -> dict[str, str]:
    """Return what this rank is about to run: name -> a short string that must agree.

    `configuration` is a hash of the resolved configuration; `data` a fingerprint for each data
    set, by name. Added here: the package's version, a hash of its sources, and the versions of
    Python, torch, deepspeed and transformers.
    """
    return {
        "ds_moe_mtl": _version("ds_moe_mtl"),
        "source code": source_hash(),
        "python": platform.python_version(),
        **{library: _version(library) for library in LIBRARIES},
        "configuration": configuration,
        **{f"data of {name}": value for name, value in data.items()},
    }


def source_hash(packages: Sequence[str] = PACKAGES) -> str:
    """Return 16 hex digits over the names and contents of all source files of `packages`."""
    digest = hashlib.sha256()
    for package in packages:
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise UserError(f"the package {package} cannot be found: is PYTHONPATH complete?")
        folder = Path(next(iter(spec.submodule_search_locations)))
        for path in sorted(p for p in folder.rglob("*") if p.suffix in SOURCES):
            digest.update(f"{package}/{path.relative_to(folder).as_posix()}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def check_agreement(local: dict[str, str], gather: Gather) -> None:
    """Return if all ranks' fingerprints are the same.

    `gather` is torch.distributed's all_gather_object as a function of the object: it returns the
    objects of all ranks in rank order. Called once, by every rank.
    Raises the same UserError on every rank: the first field that differs, the hosts and ranks
    that are not as most are, and both values.
    """
    ranks = gather((socket.gethostname(), local))
    for field in dict.fromkeys(name for _, fields in ranks for name in fields):
        values = [fields.get(field, "missing") for _, fields in ranks]
        most, count = Counter(values).most_common(1)[0]  # the lowest rank's where two are equal
        if count == len(ranks):
            continue
        odd = [
            f"rank {rank} on {ranks[rank][0]} has {value}"
            for rank, value in enumerate(values)
            if value != most
        ]
        usual = values.index(most)
        more = f" and {len(odd) - NAMED} more ranks differ" if len(odd) > NAMED else ""
        raise UserError(
            f"{field} differs between the ranks: {', '.join(odd[:NAMED])}{more};"
            f" {_others(count, usual, ranks[usual][0])} {most}"
        )


def check_shared(folder: Path, rank: int, gather: Callable[[object], Sequence]) -> None:
    """Return if all ranks' `folder` is one and the same, as one of several hosts may not be.

    Rank 0 puts a file there, which the others have to find; a shared file system may take a
    moment. `gather` as for check_agreement; called by every rank.
    Raises the same UserError on every rank: the first host that sees another folder, and how many.
    """
    seen = folder / f".seen-{uuid.uuid4().hex}" if rank == 0 else None
    if seen:
        seen.touch()
    host = socket.gethostname()
    name = gather((host, str(seen)))[0][1]
    try:
        found = gather((host, _appears(folder / Path(name).name)))
    finally:
        if seen:
            seen.unlink(missing_ok=True)
    blind = [rank for rank, (_, sees) in enumerate(found) if not sees]
    if blind:
        more = f" (nor do {len(blind) - 1} more ranks)" if len(blind) > 1 else ""
        raise UserError(
            f"run.dir: rank {blind[0]} on {found[blind[0]][0]} does not see in {folder} what rank 0"
            f" on {found[0][0]} writes there{more}; allowed: a folder that all hosts share"
        )


def tell_clocks(gather: Callable[[object], Sequence], say: Callable[[str], None]) -> None:
    """Say which host's clock is too far from that of rank 0's host; every rank calls it.

    It is no reason to refuse a run, none of whose numbers depends on a clock: what misleads are
    the times in the hosts' logs and of files, and what breaks are launchers (docs/launching.md).
    """
    hosts = gather(socket.gethostname())
    others = sorted({hosts.index(host) for host in hosts} - {0})  # one rank of each host
    for line in clock_faults(clock_skews(others), hosts) if others else ():
        say(f"note: {line}")


def _appears(path: Path) -> bool:
    until = time.monotonic() + SHARED_PATIENCE
    while not path.exists():
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
        with contextlib.suppress(OSError):
            os.listdir(path.parent)  # has NFS look again
    return True


def _others(count: int, rank: int, host: str) -> str:
    one = f"rank {rank} on {host}"
    return f"{one} has" if count == 1 else f"{count} ranks ({one} first) have"


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
