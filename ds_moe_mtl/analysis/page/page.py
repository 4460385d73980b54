"""The page: everything it shows, put together and rendered.

What runs left is read from their folders alone; worst examples, and routes that were not stored,
need the data and the model, and say so in a line where these are gone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ds_moe_mtl.analysis.page.ablation import measure_losses, stored_losses
from ds_moe_mtl.analysis.page.charts import intervals, points, tree
from ds_moe_mtl.analysis.page.course import (
    Panel,
    dev_panels,
    drift,
    load_panels,
    loss_panels,
    pace_panels,
)
from ds_moe_mtl.analysis.page.devdata import DevRows, read_dev_rows
from ds_moe_mtl.analysis.page.facts import (
    config_differences,
    environment_facts,
    own_features,
    run_facts,
    task_facts,
)
from ds_moe_mtl.analysis.page.heat import Heat, heat
from ds_moe_mtl.analysis.page.render import render
from ds_moe_mtl.analysis.page.routing import (
    Routing,
    distances_table,
    experts_table,
    experts_unit,
    read_routing,
    routes_table,
)
from ds_moe_mtl.analysis.page.scores import Scoreboard
from ds_moe_mtl.analysis.page.similarity import features_of, read_features
from ds_moe_mtl.analysis.page.stored import StoredRun, distinct_names
from ds_moe_mtl.analysis.page.svg import SLOTS
from ds_moe_mtl.config import UserError
from ds_moe_mtl.evaluation.answers import MOST_CLASSES, Answers, read_answers
from ds_moe_mtl.models.multitask import SPARSE_KINDS

MOST_RUNS = SLOTS
MANY_TASKS = 12
"""Tasks from which on each has fewer worst examples, and is folded up at first."""

LONGEST_TEXT = 700
"""Characters of a text that are shown."""


@dataclass(frozen=True)
class Options:
    """features: a user's CSV. experts: measure what each is worth, on `rows` dev rows a task.

    with_data: read models and data where the stored files do not tell. say: gets lines of progress.
    """

    features: Path | None = None
    experts: bool = False
    rows: int = 64
    with_data: bool = True
    say: Callable[[str], None] = field(default=lambda line: None)


@dataclass(frozen=True)
class Page:
    """The page as HTML, and its numbers as plain JSON values."""

    html: str
    numbers: dict


def make_page(runs: Sequence[StoredRun], board: Scoreboard, options: Options) -> Page:
    """Return the page of these runs.

    Raises UserError for features that cannot be read, and for `experts` where no run has any.
    """
    names = distinct_names(runs)
    if options.experts and not any(run.kind in SPARSE_KINDS for run in runs):
        raise UserError(f"--experts: no run of {', '.join(SPARSE_KINDS)} among {', '.join(names)}")
    table = None if options.features is None else read_features(options.features)
    details, numbers = [], []
    for slot, (run, name) in enumerate(zip(runs, names, strict=True)):
        rows, reasons = read_dev_rows(run) if options.with_data else ({}, {})
        routing = _routing(run, rows, table, options)
        details.append(_run_view(slot, name, run, rows, reasons, routing, options.with_data))
        numbers.append(_run_numbers(name, run, routing))
    html = render(
        title=", ".join(names),
        names=names,
        runs=runs,
        facts=run_facts(runs),
        tasks=task_facts(runs),
        differences=config_differences(runs) if len(runs) > 1 else [],
        board=board,
        charts=_score_charts(names, board),
        losses=loss_panels(runs, names),
        dev=dev_panels(runs, names),
        pace=pace_panels(runs, names),
        details=details,
        many=sum(len(run.tasks) for run in runs) > MANY_TASKS,
    )
    return Page(html, {"runs": numbers, "scores": board.to_dict()})


def _routing(
    run: StoredRun, rows: Mapping[str, DevRows], table: Mapping | None, options: Options
) -> Routing | None:
    """Return what a run's experts tell. table: the rows of the user's features, by task."""

    def features(tasks: Sequence[str]) -> Mapping[str, np.ndarray]:
        if table is not None:
            return features_of(table, tasks)
        return own_features(run, tasks, rows)

    experts = None, "Its experts are whole layers, which are not disabled one by one."
    if run.kind in SPARSE_KINDS:
        if options.experts:
            experts = measure_losses(run.parts[0], options.rows, options.say), ""
        else:
            experts = stored_losses(run.parts[0])
    return read_routing(run, features, experts, options.with_data)


def _run_view(
    slot: int,
    name: str,
    run: StoredRun,
    rows: Mapping[str, DevRows],
    reasons: Mapping[str, str],
    routing: Routing | None,
    with_data: bool,
) -> dict:
    """Return what the page shows of one run by itself."""
    many = len(run.tasks) > MANY_TASKS
    panels, note = load_panels(run.parts[0]) if len(run.parts) == 1 else ([], "")
    return {
        "slot": slot,
        "name": name,
        "run": run,
        "tasks": [_task_view(run, task, rows.get(task), 3 if many else 5) for task in run.tasks],
        "reasons": _gathered(reasons),
        "with_data": with_data,
        "loads": panels,
        "experts": _expert_names(run),
        "load_note": note,
        "drift": drift(run.parts[0]) if len(run.parts) == 1 else None,
        "routing": routing and _routing_view(name, routing),
        "environment": environment_facts(run),
        "config": run.config_text,
    }


def _expert_names(run: StoredRun) -> list[str]:
    loads_SLE = run.parts[0].course.loads_SLE
    return [f"expert {e}" for e in range(0 if loads_SLE is None else loads_SLE.shape[2])]


def _task_view(run: StoredRun, task: str, rows: DevRows | None, most: int) -> dict:
    """Return a task's answers as the page shows them; "answers" is None where there are none."""
    result = run.results.get("tasks", {}).get(task)
    found, spec = run.predictions.get(task), run.specs.get(task)
    answers = read_answers(found, spec) if found is not None else None
    view: dict = dict.fromkeys(("points", "confusion", "mistakes", "worst"))
    view |= {"name": task, "result": result, "answers": answers, "kind": found and found.kind}
    if answers is None:
        return view
    if answers.numbers is not None:
        view["points"] = points(f"{task}: right and given numbers", *answers.numbers)
    if answers.confusion is not None:
        classes = answers.confusion.classes
        view["confusion"] = _confusion(answers) if len(classes) <= MOST_CLASSES + 1 else None
        view["mistakes"] = answers.confusion.mistakes()
    if rows is not None and spec is not None:
        view["worst"] = [
            {
                "number": example,
                "loss": float(answers.losses_U[example]),
                "right": answers.right[example],
                "given": answers.given[example],
                "texts": [(c, _cut(t)) for c, t in rows.text_of(spec, example)],
            }
            for example in answers.worst(most)
        ]
    return view


def _confusion(answers: Answers) -> Heat:
    counts_KK, classes = answers.confusion.counts_KK, answers.confusion.classes
    shares_KK = counts_KK / np.maximum(counts_KK.sum(axis=1, keepdims=True), 1)
    return heat(
        "right class",
        classes,
        classes,
        counts_KK,
        1,
        "{:d}",
        across="answered class",
        shades=shares_KK,
        long_columns=len(classes) > 6,
    )


def _routing_view(name: str, routing: Routing) -> dict:
    view: dict = {"numbers": routing, "why_not": routing.why_not}
    if routing.routes is not None:
        tasks = range(len(routing.routes.tasks))
        order = routing.by_routes.order if routing.by_routes is not None else tasks
        view["routes"] = routes_table(routing.routes, order)
    for key in ("by_routes", "by_gates"):
        similarity = getattr(routing, key)
        if similarity is not None:
            title = f"{name}: tree of tasks, {key.replace('_', ' ')}"
            view[key] = {"tree": tree(title, similarity), "table": distances_table(similarity)}
    if routing.experts is not None:
        names = [name for name, _ in view["routes"].rows] if "routes" in view else ()
        view["experts"] = experts_table(routing.experts, routing.layers, names)
        view["unit"] = experts_unit(routing.experts)
    return view


def _score_charts(names: Sequence[str], board: Scoreboard) -> list[Panel]:
    rows = [*board.rows, *([board.mean] if board.mean is not None else [])]
    if not rows:
        return []
    scores = [
        (row.task, [(i, names[i], one) for i, one in enumerate(row.scores) if one is not None])
        for row in rows
    ]
    charts = [Panel("Scores, 95% intervals", intervals("scores by task", scores, zero=False))]
    deltas = [
        (row.task, [(i, names[i], one) for i, one in enumerate(row.deltas, 1) if one is not None])
        for row in rows
    ]
    deltas = [row for row in deltas if row[1]]
    if deltas:
        title = f"Differences to {names[0]}, 95% intervals"
        charts.append(Panel(title, intervals("differences by task", deltas, zero=True)))
    return charts


def _run_numbers(name: str, run: StoredRun, routing: Routing | None) -> dict:
    part = run.parts[0]
    return {
        "name": name,
        "folder": str(run.folder),
        "kind": run.kind,
        "state": run.state,
        "tasks": dict(run.results.get("tasks", {})),
        "last": {key: float(values[-1]) for key, (_, values) in part.course.series.items()},
        "balance": part.course.balance(),
        "routing": routing and routing.to_dict(),
    }


def _gathered(reasons: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return (tasks, why their texts are not shown), tasks of one reason together."""
    found: dict[str, list[str]] = {}
    for task, reason in reasons.items():
        found.setdefault(reason, []).append(task)
    return [(", ".join(tasks), reason) for reason, tasks in found.items()]


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}…"
