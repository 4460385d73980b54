"""results.json: the proof of a finished run."""

import math
from collections.abc import Mapping

from ds_moe_mtl.config.levers import SPARSE_KINDS
from ds_moe_mtl.data import SUBSTITUTE
from ds_moe_mtl.data.describe import leaks
from ds_moe_mtl.tasks import TaskSpec
from ds_moe_mtl.tasks.known import is_paper_small
from ds_moe_mtl.training.plan import RunPlan


def run_results(
    plan: RunPlan,
    scores: Mapping[str, dict],
    encoder_sha256: str,
    steps: int | None = None,
    best_step: int | None = None,
) -> dict:
    """Return results.json of one run: scores in percent, averages, and what they stand on.

    steps: taken (None: all that were planned). best_step: whose model was kept, where not the last.
    """
    config = plan.config
    return {
        "tasks": dict(scores),
        **averages(scores, plan.specs),
        "steps": plan.total_steps if steps is None else steps,
        "best_step": best_step,
        "start": _start_facts(plan, encoder_sha256),
        "model_kind": config.model.kind,
        "gate_scale": config.moe.gate_scale if config.model.kind in SPARSE_KINDS else None,
        "seed": config.run.seed,
        "encoder": encoder_facts(plan, encoder_sha256),
        "data": plan.contents,
        "notes": data_notes(plan),
    }


def encoder_facts(plan: RunPlan, sha256: str) -> dict:
    """Return which pretrained encoder a run goes back to: what results and model folders say of it.

    sha256: of the weights that the run began with; in stage two those are another model's, and the
    encoder is that model's own, so that runs of both stages can be told to share it.
    """
    return {"name": plan.source.resolved, "sha256": plan.source.began_sha256 or sha256}


def _start_facts(plan: RunPlan, sha256: str) -> dict | None:
    """Return which trained model a run began with, its weights' checksum with it; or None."""
    start = plan.config.start
    return None if start.model is None else {**start.model_dump(mode="json"), "sha256": sha256}


def gather_results(parts: Mapping[str, dict], specs: list[TaskSpec]) -> dict:
    """Return one results.json for single-task runs, from theirs by task name."""
    scores = {name: part["tasks"][name] for name, part in parts.items()}
    first = dict(next(iter(parts.values())))
    first.pop("data", None)
    return {
        **first,
        "tasks": scores,
        **averages(scores, specs),
        "steps": sum(part["steps"] for part in parts.values()),
        **_gathered_data(parts),
        **_gathered_test(parts),
        "notes": [note for part in parts.values() for note in part["notes"]],
    }


def _gathered_data(parts: Mapping[str, dict]) -> dict:
    """Return the data of all parts, or nothing where a part is of before it was recorded."""
    if any("data" not in part for part in parts.values()):
        return {}
    return {"data": {name: part["data"][name] for name, part in parts.items()}}


def _gathered_test(parts: Mapping[str, dict]) -> dict:
    """Return the test results of all parts, or nothing where no part has any."""
    test = {name: value for part in parts.values() for name, value in part.get("test", {}).items()}
    return {"test": test} if test else {}


def averages(scores: Mapping[str, dict], specs: list[TaskSpec]) -> dict:
    """Return the means over the papers' small tasks (None where there is none) and over all."""
    small = [scores[spec.name]["value"] for spec in specs if is_paper_small(spec)]
    every = [result["value"] for result in scores.values()]
    return {
        "small_tasks": math.fsum(small) / len(small) if small else None,
        "all_tasks": math.fsum(every) / len(every),
    }


def data_notes(plan: RunPlan) -> list[str]:
    """Return what a reader of the scores must know: subsets, leaks, contaminated tasks."""
    notes = []
    sample = plan.config.data.sample or 1
    for spec, split in zip(plan.specs, plan.train, strict=True):
        wanted = round(sample * spec.published_size)
        of = f"{spec.published_size:,} published examples"
        if sample < 1:
            of = f"the {wanted:,} examples of a {100 * sample:g}% sample"
        if SUBSTITUTE in split.origin:
            notes.append(
                f"{spec.name}: trained on {split.num_examples:,} examples that are NOT the "
                f"published {spec.published_size:,}"
            )
        elif not spec.is_own and split.num_examples < wanted:
            notes.append(f"{spec.name}: trained on {split.num_examples:,} of {of}")
    for spec, train, split in zip(plan.specs, plan.train, plan.test, strict=True):
        if split is not None:
            notes += [f"{spec.name}: {leak}" for leak in leaks(spec, train, split, "test")]
    for spec, train, split in zip(plan.specs, plan.train, plan.dev, strict=True):
        notes += [f"{spec.name}: {leak}" for leak in leaks(spec, train, split)]
        if SUBSTITUTE in split.origin:
            notes.append(f"{spec.name}: scored on {split.num_examples:,} examples of another set")
        elif split.num_examples < spec.published_dev_size:
            notes.append(
                f"{spec.name}: scored on {split.num_examples:,} of "
                f"{spec.published_dev_size:,} published dev examples"
            )
    if plan.contaminated:
        notes.append(
            f"{plan.source.resolved} has seen, or may have seen, data of: "
            f"{', '.join(plan.contaminated)}"
        )
    return notes
