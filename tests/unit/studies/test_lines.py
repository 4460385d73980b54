"""Lines of evidence: what is kept of a run, torn lines, several writers."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from ds_moe_mtl.config import UserError
from ds_moe_mtl.studies.lines import append_run, read_evidence
from tests.support.units import make_units


def append(path, name, answer, truth=(0, 1, 2, 1)):
    units = {"a": make_units(truth, answer)}
    tasks = {"a": {"metric": "accuracy", "value": 50.0, "examples": len(truth)}}
    append_run(path, {"run": name, "tasks": tasks}, units)
    return units["a"]


def test_a_run_comes_back_with_its_rows_and_rows_are_kept_once(tmp_path):
    path = tmp_path / "deep" / "study.jsonl"
    written = [append(path, "one", [0, 1, 1, 1]), append(path, "two", [2, 2, 2, 2])]
    found = read_evidence(path)
    assert [run["run"] for run in found.runs] == ["one", "two"] and len(found.dev) == 1
    for run, units in zip(found.runs, written, strict=True):
        again = found.units(run)["a"]
        for name in ("truth_U", "answer_U", "parts_U", "ids_U"):
            assert np.array_equal(getattr(again, name), getattr(units, name)), name
        assert (again.metric, again.sha256) == (units.metric, units.sha256)


def test_numbers_come_back_as_they_were(tmp_path):
    units = make_units(np.array([0.25, 1.5], np.float32), np.array([-1e-3, 300.0]), "pearson")
    append_run(tmp_path / "s.jsonl", {"run": "r", "tasks": {"a": {}}}, {"a": units})
    found = read_evidence(tmp_path / "s.jsonl")
    again = found.units(found.runs[0])["a"]
    assert np.array_equal(again.answer_U, units.answer_U) and again.truth_U.dtype == np.float32


def test_what_a_killed_process_left_of_a_line_is_passed_over_and_the_next_starts_anew(tmp_path):
    path = tmp_path / "study.jsonl"
    append(path, "one", [0, 1, 1, 1])
    whole = path.read_text()
    path.write_text(whole + whole.splitlines()[-1][:40])
    assert [run["run"] for run in read_evidence(path).runs] == ["one"]
    append(path, "two", [0, 0, 0, 0])
    assert [run["run"] for run in read_evidence(path).runs] == ["one", "two"]


def test_lines_of_several_writers_do_not_mix(tmp_path):
    path = tmp_path / "study.jsonl"
    truths = [np.arange(500) % (2 + number) for number in range(12)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda n: append(path, f"run {n}", truths[n], truths[n]), range(12)))
    found = read_evidence(path)
    assert sorted(run["run"] for run in found.runs) == sorted(f"run {n}" for n in range(12))
    assert all(json.loads(line) for line in path.read_text().splitlines())
    assert all(found.units(run) for run in found.runs)


def test_no_file_is_no_lines_and_another_file_is_refused(tmp_path):
    assert read_evidence(tmp_path / "none.jsonl").runs == []
    (tmp_path / "list.jsonl").write_text("[1, 2]\n")
    with pytest.raises(UserError, match="list.jsonl:1: no line of a study"):
        read_evidence(tmp_path / "list.jsonl")
