"""Where the rows of a split come from: the Hub, a local folder, the embedded suite, own files."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from ds_moe_mtl.config import UserError
from ds_moe_mtl.data.gym import gym_files, gym_rows
from ds_moe_mtl.data.hub import hub_split
from ds_moe_mtl.data.own import own_columns, own_hub_split
from ds_moe_mtl.data.tables import ROW, Columns, read_table
from ds_moe_mtl.tasks import TaskSpec, lexicon, synthetic, task_groups
from ds_moe_mtl.tasks.text2text import FOLDER

EMBEDDED_ROOT = "embedded"
SUBSTITUTE = "(not the published"
"""What a split's origin says where other rows stand in for it."""


@dataclass(frozen=True)
class Source:
    """One split, found but not yet read.

    origin: what to call it in messages. content: a hash that changes with the rows.
    read: gives the split's columns, each a list of one value a row, with tables.ROW where known.
    """

    origin: str
    content: str
    read: Callable[[], Columns]


def read_split(spec: TaskSpec, split: str, root: str | None) -> Columns:
    """The split's columns (those of `spec.columns`), one value a row.

    root: a folder laid out as <set>[/<configuration>]/<split>.parquet, None for the Hub, or
    "embedded". Raises UserError for a set, file or column that is not there and an empty split.
    """
    columns = find_split(spec, split, root).read()
    columns.pop(ROW, None)
    return columns


def find_split(spec: TaskSpec, split: str, root: str | None) -> Source:
    """Where the split is, with a hash of its content; see `read_split`."""
    if spec.is_own:
        return _own(spec, split)
    if spec.generated:
        return _generated(spec, split)
    if root == EMBEDDED_ROOT:
        raise UserError(
            f"data.root: task {spec.name!r} is not in the embedded suite "
            f"({', '.join(task_groups()['embedded'])}); give a folder, or nothing for the Hub"
        )
    if spec.folder == FOLDER:
        return _gym(spec, split, root)
    return _hub(spec, split) if root is None else _local(spec, split, Path(root).expanduser())


def content_hash(paths: Iterable[str | Path]) -> str:
    """A hash of the bytes of these files. Raises UserError for one that cannot be read."""
    total = hashlib.sha256()
    for path in paths:
        try:
            with open(path, "rb") as file:
                while chunk := file.read(1 << 20):
                    total.update(chunk)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    return total.hexdigest()


def _own(spec: TaskSpec, split: str) -> Source:
    is_dev = split != spec.train_split
    origin = spec.dev_file if spec.dev_file and is_dev else spec.train_file
    if split == "test":
        is_dev, origin = False, spec.test_file
    if spec.hub is not None:
        found = own_hub_split(spec.name, spec.hub, origin)
        origin, files = found.origin, found.files
    else:
        files = (origin,)
        if not Path(origin).is_file():
            raise UserError(f"tasks: {spec.name!r}: no file {origin}")
    shown = f"{origin} (held out)" if is_dev and not spec.dev_file else origin
    return Source(shown, content_hash(files), lambda: _filled(own_columns(spec, split), origin))


def _generated(spec: TaskSpec, split: str) -> Source:
    return Source(
        "the embedded suite",
        content_hash([synthetic.__file__, lexicon.__file__]),
        lambda: synthetic.generate(spec.name, split),
    )


def _gym(spec: TaskSpec, split: str, root: str | None) -> Source:
    if root is None:
        raise UserError(
            f"data.root: task {spec.name!r} is of the few-shot gym, which no single set of the Hub "
            f"holds; set data.root to a folder with {FOLDER}/ in it"
        )
    folder = Path(root).expanduser()
    files = gym_files(spec, split, folder)
    return Source(
        f"{files[0]}, {split}", content_hash(files), lambda: gym_rows(spec, split, folder)
    )


def _local(spec: TaskSpec, split: str, root: Path) -> Source:
    if not root.is_dir():
        raise UserError(f"data.root: no folder {root}; give a folder, nothing (Hub) or 'embedded'")
    path = root / spec.folder / f"{split}.parquet"
    origin = str(path)
    if not path.is_file():
        stand_in = dict(spec.stand_ins).get(split)
        if stand_in is None or not (root / stand_in).is_file():
            raise UserError(f"data.root: task {spec.name!r} needs {path}, which is not there")
        path = root / stand_in
        origin = f"{path} {SUBSTITUTE} {split} split)"
    return Source(
        origin, content_hash([path]), lambda: _filled(read_table(path, spec.columns), origin)
    )


def _hub(spec: TaskSpec, split: str) -> Source:
    otherwise = "set data.root to a local folder, or to 'embedded' for the tasks shipped here"
    try:
        found = hub_split(spec.hub, split, spec.name, otherwise)
    except UserError as error:
        raise UserError(f"data.root: {error}") from None
    return Source(
        found.origin,
        content_hash(found.files),
        lambda: _filled(found.columns(spec.columns), found.origin),
    )


def _filled(columns: Columns, origin: str) -> Columns:
    if not next(iter(columns.values())):
        raise UserError(f"{origin}: the split is empty; it needs at least one row")
    columns.setdefault(ROW, list(range(len(next(iter(columns.values()))))))
    return columns
