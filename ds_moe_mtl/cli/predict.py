"""ds-moe-mtl predict: label lines of text with a trained model."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from ds_moe_mtl.cli.arguments import Parser, answer
from ds_moe_mtl.config import UserError


@dataclass(frozen=True)
class _Prediction:
    """What is labelled. input: a text file; None: standard input."""

    folder: Path
    task: str
    input: Path | None
    json: bool


def main(arguments: list[str]) -> int:
    """Print a prediction a line and return the exit status."""
    parser = Parser(
        "predict",
        "Labels texts, one example a line; tabs separate the values of a pair, and a text from the "
        "options of its answer.",
        "printf 'A man sleeps.\\tA man is awake.\\n' | ds-moe-mtl predict RUN --task rte",
    )
    parser.add_argument("folder", type=Path, help="a run's folder or a model folder")
    parser.add_argument("--task", required=True, help="which of the model's tasks")
    parser.add_argument("--input", type=Path, help="a text file; default: standard input")
    parser.add_argument("--json", action="store_true", help="print one JSON list")
    asked = parser.request(_Prediction, arguments)
    return answer(lambda: _predict(asked))


def _predict(asked: _Prediction) -> int:
    from ds_moe_mtl.evaluation import MultiTaskModel

    model = MultiTaskModel.from_pretrained(asked.folder)
    spec = model.task(asked.task)
    if asked.input is None:
        rows = _rows(sys.stdin.buffer.read(), "standard input")
    elif asked.input.is_file():
        rows = _rows(asked.input.read_bytes(), f"--input: {asked.input}")
    else:
        raise UserError(f"--input: {asked.input}: no such file")
    answers = model.predict(asked.task, [_example(spec, row) for row in rows])
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
