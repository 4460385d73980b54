"""The paper's table beside ours: values, differences, and what they stand on."""

import math
from collections.abc import Mapping

from ds_moe_mtl.studies.tables.schema import Budget, Table
from ds_moe_mtl.tasks import get_task, is_small
from ds_moe_mtl.tasks.metrics import average_half_up

Scores = Mapping[tuple[str, str], Mapping]
AVERAGES = ("small", "all")
TITLES = {"small": "Small Tasks", "all": "All Tasks"}
MISSING = "-"


def compare(table: Table, scores: Scores) -> list[dict]:
    """Return a row for each of the table's: {"name", "paper", "ours", "difference"}.

    Each holds a value (or None) by column, then by "small" and "all": means over the columns of
    small tasks and over all columns, None unless every one of them is there.
    """
    rows = []
    for row in table.rows:
        paper = dict.fromkeys((column.name for column in table.columns), None)
        if row.paper is not None:
            paper = {
                column.name: value for column, value in zip(table.columns, row.paper, strict=True)
            }
        ours = {
            column.name: scores.get((row.name, column.name), {}).get("max")
            for column in table.columns
        }
        if table.averages:
            paper |= {"small": row.small, "all": row.all}
            ours |= averages(table, ours)
        difference = {
            key: None if None in (paper[key], ours[key]) else ours[key] - paper[key]
            for key in paper
        }
        rows.append({"name": row.name, "paper": paper, "ours": ours, "difference": difference})
    return rows


def averages(table: Table, values: Mapping[str, float | None]) -> dict[str, float | None]:
    """Return the means over small and over all tasks of a row's columns, unrounded."""
    small = [values[c.name] for c in table.columns if is_small(get_task(c.task))]
    every = [values[c.name] for c in table.columns]
    return {
        name: None if None in group or not group else math.fsum(group) / len(group)
        for name, group in (("small", small), ("all", every))
    }


def gains(table: Table, rows: list[dict]) -> list[dict]:
    """Return what rows gain over the row they are compared with, by column, in paper and ours.

    {"name", "over", "paper", "ours"}; a table of averages gives the averages' gains alone.
    """
    by_name = {row["name"]: row for row in rows}
    keys = AVERAGES if table.averages else tuple(column.name for column in table.columns)
    found = []
    for row in table.rows:
        over = row.over or table.rows[0].name
        if over == row.name or (row.over is None and any(other.over for other in table.rows)):
            continue
        gain = {"name": row.name, "over": over}
        for side in ("paper", "ours"):
            mine, base = by_name[row.name][side], by_name[over][side]
            gain[side] = {
                key: None if None in (mine[key], base[key]) else mine[key] - base[key]
                for key in keys
            }
        found.append(gain)
    return found


def notes(table: Table, budget: Budget, stand_in: str | None, scores: Scores) -> list[str]:
    """Return what a reader must know: budget, data, contamination, spread, the paper's oddities."""
    found = [f"Budget: {budget.about}."]
    if stand_in is not None:
        found.append(f"Encoder: {stand_in} stands in for the table's own on this budget.")
    devices = dict.fromkeys(score["device"] for score in scores.values())
    if devices:
        found.append(f"Run on: {', '.join(devices)}.")
    seen = dict.fromkeys(note for score in scores.values() for note in score["notes"])
    merged = _merged(list(seen))
    found += [f"Data: {note}." for note in merged]
    for (row, column), score in scores.items():
        if score["donor_losses"] is not None:
            losses = ", ".join(f"{name} {v:.3f}" for name, v in score["donor_losses"].items())
            found.append(
                f"{row}, {column}: took the gate {score['gate']} by held-out loss ({losses})."
            )
    seeds = {score["seeds"] for score in scores.values()}
    if seeds:
        found.append(
            f"Ours is the best of {max(seeds)} seeds (the paper's: of 3), chosen and scored on the "
            f"same dev examples."
            if max(seeds) > 1
            else "Ours is one seed; the paper's is the best of 3."
        )
    found += [f"In the paper: {oddity}" for oddity in table.oddities]
    return found


def standard_errors(table: Table, scores: Scores) -> dict[str, float]:
    """Return by column one standard error of an accuracy on that many dev examples, percent."""
    found = {}
    for column in table.columns:
        at = [score for (_, name), score in scores.items() if name == column.name]
        at = [score for score in at if score["metric"] == "accuracy"]
        if at:
            share = sum(score["max"] for score in at) / len(at) / 100
            found[column.name] = 100 * math.sqrt(share * (1 - share) / at[0]["examples"])
    return found


def render(table: Table, budget: Budget, stand_in: str | None, scores: Scores) -> str:
    """Return the comparison as Markdown."""
    rows = compare(table, scores)
    keys = list(rows[0]["paper"])
    heads = [f"{TITLES.get(key, key)}{_mark(table, key, scores)}" for key in keys]
    lines = [
        f"## {table.title}",
        "",
        f"The paper's {table.source} beside ours, in percent.",
        "",
        "| model | | " + " | ".join(heads) + " |",
        "|---|---|" + "---:|" * len(heads),
    ]
    for row in rows:
        for side in ("paper", "ours", "difference"):
            name = row["name"] if side == "paper" else ""
            shown = [_shown(row[side][key], _digits(table, key), side) for key in keys]
            lines.append(f"| {name} | {side} | " + " | ".join(shown) + " |")
    errors = standard_errors(table, scores)
    if errors:
        shown = [_shown(errors.get(key), 1, "error") for key in keys]
        lines.append("| one standard error | ours | " + " | ".join(shown) + " |")
    gained = [
        gain for gain in gains(table, rows) if any(v is not None for v in gain["ours"].values())
    ]
    if gained:
        lines += ["", "Gains, paper / ours:", ""]
        for gain in gained:
            parts = [
                f"{TITLES.get(key, key)} {_shown(gain['paper'][key], 2, 'difference')} / "
                f"{_shown(gain['ours'][key], 2, 'difference')}"
                for key in gain["ours"]
            ]
            lines.append(f"- {gain['name']} over {gain['over']}: {', '.join(parts)}")
    spread = _spread(scores)
    if spread:
        lines += ["", "Mean and standard deviation over seeds:", "", *spread]
    lines += ["", *(f"- {note}" for note in notes(table, budget, stand_in, scores))]
    if any("*" in head or "+" in head for head in heads):
        lines += ["", "\\* the encoder has seen, or may have seen, its data; + not the full data."]
    return "\n".join(lines) + "\n"


def _mark(table: Table, key: str, scores: Scores) -> str:
    """Return a column's marks: * contaminated, + in part or from elsewhere."""
    tasks = [column.task for column in table.columns if column.name == key]
    found = [score for (_, name), score in scores.items() if name == key]
    texts = [note for score in found for note in score["notes"]]
    contaminated = any("has seen" in note and task in note for note in texts for task in tasks)
    partial = any(note.startswith(f"{task}:") for note in texts for task in tasks)
    return "*" * contaminated + "+" * partial


def _digits(table: Table, key: str) -> int:
    return table.digits if key in AVERAGES else 1


def _shown(value: float | None, digits: int, side: str) -> str:
    if value is None:
        return MISSING
    rounded = average_half_up([value], digits)
    sign = "+" if side == "difference" and rounded > 0 else ""
    return f"{sign}{rounded:.{digits}f}"


def _spread(scores: Scores) -> list[str]:
    return [
        f"- {row}, {column}: {score['mean']:.2f} +- {score['std']:.2f} ({score['seeds']} seeds)"
        for (row, column), score in scores.items()
        if score["std"] is not None
    ]


def _merged(found: list[str]) -> list[str]:
    """Return notes with those of contamination, a task each, put together."""
    stem = "has seen, or may have seen, data of: "
    encoders: dict[str, list[str]] = {}
    others = []
    for note in found:
        encoder, seen, tasks = note.partition(stem)
        if seen:
            known = encoders.setdefault(encoder, [])
            known += [task for task in tasks.split(", ") if task not in known]
        else:
            others.append(note)
    return [*others, *(f"{encoder}{stem}{', '.join(tasks)}" for encoder, tasks in encoders.items())]
