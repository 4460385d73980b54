"""Where files lie, how they are named in messages, and files that are whole or not there."""

import contextlib
import errno
import json
import os
import re
import shutil
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from ds_moe_mtl.config.errors import UserError

_SHIPPED = Path(__file__).resolve().parents[1] / "shipped"
"""ds_configs/ and launchers/ in an installed package; in a checkout links to the repository's."""

REPOSITORY = (_SHIPPED / "ds_configs").resolve().parent
"""The folder that holds ds_configs/ and launchers/: a checkout's root, or the installed files."""

DISK_ERRORS = tuple(
    getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EIO", "ESTALE")
)
"""What a write into an open file meets, whose error names no file: no room, or no disk."""


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
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file (UTF-8) whole or not at all; what UTF-8 cannot say becomes "?"."""
    with whole_file(path) as part:
        part.write_bytes(text.encode("utf-8", "replace"))


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give the path of a file to write, which becomes `path` when it is whole.

    Where the block fails, `path` is as it was. The file that is written has the same suffix. What
    is no file (a pipe, a device) is written itself.
    """
    if path.exists() and not path.is_file():
        with disk_errors_named(path):
            yield path
        return
    target = path.resolve()  # a link stays one
    if not target.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "no such folder", str(path.parent))
    # As long as a name may be, whatever `path` is called.
    part = target.with_name(f".{zlib.crc32(target.name.encode()):08x}.part{target.suffix}")
    try:
        with disk_errors_named(path):
            yield part
            with part.open("rb") as file:
                os.fsync(file.fileno())
        part.replace(target)
    except BaseException as error:  # Ctrl-C, too
        with contextlib.suppress(OSError):  # a file system that takes no change takes none here
            part.unlink()
        if isinstance(error, OSError) and error.filename == str(part):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


@contextlib.contextmanager
def new_folder(output: Path, what: str = "--output: ") -> Iterator[Path]:
    """Give a new folder to fill; where the block fails, it is as it was: not there, or empty.

    what: how the line of a refusal begins. Raises UserError where there is something already.
    """
    if output.is_symlink():
        raise UserError(f"{what}{output} is a link; allowed: a new folder")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{what}{output} is not empty; allowed: a new folder")
    missing = [folder for folder in (output, *output.parents) if not folder.exists()]
    output.mkdir(parents=True, exist_ok=True)
    try:
        with disk_errors_named(output):
            yield output
    except BaseException:  # Ctrl-C, too
        shutil.rmtree(output, ignore_errors=True)
        if not missing:  # it was there, empty
            output.mkdir(exist_ok=True)
        with contextlib.suppress(OSError):  # another process has put something there
            for folder in missing[1:]:
                folder.rmdir()
        raise


@contextlib.contextmanager
def disk_errors_named(path: Path) -> Iterator[None]:
    """Make what is said of a disk that takes no more an OSError that names `path`.

    Python's own error of a write names no file, and safetensors and tokenizers, which are written
    in Rust, have errors of their own classes.
    """
    try:
        yield
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else _rust_error_number(error)
        if number not in DISK_ERRORS or getattr(error, "filename", None) is not None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def _rust_error_number(error: Exception) -> int | None:
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None
