"""Where files lie, how they are named in messages, and JSON files that are whole or not there."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from ds_moe_mtl.config.errors import UserError

_SHIPPED = Path(__file__).resolve().parents[1] / "shipped"
"""ds_configs/ and launchers/ in an installed package; in a checkout links to the repository's."""

REPOSITORY = (_SHIPPED / "ds_configs").resolve().parent
"""The folder that holds ds_configs/ and launchers/: a checkout's root, or the installed files."""


def displayed(file: Path) -> str:
    """Return a file's name as short as it can be followed: relative to here, or as it is."""
    resolved, here = file.resolve(), Path.cwd()
    return str(resolved.relative_to(here)) if resolved.is_relative_to(here) else str(file)


def read_text(file: Path) -> str:
    """Return a file's text. Raises UserError where it cannot be read as UTF-8."""
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{displayed(file)}: not a text file (UTF-8)") from None
    except OSError as error:
        raise UserError(f"{displayed(file)}: {error.strerror}") from None


def locate(name: str, folders: Sequence[Path]) -> Path | None:
    """Return the absolute path of the first folder's file or folder of that name."""
    try:
        found = (folder / Path(name).expanduser() for folder in folders)
        return next((path.resolve() for path in found if path.exists()), None)
    except (OSError, RuntimeError):  # a name too long for a file, a home that nobody has
        return None


def shown_bytes(folder: Path) -> str:
    """Return what a folder's files take on the disk, in MB or GB."""
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def read_json(path: Path) -> dict | None:
    """Return a JSON file's object, or None where there is no such file."""
    return json.loads(path.read_text()) if path.exists() else None


def write_json(path: Path, value: dict) -> None:
    """Write a JSON file whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w") as file:
        file.write(json.dumps(value, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
