"""Arrays in one file: written whole or not at all, checked and memory-mapped when read.

The file is in safetensors' format, with a checksum in its metadata.
"""

import contextlib
import fcntl
import json
import os
import uuid
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ds_moe_mtl.config import UserError

_DTYPES = {"F32": np.float32, "U8": np.uint8, "I8": np.int8, "I32": np.int32, "I64": np.int64}


def default_cache() -> Path:
    """The folder of tokenised sets where none is configured, below the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "ds_moe_mtl"


def save_arrays(path: Path, arrays: dict[str, np.ndarray], notes: dict[str, str]) -> None:
    """Write the arrays and notes; a reader sees the whole file or none.

    Raises UserError where the folder cannot be written or the disk is full.
    """
    from safetensors.numpy import save

    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    content = save(arrays, metadata={**notes, "checksum": _checksum(arrays)})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise UserError(f"data.cache: cannot write {path} ({error.strerror})") from None


def load_arrays(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]] | None:
    """The arrays, mapped into memory, and the notes; None for a missing or damaged file."""
    try:
        raw = np.memmap(path, dtype=np.uint8, mode="r")
        header_end = 8 + int(raw[:8].view("<u8")[0])
        header = json.loads(raw[8:header_end].tobytes())
        notes = header.pop("__metadata__")
        arrays = {}
        for name, entry in header.items():
            start, end = entry["data_offsets"]
            values = raw[header_end + start : header_end + end].view(_DTYPES[entry["dtype"]])
            arrays[name] = values.reshape(entry["shape"])
    except (OSError, ValueError, KeyError, IndexError, OverflowError):
        return None
    return (arrays, notes) if notes.get("checksum") == _checksum(arrays) else None


@contextlib.contextmanager
def one_writer(path: Path) -> Iterator[None]:
    """Hold back the other processes of this machine while the file is made.

    Only saves them the work: every writer writes the same bytes under a name of its own first.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = open(path.with_name(f".{path.name}.lock"), "w")  # noqa: SIM115
    except OSError as error:
        raise UserError(f"data.cache: cannot write to {path.parent} ({error.strerror})") from None
    with lock:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _checksum(arrays: dict[str, np.ndarray]) -> str:
    total = 0
    for name in sorted(arrays):
        total = zlib.crc32(name.encode(), total)
        total = zlib.crc32(np.ascontiguousarray(arrays[name]).view(np.uint8).reshape(-1), total)
    return f"{total:08x}"
