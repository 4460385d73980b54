"""A study's page and pictures, made from its lines alone."""

import numpy as np
import pytest

from ds_moe_mtl.config import UserError
from ds_moe_mtl.evaluation.bootstrap import Interval
from ds_moe_mtl.studies.evidence.report import _verdict, write_report
from ds_moe_mtl.studies.lines import append_run
from tests.support.units import make_run, make_units

ROWS = 120


def append(
    path, stage, system, seed, point, skill, failure=None, more=(), tasks=("one", "two"), start=None
):
    draw = np.random.default_rng([seed, int(1000 * skill)])
    truth = np.arange(ROWS) % 2
    units, data = {}, "x1" if len(tasks) == 2 else tasks[0]
    for task in tasks:
        wrong = draw.random(ROWS) > skill
        units[task] = make_units(truth, np.where(wrong, 1 - truth, truth))
    run = make_run(seed, units)
    tasks = {
        name: {"metric": "accuracy", "value": value, "examples": ROWS}
        for name, value in run.values.items()
    }
    line = {
        "run": f"{stage}/{data}/{system}/lr/seed{seed}" + (f"/{point}" if stage == "tune" else ""),
        "study": "made_up",
        "stage": stage,
        "grid": stage == "tune",
        "overrides": ["model.kind=x", *more, f"train.lr={point}", f"run.seed={seed}"],
        "data": data,
        "start": start,
        "system": system,
        "point": [f"train.lr={point}"],
        "seed": seed,
        "baseline": "dense",
        "machine": "a machine",
        "commit": "abc",
        "seconds": 36.0,
        "encoder": {"name": "minilm", "sha256": "e"} if failure is None else None,
        "steps": 226,
        "failure": failure,
        "mean": None if failure else sum(run.values.values()) / len(tasks),
        "tasks": {} if failure else tasks,
    }
    append_run(path, line, {} if failure else units)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("evidence") / "made_up.jsonl"
    for system in ("dense", "tag"):
        for point, skill in (("3e-4", 0.8), ("5e-5", 0.6), ("1e-4", 0.7)):
            append(path, "tune", system, 100, point, skill)
    for seed in range(3):
        append(path, "screen", "dense", seed, "3e-4", 0.62)
        append(path, "screen", "tag", seed, "3e-4", 0.86)
        append(path, "screen", "wild", seed, "3e-4", 0.6, "diverged" if seed == 1 else None)
    append(path, "screen", "dense", 2, "3e-4", 0.62)  # made again
    append(path, "screen", "tag", 3, "1e-4", 0.5)  # at another rate, and then at its own
    append(path, "screen", "tag", 4, "3e-4", 0.5, more=["moe.num_experts=2"])
    append(path, "screen", "tag", 2, "3e-4", 0.86)
    written = write_report(path)
    return path, written, written[0].read_text()


def test_the_page_has_every_system_with_seeds_interval_and_maximum(page):
    path, written, text = page
    assert [file.name for file in written] == [
        *("made_up.md", "made_up_differences.png", "made_up_scores.png"),
    ]
    assert all(file.stat().st_size > 200 for file in written)
    scores = text.partition("## screen, x1")[2].partition("Less dense")[0]
    rows = [line.split("|")[1:5] for line in scores.splitlines() if line.startswith("| ")][1:]
    assert [(row[0].strip(), row[2].strip()) for row in rows] == [
        *(("tag", "3"), ("dense", "3"), ("wild", "2")),
    ]
    assert "- screen/x1/wild/lr/seed1: diverged" in scores
    assert "Diverged: 1 of 15 runs" in text and "Left out: 4 older lines" in text
    assert "sources abc" in text and "minilm" in text and "0.1 h of runs" in text


def test_what_is_shown_and_what_is_not_is_said_in_words(page):
    differences = page[2].partition("Less dense, ")[2].partition("## tune")[0]
    tag, wild = (
        next(line for line in differences.splitlines() if line.startswith(f"| {name} |"))
        for name in ("tag", "wild")
    )
    assert "| better |" in tag and tag.count("**") == 6
    assert "| no difference shown |" in wild and "| 2 |" in wild
    assert "- wild: not paired: dense, seed 1" in differences
    assert "| mean of seed | 0 | 1 | 2 |" in differences and "| - |" in differences


@pytest.mark.parametrize(
    ("mean", "tasks", "words"),
    [
        ((3.0, 0.5, 5.5), [(4.0, 1.0, 7.0), (-2.0, -6.0, 2.0)], "better"),
        ((0.6, 0.2, 1.0), [(0.6, 0.2, 1.0)], "above 0, but by less than 1.0"),
        ((3.0, 0.5, 5.5), [(9.0, 5.0, 13.0), (-3.0, -5.0, -1.0)], "above 0, but a task is worse"),
        ((3.0, 0.5, 5.5), [(7.0, 1.0, 13.0), (-0.5, -0.9, -0.1)], "better"),
        ((-1.0, -1.5, -0.5), [(-1.0, -1.5, -0.5)], "worse"),
        ((3.0, -0.5, 6.5), [(3.0, -0.5, 6.5)], "no difference shown"),
    ],
)
def test_a_verdict_is_what_the_protocol_calls_so(mean, tasks, words):
    assert _verdict(Interval(*mean), [Interval(*task) for task in tasks], 3) == words
    assert _verdict(Interval(*mean), [], 1) == "one seed, no claim"


def test_the_grid_says_which_rate_was_best_and_that_it_is_at_an_end(page):
    grid = page[2].partition("## tune, x1: the grid")[2]
    assert "| system | lr=5e-5 | lr=1e-4 | lr=3e-4 |" in grid
    assert grid.count("(end) |") == 2 and "at an end of the grid" in grid


def test_the_same_lines_make_the_same_page(page):
    path, _, text = page
    write_report(path)
    assert path.with_suffix(".md").read_text() == text


def two(path, system, seed, task, skill, recipe=None, failure=None):
    """Append a run of one task, that began with the model of a recipe."""
    start = {"run": f"one/all/{system}/lr/seed{seed}", "recipe": recipe, "sha256": recipe}
    its = None if recipe is None else start
    append(path, "two", system, seed, "3e-4", skill, failure, tasks=(task,), start=its)


def test_tasks_of_a_stage_stay_apart_until_a_seed_has_all(tmp_path):
    path = tmp_path / "two.jsonl"
    for seed in range(2):
        two(path, "dense", seed, "one", 0.6)
        two(path, "tag", seed, "one", 0.9, "new")
    two(path, "tag", 0, "two", 0.9, "new")
    page = write_report(path)[0].read_text()
    assert "## two, one\n" in page and "## two, two\n" in page and "Less dense" in page
    for seed in range(2):
        two(path, "dense", seed, "two", 0.6)
    two(path, "tag", 1, "two", 0.9, "new", failure="loss is nan")
    page = write_report(path)[0].read_text()
    assert "## two, one + two\n" in page
    assert "- two/two/tag/lr/seed1: loss is nan" in page
    assert "- tag, seed 1, counts in no mean: there is no run of two" in page
    (row,) = [line for line in page.splitlines() if line.startswith("| tag | lr=3e-4 | 1 |")]
    assert len(row.split("|")) == 12


def test_runs_from_an_older_first_stage_are_left_out(tmp_path):
    path = tmp_path / "two.jsonl"
    for seed in range(2):
        for task in ("one", "two"):
            two(path, "dense", seed, task, 0.6)
            two(path, "tag", seed, task, 0.9, "old")
    two(path, "tag", 0, "one", 0.9, "new")
    page = write_report(path)[0].read_text()
    assert "Left out: 4 older lines" in page and "## two, one\n" in page


def test_a_stage_of_failures_alone_is_a_table_too(tmp_path):
    path = tmp_path / "two.jsonl"
    two(path, "tag", 0, "one", 0.9, failure="loss is nan")
    page = write_report(path)[0].read_text()
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert len({row.count("|") for row in rows}) == 1


def test_no_lines_are_refused(tmp_path):
    with pytest.raises(UserError, match="no lines of finished runs"):
        write_report(tmp_path / "none.jsonl")
