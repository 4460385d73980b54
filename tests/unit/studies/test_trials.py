"""Grids and seeds: which runs they make, how they are ranked, whose model stays."""

import json

import pytest

from ds_moe_mtl.studies.points import point_name
from ds_moe_mtl.studies.trials import (
    Trial,
    best_run,
    drop_models,
    leaderboard,
    make_trials,
)
from tests.support.tiny import tiny_config, write_tiny


def done(folder, point, seed, value, steps=10):
    config = tiny_config(
        write_tiny(folder), run={"dir": str(folder / point_name(point) / str(seed))}
    )
    trial = Trial(point, seed, config)
    (trial.folder / "model").mkdir(parents=True)
    results = {"tasks": {"a": {"value": value}}, "steps": steps, "best_step": 5}
    (trial.folder / "results.json").write_text(json.dumps(results))
    return trial


def test_a_grid_is_every_combination_with_every_seed_in_folders_of_their_own(tmp_path):
    write_tiny(tmp_path)
    asked = []

    def make(overrides):
        asked.append(list(overrides))
        return tiny_config(tmp_path, run={"dir": overrides[-1].partition("=")[2]})

    trials = make_trials(make, tmp_path, {"train.lr": ["1", "2"], "train.steps": ["3", "4"]}, 2)
    assert len(trials) == 8 and len({trial.folder for trial in trials}) == 8
    assert asked[3] == [
        "train.lr=1",
        "train.steps=4",
        "run.seed=1",
        f"run.dir={tmp_path / 'lr=1,steps=4' / 'seed1'}",
    ]
    assert [trial.seed for trial in make_trials(make, tmp_path, {}, 3)] == [0, 1, 2]
    assert point_name(()) == "default"


def test_values_with_a_point_in_them_have_folders_of_their_own():
    assert point_name(["train.warmup=0.1", "moe.jitter=2.5e-1"]) == "warmup=0.1,jitter=2.5e-1"
    assert point_name(["train.clip=0.5"]) != point_name(["train.clip=1.5"])


def test_points_are_ranked_by_the_mean_with_seeds_deviation_and_maximum(tmp_path):
    low, high = ("train.lr=1",), ("train.lr=2",)
    trials = [
        *(done(tmp_path, low, seed, value) for seed, value in enumerate([70.0, 72.0, 74.0])),
        *(done(tmp_path, high, seed, value) for seed, value in enumerate([60.0, 75.0])),
    ]
    rows = leaderboard(trials)
    assert [row["point"] for row in rows] == [list(low), list(high)]
    assert rows[0]["max"] == 74.0 and rows[0]["mean"] == 72.0 and rows[0]["std"] == 2.0
    assert (rows[0]["n"], rows[1]["n"]) == (3, 2)
    assert rows[1]["seeds"][1]["value"] == 75.0 and rows[1]["seeds"][0]["best_step"] == 5
    row, seed = best_run(rows)  # the paper's: the maximum over all, not of the first row
    assert row["point"] == list(high) and seed["value"] == 75.0


def test_one_seed_has_no_spread_and_a_run_that_is_not_done_no_row(tmp_path):
    trial = done(tmp_path, (), 0, 50.0)
    later = Trial(("train.lr=9",), 0, tiny_config(tmp_path, run={"dir": str(tmp_path / "later")}))
    (row,) = leaderboard([trial, later])
    assert row["std"] is None and row["max"] == row["mean"] == 50.0


@pytest.mark.parametrize(("keep", "left"), [("best", [1]), ("all", [0, 1]), ("none", [])])
def test_models_that_are_not_to_stay_go(tmp_path, keep, left):
    trials = [done(tmp_path, (), seed, value) for seed, value in enumerate([50.0, 60.0])]
    drop_models(trials, keep)
    assert [t.seed for t in trials if (t.folder / "model").exists()] == left
    assert all(trial.results is not None for trial in trials)
