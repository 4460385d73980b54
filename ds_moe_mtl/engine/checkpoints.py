"""Folders of checkpoints that are whole or not there: written aside, checksummed, renamed.

step_00000100/    a checkpoint with manifest.json, which has its files' checksums
.saving/          one that is being written; never read
.removing/        one that is being removed
"""

import hashlib
import json
import os
import shutil
from pathlib import Path

from ds_moe_mtl.config.files import read_json, write_json

MANIFEST = "manifest.json"
SAVING, REMOVING = ".saving", ".removing"


def finish(written: Path, final: Path, manifest: dict) -> None:
    """Give a checkpoint its manifest, and then its name in one move: it is whole or not there."""
    paths = sorted(path for path in written.rglob("*") if path.is_file())
    files = {str(path.relative_to(written)): _checksum(path, sync=True) for path in paths}
    write_json(written / MANIFEST, manifest | {"files": files})
    before = _put_aside(final) if final.exists() else None
    written.rename(final)
    _sync_folder(final.parent)
    if before is not None:
        shutil.rmtree(before)


def remove(checkpoint: Path) -> None:
    """Remove a finished checkpoint; a kill meanwhile leaves none that is half there."""
    shutil.rmtree(_put_aside(checkpoint))


def settle_removal(folder: Path) -> None:
    """End the removal that a kill has cut off: a checkpoint that is whole comes back, others go.

    Called by the process that holds the run's folder.
    """
    aside = folder / REMOVING
    if not aside.exists():
        return
    manifest = read_manifest(aside)
    if manifest is not None and not damage(aside):
        final = folder / f"step_{manifest['step']:08d}"
        if not final.exists():
            aside.rename(final)
            return
    shutil.rmtree(aside)


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the finished checkpoints of a folder, newest first."""
    found = [path.parent for path in folder.glob(f"step_*/{MANIFEST}")]
    return sorted(found, reverse=True)


def read_manifest(path: Path) -> dict | None:
    """Return a checkpoint's manifest, or None where it is missing or cut off."""
    try:
        return read_json(path / MANIFEST)
    except json.JSONDecodeError:
        return None


def damage(path: Path) -> str:
    """Return what is wrong with a checkpoint's files, "" if they match their checksums."""
    manifest = read_manifest(path)
    if manifest is None:
        return f"{MANIFEST} is missing or cut off"
    for name, stored in manifest["files"].items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != stored["bytes"]:
            return f"{name} has {file.stat().st_size:,} of {stored['bytes']:,} bytes"
        if _checksum(file)["sha256"] != stored["sha256"]:
            return f"{name} does not match its checksum"
    return ""


def _put_aside(checkpoint: Path) -> Path:
    aside = checkpoint.with_name(REMOVING)
    shutil.rmtree(aside, ignore_errors=True)
    return checkpoint.rename(aside)


def _checksum(path: Path, sync: bool = False) -> dict:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
        if sync:
            os.fsync(file.fileno())
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
