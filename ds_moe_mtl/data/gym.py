"""Rows of the few-shot gym: one parquet file for all tasks, or CrossFit's and MetaICL's folders.

<root>/fewshot_gym/fewshot.parquet    columns task, seed, split, input, output, options
<root>/fewshot_gym/test.parquet       columns task, input, output, options
<root>/fewshot_gym/<task>/<task>_16_<seed>_<split>.jsonl or .tsv    where there is no parquet

A split is "train@13" (one sample of 16 rows), "train" (all samples pooled, each row once), the
same for "dev", or "test". A pooled dev split leaves out the inputs that the pooled train has:
the samples of one task overlap.
"""

from collections.abc import Callable
from pathlib import Path

from ds_moe_mtl.config import UserError
from ds_moe_mtl.data.tables import Columns, read_table
from ds_moe_mtl.tasks import TaskSpec
from ds_moe_mtl.tasks.text2text import FOLDER, SEEDS, crossfit_name

Row = tuple[str, str, tuple[str, ...]]  # input, output, options


def gym_files(spec: TaskSpec, split: str, root: Path) -> list[Path]:
    """The files that a split of a task is read from. Raises UserError where there are none."""
    part, _, seed = split.partition("@")
    table = root / FOLDER / ("test.parquet" if part == "test" else "fewshot.parquet")
    if table.is_file():
        return [table]
    name = crossfit_name(spec.name)
    parts = ("train", "dev") if part == "dev" and not seed else (part,)
    found = [
        path
        for part in parts
        for number in ([seed] if seed else SEEDS)
        for suffix in (".jsonl", ".tsv")
        if (path := root / FOLDER / name / f"{name}_16_{number}_{part}{suffix}").is_file()
    ]
    if not found:
        raise UserError(
            f"data.root: task {spec.name!r} needs {table} or "
            f"{root / FOLDER / name / name}_16_<seed>_{part}.jsonl or .tsv; neither is there"
        )
    return found[:1] if part == "test" else found  # the test rows are the same for every seed


def gym_rows(spec: TaskSpec, split: str, root: Path) -> Columns:
    """Columns input ("[task] text", as the paper's public code has it), output and options.

    Raises UserError where the task has no such split, or its seed is not there.
    """
    part, _, seed = split.partition("@")
    files = gym_files(spec, split, root)
    read = _of_table if files[0].suffix == ".parquet" else _of_folder
    rows = list(dict.fromkeys(read(spec, files, part, seed)))
    if part == "dev" and not seed:
        trained = {row[0] for row in read(spec, files, "train", "")}
        rows = [row for row in rows if row[0] not in trained]
    if not rows:
        raise UserError(f"{files[0]}: task {spec.name!r} has no {split} rows")
    name = crossfit_name(spec.name)
    shown = spec.kind == "text" and len({options for _, _, options in rows}) > 1
    return {
        "input": [
            f"[{name}] {text}{_lettered(options) if shown else ''}" for text, _, options in rows
        ],
        "output": [output for _, output, _ in rows],
        # A few rows name an option twice (commonsense_qa).
        "options": [list(dict.fromkeys(options)) for _, _, options in rows],
    }


def _lettered(options: tuple[str, ...]) -> str:
    """Options that differ from row to row as CrossFit shows them to a model that generates."""
    return "".join(f" ({chr(ord('A') + i)}) {option}" for i, option in enumerate(options))


def _of_table(spec: TaskSpec, files: list[Path], part: str, seed: str) -> list[Row]:
    import pyarrow
    import pyarrow.parquet

    wanted = [("task", "=", crossfit_name(spec.name))]
    if part != "test":
        seeds = [int(seed)] if seed else list(SEEDS)
        wanted += [("split", "=", part), ("seed", "in", seeds)]
    try:
        table = pyarrow.parquet.read_table(
            files[0], columns=["input", "output", "options"], filters=wanted
        )
    except (pyarrow.ArrowException, OSError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{files[0]}: not a readable gym table ({reason})") from None
    values = (table.column(name).to_pylist() for name in ("input", "output", "options"))
    return [(text, out, tuple(options or ())) for text, out, options in zip(*values, strict=True)]


def _of_folder(spec: TaskSpec, files: list[Path], part: str, seed: str) -> list[Row]:
    rows: list[Row] = []
    for path in files:
        if f"_{part}." in path.name:
            readers: dict[str, Callable[[Path], list[Row]]] = {".jsonl": _jsonl, ".tsv": _tsv}
            rows += readers[path.suffix](path)
    return rows


def _jsonl(path: Path) -> list[Row]:
    """MetaICL's rows."""
    table = read_table(path, ("input", "output", "options"))
    return [
        (text, output, tuple(options or ()))
        for text, output, options in zip(
            table["input"], table["output"], table["options"], strict=True
        )
    ]


def _tsv(path: Path) -> list[Row]:
    """CrossFit's rows: input, answer, further answers (the first is taken); no header."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        cells = line.split("\t")
        if len(cells) < 2:
            raise UserError(f"{path}:{number}: no tab; allowed: input, a tab, the answer")
        rows.append((cells[0], cells[1], ()))
    return rows
