"""What a run's tasks hold, as hashes: how a run knows that its data has changed under it.

The hash of a split is over its tokens, labels and questions: everything that training and scoring
read. The number of ranks, the cache and the place of a file change none of it.
"""

from collections.abc import Mapping
from pathlib import Path

from ds_moe_mtl.config import RunConfig, UserError
from ds_moe_mtl.training.plan import RunPlan, make_plan, task_specs

WHAT_TO_DO = (
    "put the data back, set another run.dir, or start afresh with run.resume=never "
    "(what is there is kept aside)"
)


def data_changes(stored: Mapping, here: Mapping) -> str:
    """Return in words which tasks' data differs, "" if none: `RunPlan.contents` of then and now."""
    changed = []
    for task in {**stored, **here}:
        before, now = stored.get(task), here.get(task)
        if before is None or now is None:
            changed.append(f"{task} (only {'here' if before is None else 'there'})")
            continue
        parts = [f"{split} rows" for split in ("train", "dev") if before[split] != now[split]]
        if before["classes"] != now["classes"]:
            classes = " and ".join(
                f"{_listed(each['classes'])} {place}"
                for each, place in ((before, "then"), (now, "now"))
            )
            parts.append(f"classes {classes}")
        if parts:
            changed.append(f"{task} ({', '.join(parts)})")
    return "; ".join(changed)


def refuse_other_data(done: Mapping | None, plan: RunPlan) -> None:
    """Raise UserError where a finished run's results are of other data than the plan's."""
    if done is None or "data" not in done:
        return
    changes = data_changes(done["data"], plan.contents)
    if changes:
        raise UserError(
            f"run.dir: {plan.config.run.dir} is complete, but the data has changed since: "
            f"{changes}; {WHAT_TO_DO}"
        )


def compare_finished(done: Mapping, config: RunConfig) -> str:
    """Return "" where a finished run's data is what it was, or why that cannot be known.

    Raises UserError, naming the tasks, where the data has changed since.
    """
    if "data" not in done:
        file = Path(config.run.dir) / "results.json"
        return f"note: {file} is of before data was recorded: it was not compared"
    try:
        plan = make_plan(config, task_specs(config), lambda line: None)
    except UserError as error:
        return f"note: the run's data could not be compared ({error})"
    refuse_other_data(done, plan)
    return ""


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:8]) or "none"
    return shown if len(names) <= 8 else f"{shown}, ... ({len(names)} in all)"
