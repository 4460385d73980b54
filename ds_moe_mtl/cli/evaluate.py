"""ds-moe-mtl evaluate: score a trained model on dev or test rows, or on a labelled file."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ds_moe_mtl.cli.arguments import Parser, answer, count, data_root, renaming
from ds_moe_mtl.config import UserError

WORST = 3


@dataclass(frozen=True)
class _Evaluation:
    """What is scored. task: names, None for all; limit: examples a task, None for all."""

    folder: Path
    task: tuple[str, ...] | None
    input: Path | None
    column: tuple[str, ...]
    split: str | None
    data_root: str | None
    limit: int | None
    worst: int
    json: bool

    def __post_init__(self) -> None:
        """Raise UserError for options that do not go together."""
        if self.input is None and self.column:
            raise UserError("--column: allowed with --input")
        for name in ("split", "data_root", "limit"):
            if self.input is not None and getattr(self, name) is not None:
                raise UserError(f"--{name.replace('_', '-')}: allowed without --input")


def main(arguments: list[str]) -> int:
    """Print tables (or JSON) of scores and return the exit status."""
    parser = Parser(
        "evaluate",
        "Scores a trained model: all metrics with an interval, classes, mistakes, calibration, the "
        "worst examples. On its tasks' dev rows, on their test rows, or on a labelled file.",
        "ds-moe-mtl evaluate runs/own_files --input labelled.csv --task tickets",
    )
    parser.add_argument("folder", type=Path, help="a run's folder or a model folder")
    parser.add_argument("--task", action="append", help="only this task (may be repeated)")
    parser.add_argument(
        "--input",
        type=Path,
        help="a labelled .csv, .tsv, .jsonl, .parquet or .conll; default: the run's own rows",
    )
    parser.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="TASK_COLUMN=FILE_COLUMN",
        help="where a file calls a column otherwise; TASK.COLUMN=... is for one task",
    )
    parser.add_argument("--split", choices=("dev", "test"), help="which of the run's rows (dev)")
    parser.add_argument("--data-root", help="a local data root; default: the run's own")
    parser.add_argument("--limit", type=count, help="at most so many examples a task")
    parser.add_argument(
        "--worst", type=int, default=WORST, help=f"examples of the highest loss ({WORST})"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, texts in full")
    return answer(lambda: _evaluate(parser.request(_Evaluation, arguments)))


def _evaluate(asked: _Evaluation) -> int:
    from ds_moe_mtl.evaluation import MultiTaskModel
    from ds_moe_mtl.evaluation.report_lines import report_lines, summary_lines

    if asked.worst < 0:
        raise UserError(f"--worst: {asked.worst}; allowed: 0 or more")
    if asked.input is not None and not asked.input.is_file():
        raise UserError(f"--input: {asked.input}: no such file")
    model = MultiTaskModel.from_pretrained(asked.folder)
    each = _of_run(asked, model) if asked.input is None else _of_file(asked, model)
    reports = dict(each)
    if asked.json:
        print(json.dumps(reports, ensure_ascii=False))
        return 0
    for line in summary_lines(reports, asked.split or ("score" if asked.input else "dev")):
        print(line)
    for name, report in reports.items():
        for line in report_lines(name, report):
            print(line)
    told: dict[str, list[str]] = {}
    for name, report in reports.items():
        told.setdefault(report["note"], []).append(name)
    for note, names in told.items():
        if note:
            print(f"note: {', '.join(names)}: {note}")
    return 0


def _of_file(asked: _Evaluation, model) -> Iterator[tuple[str, dict]]:
    """Yield each task's name and report on the rows of --input."""
    from ds_moe_mtl.data import encode_columns
    from ds_moe_mtl.evaluation.labelled import read_labelled
    from ds_moe_mtl.evaluation.report import task_report

    columns = tuple(map(renaming, asked.column))
    for found in read_labelled(model, asked.input, asked.task or (), columns):
        spec = found.spec
        split = encode_columns(spec, found.columns, model.tokenizer, None, str(asked.input))
        outputs = model.outputs(spec.name, split)
        report = task_report(
            spec, split, outputs, model.tokenizer, found.columns, found.places, asked.worst
        )
        yield spec.name, {**report, "note": ""}


def _of_run(asked: _Evaluation, model) -> Iterator[tuple[str, dict]]:
    """Yield each task's name and report on its dev or test rows."""
    from ds_moe_mtl.data import encode_task, split_rows
    from ds_moe_mtl.data.tables import ROW
    from ds_moe_mtl.evaluation.report import task_report
    from ds_moe_mtl.studies.own_rows import OwnRun

    run = OwnRun.of(asked.folder, data_root(asked.data_root, asked.folder))
    which = asked.split or "dev"
    names = [model.task(name).name for name in asked.task or model.specs]
    if which == "test":
        lacking = [name for name in names if not model.specs[name].test_file]
        if lacking and (asked.task or len(lacking) == len(names)):
            raise UserError(f"--split test: {lacking[0]} has no test rows; allowed: --split dev")
        names = [name for name in names if name not in lacking]
    for name in names:
        spec = model.specs[name]
        split = encode_task(spec, which, model.tokenizer, run.root, run.cache, limit=asked.limit)
        rows = split_rows(spec, which, run.root, asked.limit)
        places = rows.get(ROW) or list(range(split.num_examples))
        outputs = model.outputs(name, split)
        report = task_report(spec, split, outputs, model.tokenizer, rows, places, asked.worst)
        note = run.note(spec, model.tokenizer, split.num_examples) if which == "dev" else ""
        yield name, {**report, "note": note}
