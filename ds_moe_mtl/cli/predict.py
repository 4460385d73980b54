"""ds-moe-mtl predict: label lines of text, or the rows of a file, with a trained model."""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from ds_moe_mtl.cli.arguments import Parser, answer, count, renaming
from ds_moe_mtl.config import UserError

TABLES = (".csv", ".tsv", ".jsonl", ".parquet")
"""Inputs that are rows with named columns; anything else is lines of text."""

PRIMITIVES = 128
"""Shapes of batches whose compiled code oneDNN keeps. Hardly any comes again in a file, and by
its own default (1,024) it keeps some 4 MiB for every 4,096 rows of a tiny model."""


@dataclass(frozen=True)
class _Prediction:
    """What is labelled, and where the answers go. input: None: standard input."""

    folder: Path
    task: tuple[str, ...] | None
    input: Path | None
    output: Path | None
    column: tuple[str, ...]
    probabilities: bool
    top_k: int | None
    bad_rows: str
    json: bool


def main(arguments: list[str]) -> int:
    """Print or write the answers and return the exit status."""
    parser = Parser(
        "predict",
        "Labels texts. A .csv, .tsv, .jsonl or .parquet is read by its columns' names, and all "
        "columns are carried through; other input is one example a line, tabs between the values "
        "of a pair, or between a text and the options of its answer.",
        "ds-moe-mtl predict RUN --input reviews.csv --output labelled.jsonl",
    )
    parser.add_argument("folder", type=Path, help="a run's folder or a model folder")
    parser.add_argument(
        "--task",
        action="append",
        help="which of the model's tasks (may be repeated); default: all whose columns a file has",
    )
    parser.add_argument("--input", type=Path, help="a file; default: lines of standard input")
    parser.add_argument(
        "--output",
        type=Path,
        help="a new .jsonl, .csv, .tsv or .parquet; started again, it goes on where it was; "
        "default: standard output, as JSON lines where the input has columns",
    )
    parser.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="TASK_COLUMN=FILE_COLUMN",
        help="where a file calls a column otherwise; TASK.COLUMN=... is for one task",
    )
    parser.add_argument(
        "--probabilities", action="store_true", help="tell every class's probability too"
    )
    parser.add_argument("--top-k", type=count, help="tell the K most probable classes only")
    parser.add_argument(
        "--bad-rows",
        choices=("stop", "skip"),
        default="stop",
        help="what a row that cannot be read does: end the work (stop), or go without an answer",
    )
    parser.add_argument("--json", action="store_true", help="lines of text: print one JSON list")
    asked = parser.request(_Prediction, arguments)
    return answer(lambda: _predict(asked))


def _predict(asked: _Prediction) -> int:
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(PRIMITIVES))  # before torch
    from ds_moe_mtl.evaluation import MultiTaskModel

    is_table = asked.input is not None and asked.input.suffix.lower() in TABLES
    if not is_table:
        for name, given in (("--output", asked.output), ("--column", asked.column)):
            if given:
                raise UserError(f"{name}: allowed with --input of {', '.join(TABLES)}")
        if not asked.task or len(asked.task) > 1:
            raise UserError("--task: lines of text are labelled for one task; allowed: one --task")
    if asked.input is not None and not asked.input.is_file():
        raise UserError(f"--input: {asked.input}: no such file")
    if is_table and asked.output is not None and asked.output.exists():
        raise UserError(f"--output: {asked.output} exists; allowed: a new file")
    model = MultiTaskModel.from_pretrained(asked.folder)
    return _label_table(asked, model) if is_table else _label_lines(asked, model)


def _label_table(asked: _Prediction, model) -> int:
    from ds_moe_mtl.evaluation.predict_files import Wish, predict_file
    from ds_moe_mtl.evaluation.shards import json_line

    wish = Wish(
        tasks=asked.task or (),
        columns=tuple(map(renaming, asked.column)),
        probabilities=asked.probabilities,
        top_k=asked.top_k,
        skip_bad=asked.bad_rows == "skip",
    )
    done = predict_file(
        model, asked.input, asked.output, wish, lambda row: print(json_line(row)), _tell
    )
    if done.bad:
        _tell(f"{done.bad:,} of {done.rows:,} rows have no answer; the first: {done.first_fault}")
    if asked.output is not None:
        _tell(f"{asked.output}: {done.rows:,} rows")
    return 0


def _label_lines(asked: _Prediction, model) -> int:
    spec = model.task(asked.task[0])
    if asked.input is None:
        rows = _rows(sys.stdin.buffer.read(), "standard input")
    else:
        rows = _rows(asked.input.read_bytes(), f"--input: {asked.input}")
    answers = model.predict(
        spec.name,
        [_example(spec, row) for row in rows],
        return_probabilities=asked.probabilities,
        top_k=asked.top_k,
    )
    if asked.json:
        print(json.dumps(answers))
        return 0
    for value in answers:
        print(_line(value))
    return 0


def _line(value) -> str:
    """Return a prediction as one line: JSON where it has several parts."""
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, str):
        return " ".join(value.splitlines())
    return json.dumps(value, ensure_ascii=False)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _example(spec, row: tuple[str, ...]) -> tuple:
    """Return a line's values as `predict` takes them: options as a list, places as numbers."""
    from ds_moe_mtl.tasks.numbers import is_whole

    if spec.kind == "options":
        return (row[0], list(row[1:]))
    if spec.kind == "tags":
        return (row[0].split(),)
    places = {place for place, name in enumerate(spec.columns) if name in spec.spans}
    return tuple(
        int(value) if place in places and is_whole(value) and len(value) < 10 else value
        for place, value in enumerate(row)
    )


def _rows(content: bytes, origin: str) -> list[tuple[str, ...]]:
    """Return the examples of a text, one a line, so that answers stand line by line beside them.

    Raises UserError for what is not UTF-8 and an empty line among others.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{origin}: not UTF-8 text") from None
    lines = text.replace("\r\n", "\n").rstrip("\n").split("\n") if text.strip() else []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            raise UserError(f"{origin}: line {number} is empty; allowed: an example on every line")
    return [tuple(line.split("\t")) for line in lines]
