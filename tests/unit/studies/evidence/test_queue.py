"""A study run by real processes: lines as runs end, kill -9, models dropped, the same evidence,
and a second stage from the models of a first.
"""

import fcntl
import json
import os
import shutil
import signal

import psutil
import pytest

from ds_moe_mtl.cli import main
from ds_moe_mtl.config import UserError, dump_config
from ds_moe_mtl.config.document import dump_yaml
from ds_moe_mtl.models.description import read_description, read_state
from ds_moe_mtl.models.pretrained import state_hash
from ds_moe_mtl.studies.compare import compare_runs, find_runs
from ds_moe_mtl.studies.evidence.report import write_report
from ds_moe_mtl.studies.lines import read_evidence
from tests.support.launch import LIMIT, start
from tests.support.paths import ROOT
from tests.support.tiny import tiny_config, write_tiny

COMMAND = ROOT / "tests" / "support" / "one_command.py"


def write_study(folder):
    """Write a study of two systems with one seed over the tiny tasks; return its YAML."""
    zero1 = str(ROOT / "ds_configs/deepspeed/zero1.json")
    (folder / "base.yaml").write_text(dump_config(tiny_config(folder, deepspeed=zero1)))
    study = {
        "about": "two tiny systems",
        "experiment": str(folder / "base.yaml"),
        "set": ["train.steps=2"],
        "baseline": "dense",
        "systems": {"dense": ["model.kind=mt_dense"], "tag": ["model.kind=mt_tag"]},
        "stages": {"screen": {"seeds": [0]}},
    }
    (folder / "tiny.yaml").write_text(dump_yaml(study))
    return folder / "tiny.yaml"


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A study whose queue was killed with -9 in its second run, and started again."""
    folder = write_tiny(tmp_path_factory.mktemp("study"))
    lines, runs = folder / "lines.jsonl", folder / "runs"
    words = ["study", write_study(folder), "--output", lines, "--runs", runs, "--nice", "0"]

    def in_second_run():
        return lines.exists() and len(list((runs / "logs").glob("*tag*.log"))) == 1

    with start([COMMAND, *words], 1, "python") as queue:
        queue.wait_until(in_second_run)
        (child,) = psutil.Process(queue.process.pid).children()
        first = lines.read_text()
        os.kill(queue.process.pid, signal.SIGKILL)
        queue.process.wait()
        psutil.wait_procs([child], LIMIT / 4)
        orphans = child.is_running() and child.status() != psutil.STATUS_ZOMBIE
    with start([COMMAND, *words], 1, "python") as queue:
        again = queue.wait()
    return {
        "folder": folder,
        "lines": lines,
        "runs": runs,
        "words": words,
        "first": first,
        "orphans": orphans,
        "again": again,
    }


def test_a_killed_queue_leaves_no_run_behind_and_loses_only_the_one_in_flight(killed):
    again = killed["again"]
    assert again.returncode == 0, again.text
    assert not killed["orphans"]
    assert killed["lines"].read_text().startswith(killed["first"])
    found = read_evidence(killed["lines"]).runs
    assert [line["system"] for line in found] == ["dense", "tag"]
    assert "screen: 1 of 2 runs left" in again.stdout and "runs an hour" in again.stdout


def test_a_line_says_what_ran_where_and_what_came_out(killed):
    line = read_evidence(killed["lines"]).runs[1]
    assert (line["run"], line["seed"]) == ("screen/all/tag/default/seed0", 0)
    assert line["steps"] == 2 and line["seconds"] > 0 and line["failure"] is None
    assert line["overrides"] == ["train.steps=2", "model.kind=mt_tag", "run.seed=0"]
    assert "torch" in line["versions"] and line["machine"]
    (run,) = killed["runs"].glob("screen/all/tag/default/seed0-*")
    results = json.loads((run / "results.json").read_text())
    values = [task["value"] for task in results["tasks"].values()]
    assert line["mean"] == pytest.approx(sum(values) / len(values))
    assert not (run / "model").exists() and not (run / "checkpoints").exists()


def test_lines_compare_as_the_run_folders_do(killed):
    by_folder = [
        find_runs(map(str, killed["runs"].glob(f"screen/all/{s}/*/seed0-*")))
        for s in ("tag", "dense")
    ]
    by_line = [find_runs([f"{killed['lines']}:screen/all/{s}"]) for s in ("tag", "dense")]
    one, other = compare_runs(*by_folder, draws=200), compare_runs(*by_line, draws=200)
    assert one.to_dict() == other.to_dict() and len(one.tasks) == 3


def test_a_finished_study_runs_nothing_and_lists_what_is_done(killed, capsys):
    words = [str(word) for word in killed["words"]]
    before = killed["lines"].read_text()
    assert main(words) == 0 and "runs left" not in capsys.readouterr().out
    assert main([*words, "--list"]) == 0
    listed = capsys.readouterr().out
    assert "screen: 2 of 2 done" in listed and "left: 0.0 h" in listed
    assert killed["lines"].read_text() == before


def test_another_queue_on_the_same_folder_is_refused(killed, capsys):
    with (killed["runs"] / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert main([str(word) for word in killed["words"]]) == 2
    assert "another process runs this study" in capsys.readouterr().err


@pytest.fixture(scope="module")
def two_stages(tmp_path_factory):
    """A study whose second stage tunes two tasks, from a model of the first or from the encoder."""
    folder = write_tiny(tmp_path_factory.mktemp("two_stages"))
    write_study(folder)
    config = tiny_config(folder, deepspeed=str(ROOT / "ds_configs/deepspeed/zero1.json"))
    rows = {row["name"]: row for row in json.loads(config.model_dump_json())["tasks"]}
    alone = {name: [f"tasks=[{json.dumps(rows[name])}]"] for name in ("colour", "amount")}
    study = {
        "about": "two stages",
        "experiment": str(folder / "base.yaml"),
        "set": ["train.steps=2"],
        "baseline": "single",
        "systems": {"single": ["model.kind=single"], "tag": ["model.kind=mt_tag"]},
        "data": {"all": [], **alone},
        "stages": {
            "one": {"seeds": [0], "systems": ["tag"], "data": ["all"]},
            "two": {"seeds": [0], "data": list(alone), "start": "one"},
        },
    }
    (folder / "two.yaml").write_text(dump_yaml(study))
    words = ["study", folder / "two.yaml", "--nice", "0", "--jobs", "2"]
    words += ["--output", folder / "lines.jsonl", "--runs", folder / "runs"]
    assert main([*map(str, words), "--only", "two"]) == 0  # the first stage is not asked for
    with start([COMMAND, *words], 1, "python") as queue:
        ended = queue.wait()
    assert ended.returncode == 0, ended.text
    return folder, [str(word) for word in words]


def results_of(folder, run):
    (file,) = folder.glob(f"runs/{run}-*/results.json")
    return json.loads(file.read_text())


def test_the_second_stage_begins_with_the_models_of_the_first(two_stages):
    folder, _ = two_stages
    lines = {line["run"]: line for line in read_evidence(folder / "lines.jsonl").runs}
    begun = "one/all/tag/default/seed0"
    assert {run: (line["start"] or {}).get("run") for run, line in lines.items()} == {
        begun: None,
        "two/colour/tag/default/seed0": begun,
        "two/amount/tag/default/seed0": begun,
        "two/colour/single/default/seed0": None,
        "two/amount/single/default/seed0": None,
    }
    (model,) = folder.glob(f"runs/{begun}-*/model")
    first = results_of(folder, begun)
    for task in ("colour", "amount"):
        mine = results_of(folder, f"two/{task}/tag/default/seed0")
        assert mine["start"]["sha256"] == state_hash(read_state(model))
        line = lines[f"two/{task}/tag/default/seed0"]
        assert line["start"]["sha256"] == mine["start"]["sha256"]
        assert mine["encoder"] == first["encoder"]
        assert results_of(folder, f"two/{task}/single/default/seed0")["encoder"] == first["encoder"]
    assert read_description(model)["about"]["encoder"] == first["encoder"]
    assert not list(folder.glob("runs/two/**/model"))


def test_a_stage_of_tasks_alone_is_compared_over_all_of_them(two_stages):
    folder, _ = two_stages
    lines = folder / "lines.jsonl"
    sides = [find_runs([f"{lines}:two/*/{system}"]) for system in ("tag", "single")]
    found = compare_runs(*sides, draws=50)
    assert [row.name for row in found.tasks] == ["amount", "colour"] and found.seeds == (0,)
    assert "left: 2 runs a seed, of different tasks, count as one" in found.notes
    assert any(note.startswith("left went on from trained models") for note in found.notes)
    with pytest.raises(UserError, match="are of two systems"):
        find = [f"{lines}:two/colour/tag", f"{lines}:two/amount/single"]
        compare_runs(find_runs(find), sides[1], draws=10)
    page = write_report(lines)[0].read_text()
    assert "## two, amount + colour" in page and "Less single" in page


def test_only_the_second_stage_waits_for_the_first_and_a_lost_model_is_trained_again(
    two_stages, capsys
):
    folder, words = two_stages
    lines = folder / "lines.jsonl"
    whole = lines.read_text()
    rows = whole.splitlines()
    lost = "two/colour/tag/default/seed0"
    lines.write_text("".join(f"{row}\n" for row in rows if f'"run": "{lost}"' not in row))
    shutil.rmtree(next(folder.glob(f"runs/{lost}-*")))
    (model,) = folder.glob("runs/one/all/tag/default/seed0-*/model")
    before = state_hash(read_state(model))
    shutil.rmtree(model)
    assert main([*words, "--only", "two"]) == 0
    told = capsys.readouterr().out
    assert f"not planned yet: {lost}: waits for the model of one/all/tag/default/seed0" in told
    with start([COMMAND, *words], 1, "python") as queue:
        ended = queue.wait()
    assert ended.returncode == 0, ended.text
    assert "one: 1 of 1 runs left" in ended.stdout and "two: 1 of 4 runs left" in ended.stdout
    assert state_hash(read_state(model)) == before
    values = [
        {line["run"]: line["mean"] for line in map(json.loads, text.splitlines()) if "run" in line}
        for text in (whole, lines.read_text())
    ]
    assert values[0] == values[1]


def test_run_folders_that_were_moved_are_gone_on_with(two_stages):
    folder, words = two_stages
    lines = folder / "lines.jsonl"
    whole = lines.read_text().splitlines()
    lost = "two/amount/tag/default/seed0"
    lines.write_text("".join(f"{row}\n" for row in whole if f'"run": "{lost}"' not in row))
    (folder / "runs").rename(folder / "moved")
    words = [str(folder / "moved") if word == str(folder / "runs") else word for word in words]
    with start([COMMAND, *words], 1, "python") as queue:
        ended = queue.wait()
    (folder / "moved").rename(folder / "runs")
    assert ended.returncode == 0, ended.text
    assert "one:" not in ended.stdout and "two: 1 of 4 runs left" in ended.stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["run.seed=7"], "run.seed=7: a study's seeds are those of its stages"),
        (["run.dir=x"], "run.dir=x: a study's folders are --runs"),
        (["--only", "nonsense"], "--only nonsense: no run's name begins so"),
    ],
)
def test_a_mistake_of_the_command_line_is_one_line_and_status_2(killed, capsys, words, told):
    assert main([*map(str, killed["words"]), *words]) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1


def test_a_chain_is_not_begun_in_its_middle(killed, capsys):
    folder = killed["folder"]
    stages = {"a": {"seeds": [0]}, "b": {"seeds": [0], "start": "a"}}
    stages["c"] = {"seeds": [0], "start": "b"}
    study = {"about": "three", "experiment": str(folder / "base.yaml"), "baseline": "dense"}
    study |= {"systems": {"dense": ["model.kind=mt_dense"]}, "stages": stages}
    (folder / "chain.yaml").write_text(dump_yaml(study))
    where = ["--output", str(folder / "chain.jsonl"), "--runs", str(folder / "chain")]
    words = ["study", str(folder / "chain.yaml"), *where, "--only", "b", "--only", "c"]
    for more in (["--list"], []):
        assert main([*words, *more]) == 0
        told = capsys.readouterr().out
        for run, of in (("b", "a"), ("c", "b")):
            its, begun = (f"{stage}/all/dense/default/seed0" for stage in (run, of))
            assert f"not planned yet: {its}: waits for the model of {begun}" in told
