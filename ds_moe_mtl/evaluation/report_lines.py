"""Reports of tasks (evaluation.report) as lines that a person reads, at most WIDTH columns wide."""

from collections.abc import Iterator, Mapping, Sequence

WIDTH = 100
MOST_IN_MATRIX = 8
"""Classes of the largest confusion matrix that is printed; of more the most confused pairs are."""

MOST_CLASSES = 60
"""Classes whose scores are printed."""


def summary_lines(reports: Mapping[str, Mapping], split: str) -> Iterator[str]:
    """Yield the table of all tasks' scores, every metric a line."""
    width = min(40, max(15, *map(len, reports))) + 1
    yield f"{'task':<{width}}{'metric':<17}{split:>8}{'95% interval':>18}{'examples':>10}"
    for name, report in reports.items():
        ends = report["interval"]
        interval = "" if ends is None else f"{ends['low']:.1f} to {ends['high']:.1f}"
        values = {report["metric"]: report["value"], **report.get("metrics", {})}
        for metric, value in values.items():
            first = metric == report["metric"]
            line = f"{_plain(name, width - 1) if first else '':<{width}}{metric:<17}{value:>8.1f}"
            line += f"{interval:>18}{report['examples']:>10,}" if first else ""
            yield line


def report_lines(name: str, report: Mapping) -> Iterator[str]:
    """Yield one task's classes, mistakes, calibration and worst examples."""
    yield ""
    yield _plain(f"{name}: {report['metric']} {report['value']:.1f}", WIDTH)
    yield from _class_lines(report["classes"])
    if report["confusion"] is not None:
        yield from _confusion_lines(report["confusion"])
    if report["calibration"] is not None:
        found = report["calibration"]
        yield (
            f"  expected calibration error {found['error']:.1f} (15 bins of equal width; "
            f"probability of {found['of']})"
        )
    yield from _worst_lines(report)


def _class_lines(classes: Sequence[Mapping]) -> Iterator[str]:
    if not classes:
        return
    width = min(40, max(len("class"), *(len(each["name"]) for each in classes))) + 1
    yield f"  {'class':<{width}}{'precision':>10}{'recall':>10}{'F1':>10}{'rows':>10}"
    for each in classes[:MOST_CLASSES]:
        cells = "".join(f"{_percent(each[key]):>10}" for key in ("precision", "recall", "f1"))
        yield f"  {_plain(each['name'], width - 1):<{width}}{cells}{each['rows']:>10,}"
    if len(classes) > MOST_CLASSES:
        yield f"  and {len(classes) - MOST_CLASSES} more (--json has all)"


def _confusion_lines(found: Mapping) -> Iterator[str]:
    names = found["classes"]
    if len(names) <= MOST_IN_MATRIX:
        yield "  right class in rows, given class in columns:"
        width = min(20, max(map(len, names))) + 1
        cell = min(max(8, width + 1), (WIDTH - 2 - width) // len(names))
        head = "".join(f"{_plain(name, cell - 1):>{cell}}" for name in names)
        yield f"  {'':<{width}}{head}"
        for name, counts in zip(names, found["counts"], strict=True):
            cells = "".join(f"{count:>{cell},}" for count in counts)
            yield f"  {_plain(name, width - 1):<{width}}{cells}"
    elif found["mistakes"]:
        yield "  most confused (right class, then the one that is given):"
        for each in found["mistakes"]:
            right, given = (_plain(each[key], 36) for key in ("right", "given"))
            yield f"  {each['examples']:>8,}  {right} as {given}"


def _worst_lines(report: Mapping) -> Iterator[str]:
    if not report["worst"]:
        return
    yield f"  worst examples, by {report['cost']} (mean {report['mean_cost']:.2f}):"
    for each in report["worst"]:
        place = each["row"] if isinstance(each["row"], str) else f"row {each['row']} (from 0)"
        right, given = _plain(each["right"], 30), _plain(each["given"], 30)
        yield _plain(f"  {each['cost']:>7.2f}  {place}: {right}; given: {given}", WIDTH)
        texts = " | ".join(map(_as_text, each["texts"].values()))
        yield f"{'':<11}{_plain(texts, WIDTH - 11)}"


def _as_text(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _plain(text: str, most: int) -> str:
    """Return a text on one line, without what a terminal would obey, shortened."""
    text = "".join(part if part.isprintable() else " " for part in text)
    return text if len(text) <= most else f"{text[: most - 3]}..."
