"""Comparisons: worked by hand, in both directions, what pairs and what does not, the command."""

import json
from dataclasses import replace

import numpy as np
import pytest

from ds_moe_mtl.cli.compare import main
from ds_moe_mtl.config import UserError
from ds_moe_mtl.studies.compare import compare_runs, mean_interval, render
from ds_moe_mtl.studies.lines import append_run
from tests.support.units import make_run, make_units

RIGHT = np.ones(4, int)
HALF = np.array([1, 1, 0, 0])
NONE = np.zeros(4, int)


def run_of(seed, *answers, **more):
    """A run with tasks a, b, ... that has given these answers where all should be 1."""
    units = {name: make_units(RIGHT, answer) for name, answer in zip("abc", answers, strict=False)}
    return make_run(seed, units, **more)


def random_run(seed, skill, rows=80):
    draw = np.random.default_rng([seed, int(100 * skill)])
    truth = np.arange(rows) % 2
    units = {}
    for name in ("a", "b"):
        wrong = draw.random(rows) > skill
        units[name] = make_units(truth, np.where(wrong, 1 - truth, truth), "matthews")
    return make_run(seed, units)


def test_a_case_worked_by_hand():
    # Seed 1: a 100 against 50, b 100 against 100. Seed 2: a 50 against 50, b 100 against 0.
    left = [run_of(1, RIGHT, RIGHT), run_of(2, HALF, RIGHT)]
    right = [run_of(1, HALF, RIGHT), run_of(2, HALF, NONE)]
    found = compare_runs(left, right, ("new", "old"), draws=500)
    a, b = found.tasks
    assert (a.left, a.right, a.difference.value) == (75, 50, 25)
    assert (b.left, b.right, b.difference.value) == (100, 50, 50)
    assert found.mean.difference.value == 37.5 and (found.mean.left, found.mean.right) == (87.5, 50)
    # b has no noise of rows: its seeds' 0 and 100 give 50 -+ 50, times t over z at one degree.
    assert b.difference.low == pytest.approx(50 - 50 * 12.7062 / 1.95996, rel=1e-4)
    text = render(found)
    assert "| b | accuracy | 4 | 100.0 | 50.0 | +50.00 |" in text and "2 paired seed" in text


def test_a_difference_in_every_seed_and_row_excludes_zero_and_nothing_else_does():
    left = [run_of(seed, RIGHT, HALF) for seed in range(3)]
    right = [run_of(seed, NONE, HALF) for seed in range(3)]
    found = compare_runs(left, right, draws=200)
    a, b = (row.difference for row in found.tasks)
    assert (a.low, a.value, a.high) == (100, 100, 100) and a.excludes_zero
    assert (b.low, b.value, b.high) == (0, 0, 0) and not b.excludes_zero
    assert "+100.00 to +100.00 *" in render(found)


def test_swapping_the_sides_flips_every_sign():
    left = [random_run(seed, 0.8) for seed in range(4)]
    right = [random_run(seed, 0.7) for seed in range(4)]
    one, other = compare_runs(left, right, draws=300), compare_runs(right, left, draws=300)
    for mine, theirs in zip((*one.tasks, one.mean), (*other.tasks, other.mean), strict=True):
        here, there = mine.difference, theirs.difference
        assert (here.value, here.low) == pytest.approx((-there.value, -there.high))
        assert (mine.left, mine.right) == pytest.approx((theirs.right, theirs.left))


def test_runs_are_paired_by_seed_whatever_their_order_and_the_rest_is_named():
    left = [random_run(seed, 0.8) for seed in (3, 1, 2)]
    right = [random_run(seed, 0.7) for seed in (1, 2, 9)]
    found = compare_runs(left, right, ("new", "old"), draws=100)
    assert found.seeds == (1, 2)
    assert found.notes[:2] == ("not paired: new, seed 3", "not paired: old, seed 9")
    assert found.mean == compare_runs(left[1:], right[:2], draws=100).mean


def test_one_seed_says_that_its_interval_is_of_rows_alone():
    found = compare_runs([random_run(0, 0.8)], [random_run(0, 0.6)], draws=200)
    assert "over dev rows alone" in found.notes[0]
    assert found.mean.difference.low < found.mean.difference.value < found.mean.difference.high


def test_unequal_steps_are_named():
    found = compare_runs([run_of(0, HALF, steps=20)], [run_of(0, HALF)], draws=10)
    assert "not of equal length: 20 steps against 10" in found.notes


def test_runs_of_a_seed_with_tasks_of_their_own_count_as_one_in_any_order():
    left = [random_run(seed, 0.8) for seed in range(2)]
    parts = [run_of_task(run, task) for run in left for task in ("b", "a")]
    right = [random_run(seed, 0.6) for seed in range(3)]
    whole, found = compare_runs(left, right), compare_runs(parts, right)
    assert (found.mean, found.tasks) == (whole.mean, whole.tasks)
    assert "left: 2 runs a seed, of different tasks, count as one" in found.notes
    found = compare_runs(parts[:-1], right)
    assert found.seeds == (0,) and "left, seed 1: there is no run of a" in found.notes


def test_what_sides_began_with_is_said():
    left, right = ([random_run(seed, skill) for seed in range(2)] for skill in (0.8, 0.6))
    a, b = ([replace(run, starts=frozenset([name])) for run in left] for name in "AB")
    assert compare_runs(left, right, draws=20).notes == ()
    words = "left went on from trained models, whose steps are not counted here; right began"
    assert compare_runs(a, right, draws=20).notes[0].startswith(words)
    own = "each side went on from trained models of its own"
    assert compare_runs(a, b, draws=20).notes == (own,)
    mixed = compare_runs([a[0], left[1]], right, draws=20).notes
    assert mixed == ("left: some runs began with the encoder, some with a trained model",)


def test_the_order_of_runs_changes_no_interval():
    runs = [random_run(seed, 0.8) for seed in range(4)]
    assert mean_interval(runs) == mean_interval(runs[::-1])


def run_of_task(run, task):
    keys = ("metrics", "values", "units")
    return replace(run, **{key: {task: getattr(run, key)[task]} for key in keys})


@pytest.mark.parametrize(
    ("right", "words"),
    [
        ([run_of(7, HALF)], "no seed is on both sides; left: 0; right: 7"),
        ([run_of(0, HALF), run_of(0, NONE)], "both have seed 0"),
        ([run_of(0, HALF, HALF)], "tasks a, b; the others have a"),
        ([run_of(0, HALF, encoder="f")], "start from different encoders"),
        ([make_run(0, {"a": make_units([1, 1, 1], [1, 0, 1])})], "scored on different rows of a"),
    ],
)
def test_what_does_not_pair_is_refused_in_one_line(right, words):
    with pytest.raises(UserError, match=words):
        compare_runs([run_of(0, HALF)], right)


def test_one_systems_mean_has_an_interval_too():
    found = mean_interval([run_of(seed, HALF, RIGHT) for seed in range(3)], draws=300)
    assert found.value == 75 and found.low < 75 < found.high <= 100


@pytest.fixture
def lines(tmp_path):
    """A study's lines: two systems, three seeds."""
    path = tmp_path / "study.jsonl"
    for system, skill in (("new", 0.9), ("old", 0.6)):
        for seed in range(3):
            run = random_run(seed, skill)
            tasks = {
                name: {"metric": "matthews", "value": value, "examples": 80}
                for name, value in run.values.items()
            }
            line = {"run": f"final/all/{system}/default/seed{seed}", "seed": seed, "steps": 10}
            line |= {"encoder": {"sha256": "e"}, "failure": None, "tasks": tasks}
            append_run(path, line, run.units)
    return path


def test_the_command_compares_a_studys_lines_and_draws_them(lines, tmp_path, capsys):
    sides = [f"{lines}:final/all/new", "--", f"{lines}:final/all/old"]
    picture = tmp_path / "forest.png"
    assert main([*sides, "--json", "--plot", str(picture), "--names", "new,old"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["seeds"] == [0, 1, 2] and told["left"] == "new" and picture.stat().st_size > 5000
    expected = compare_runs(
        *([random_run(seed, skill) for seed in range(3)] for skill in (0.9, 0.6)), ("new", "old")
    )
    assert told == json.loads(json.dumps(expected.to_dict()))
    assert main(["--names", "new,old", *sides]) == 0
    assert "| mean |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["{lines}:final"], "a side has no runs"),
        (["{lines}:finale", "--", "{lines}:final"], "no such run among the 6 of"),
        (["{lines}:final", "--", "{lines}:final"], "both have seed 0"),
        (["{folder}", "--", "{lines}:final/all/new"], "no results.json"),
        (["--names", "one", "{lines}:final", "--", "a"], "--names one; allowed: two"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(lines, tmp_path, capsys, words, told):
    asked = [word.format(lines=lines, folder=tmp_path) for word in words]
    assert main(asked) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1
