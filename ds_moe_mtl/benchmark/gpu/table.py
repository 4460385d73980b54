"""The report as markdown: the machine, then each part's tables."""

NO_GPU = "no GPU: nothing here is a measurement"


def markdown(report: dict) -> str:
    """Return the whole report as one page."""
    lines = ["# GPU report", ""]
    if report["note"]:
        lines += [f"**{report['note']}**", ""]
    seconds = report.get("seconds", 0.0)
    lines += [f"{report['began']}, {seconds:.0f} s of {report['budget_s']:.0f} s", ""]
    status = [
        [
            part["name"],
            part["about"],
            part["status"],
            f"{part['seconds']:.0f}",
            part.get("reason") or "",
        ]
        for part in report["parts"]
    ]
    lines += _table(["part", "about", "status", "s", "why"], status)
    for part in report["parts"]:
        for table in part.get("found", {}).get("tables", []):
            lines += ["", f"## {part['name']}: {table['title']}", ""]
            lines += _table(table["columns"], table["rows"])
    return "\n".join(lines) + "\n"


def _table(columns: list[str], rows: list[list]) -> list[str]:
    """Return a markdown table's lines; a bar in a cell is written as a slash."""
    cells = [[_cell(value) for value in row] for row in [columns, *rows]]
    head, *body = ["| " + " | ".join(row) + " |" for row in cells]
    return [head, "|" + "---|" * len(columns), *body]


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return " ".join(str(value).replace("|", "/").split())
