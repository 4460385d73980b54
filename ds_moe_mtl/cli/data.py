"""ds-moe-mtl data: what a run's tasks hold, and what is odd about it, before it runs."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ds_moe_mtl.cli.arguments import Parser, answer
from ds_moe_mtl.config import load_config

MOST_CLASSES = 12
"""Classes of a task that the table has a line for; --json has all."""

WIDTH = 100


@dataclass(frozen=True)
class _Asked:
    """Whose data is shown."""

    config: str | None
    overrides: tuple[str, ...]
    json: bool


def main(arguments: list[str]) -> int:
    """Print what a run's tasks hold (or JSON) and return the exit status."""
    parser = Parser(
        "data",
        "Shows the data of a run's tasks as it is read: rows, kinds and why, classes, lengths, "
        "empty texts, duplicates, conflicting labels, rows of dev and test that are in train. What "
        "is wrong with any task is told in one go.",
        "ds-moe-mtl data own_files train.max_length=64",
    )
    parser.takes_a_run(shape=False)
    parser.add_argument("--json", action="store_true", help="print JSON, with every class")
    asked = parser.request(_Asked, arguments)
    return answer(lambda: _show(asked))


def _show(asked: _Asked) -> int:
    config = load_config(asked.config, asked.overrides)
    from ds_moe_mtl.data.check import checked_tasks

    tasks = checked_tasks(config.task_rows, config.data.root)
    from ds_moe_mtl.studies.data import surveys

    found = []
    for each in surveys(config, tasks, lambda line: None if asked.json else print(line)):
        found.append(each)
        if not asked.json:
            for line in lines_of(each):
                print(line)
    if asked.json:
        print(json.dumps(found, ensure_ascii=False))
    return 0


def lines_of(found: Mapping) -> Iterator[str]:
    """Yield a task's survey (data.survey) as lines of at most WIDTH columns."""
    yield ""
    yield _cut(f"{found['task']}: {found['kind']} ({found['why']}), scored by {found['metric']}")
    for name, of in found["rows"].items():
        limit = " (the run's limit)" if "limit" in of else ""
        yield _line(name, f"{of['examples']:>9,} examples{limit} from {of['from']}")
    yield from _class_lines(found)
    for name, of in (found["scores"] or {}).items():
        spread = f"{of['lowest']:g} to {of['highest']:g}, median {of['median']:g}"
        yield _line("scores", f"{name:<6}{spread}")
    for name, of in found["lengths"].items():
        yield _line(
            "tokens",
            f"{name:<6}median {of['median']:.0f}, 95% up to {of['p95']:.0f}, longest "
            f"{of['longest']:,}; {100 * of['cut']:.2g}% cut at {found['max_length']}",
        )
    yield from _warnings(found)


def _class_lines(found: Mapping) -> Iterator[str]:
    classes, names = found["classes"], list(found["rows"])
    if classes is None:
        return
    totals = {name: found["rows"][name]["examples"] for name in names}
    if found["kind"] == "tags":
        totals = {name: sum(of[name] for of in classes.values()) for name in names}
    of_what = {"multilabel": "labels", "tags": "tags"}.get(found["kind"], "classes")
    yield _line(of_what, f"{len(classes):<26}" + "".join(f"{name:>18}" for name in names))
    for label, counts in list(classes.items())[:MOST_CLASSES]:
        cells = "".join(
            f"{counts[name]:>10,} {100 * counts[name] / totals[name]:>6.1f}%" for name in names
        )
        yield _line("", f"{_plain(label, 26):<26}{cells}")
    if len(classes) > MOST_CLASSES:
        yield _line("", f"and {len(classes) - MOST_CLASSES} more (--json has all)")
    for kind, counts in list((found["entities"] or {}).items())[:MOST_CLASSES]:
        told = ", ".join(f"{counts[name]:,} in {name}" for name in names)
        yield _line("entities", f"{_plain(kind, 26)}: {told}")


def _warnings(found: Mapping) -> Iterator[str]:
    from ds_moe_mtl.data.survey import is_clean

    if is_clean(found):
        yield _line("clean", "no empty texts, duplicates, conflicting labels or dev rows in train")
        return
    for column, counts in found["empty"].items():
        if any(counts.values()):
            told = ", ".join(f"{count:,} of {name}" for name, count in counts.items() if count)
            yield _line("empty", f"column {column!r}: {told}")
    for name, of in found["duplicates"].items():
        if of["examples"]:
            where = _rows_of(of["example"])
            told = f"{of['examples']:,} of {name} repeat an earlier example"
            yield _line("twice", f"{told}, as{where}" if where else told)
    for name, of in found["conflicts"].items():
        if of["texts"]:
            yield from _conflict(name, of)
    for name, count in found["in_train"].items():
        if count:
            yield _line("leak", f"{count:,} of {name}'s examples are in train too")
    for oddity in found["oddities"]:
        yield _line("odd", oddity)


def _conflict(name: str, of: Mapping) -> Iterator[str]:
    yield _line(
        "conflict",
        f"{of['texts']:,} texts of {name} have different labels ({of['examples']:,} examples), "
        f"as{_rows_of(of['example']) or ' these'}",
    )
    shown = " | ".join(_plain(label, 25) for label in of["example"]["labels"])
    text = " | ".join(_plain(part, 60) for part in of["example"]["texts"][0])
    yield _line("", f"{shown}: {text}")


def _rows_of(example: Mapping) -> str:
    if example["rows"] is None:
        return ""
    return f" rows {example['rows'][0]:,} and {example['rows'][1]:,} (from 0)"


def _line(name: str, text: str) -> str:
    return _cut(f"  {name:<10}{text}")


def _plain(value: object, most: int) -> str:
    """Return a value on one line, shortened."""
    text = " ".join(value.split()) if isinstance(value, str) else str(value)
    text = "".join(part if part.isprintable() else " " for part in text)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _cut(line: str) -> str:
    return line if len(line) <= WIDTH else f"{line[: WIDTH - 3]}..."
