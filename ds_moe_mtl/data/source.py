"""Where the rows of a split come from: the Hub, a local folder, the embedded suite, own files."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from ds_moe_mtl.config import UserError
from ds_moe_mtl.data.gym import gym_files, gym_rows
from ds_moe_mtl.data.own import own_columns
from ds_moe_mtl.data.tables import Columns, need_columns, read_table
from ds_moe_mtl.tasks import TaskSpec, lexicon, synthetic, task_groups
from ds_moe_mtl.tasks.text2text import FOLDER

EMBEDDED_ROOT = "embedded"
SUBSTITUTE = "(not the published"
"""What a split's origin says where other rows stand in for it."""


@dataclass(frozen=True)
class Source:
    """One split, found but not yet read.

    origin: what to call it in messages. content: a hash that changes with the rows.
    read: gives the split's columns, each a list of one value a row.
    """

    origin: str
    content: str
    read: Callable[[], Columns]


def read_split(spec: TaskSpec, split: str, root: str | None) -> Columns:
    """The split's columns (those of `spec.columns`), one value a row.

    root: a folder laid out as <set>[/<configuration>]/<split>.parquet, None for the Hub, or
    "embedded". Raises UserError for a set, file or column that is not there and an empty split.
    """
    return find_split(spec, split, root).read()


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
    path = Path(spec.dev_file if spec.dev_file and is_dev else spec.train_file)
    if not path.is_file():
        raise UserError(f"tasks: {spec.name!r}: no file {path}")
    origin = str(path) if spec.dev_file or not is_dev else f"{path} (held out)"
    return Source(
        origin, content_hash([path]), lambda: _filled(own_columns(spec, split), str(path))
    )


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
    import datasets

    name, configuration = spec.hub
    origin = f"{name} ({configuration}), {split}"
    try:
        rows = datasets.load_dataset(name, configuration, split=split)
    except (OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"data.root: task {spec.name!r}: cannot load {origin} from the Hub ({reason}); "
            "set data.root to a local folder, or to 'embedded' for the tasks shipped here"
        ) from None

    def read() -> Columns:
        need_columns(spec.columns, rows.column_names, origin)
        return _filled({column: list(rows[column]) for column in spec.columns}, origin)

    return Source(origin, content_hash(file["filename"] for file in rows.cache_files), read)


def _filled(columns: Columns, origin: str) -> Columns:
    if not next(iter(columns.values())):
        raise UserError(f"{origin}: the split is empty; it needs at least one row")
    return columns
