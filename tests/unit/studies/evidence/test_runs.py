"""A study's YAML and its runs: what is planned when, what tuning chooses, when two are the same."""

import json
from dataclasses import replace

import pytest

from ds_moe_mtl.config import UserError, load_config
from ds_moe_mtl.config.document import dump_yaml
from ds_moe_mtl.studies.evidence.runs import StudyRun, overrides_of, run_config, run_hash
from ds_moe_mtl.studies.evidence.schema import STUDIES, Study, load_study
from ds_moe_mtl.studies.evidence.stages import Stages
from tests.support.paths import ROOT

RATES = ["1e-4", "3e-4"]
VALUES = {
    "about": "three systems",
    "experiment": "ds_configs/studies/base/own_six.yaml",
    "set": ["train.epochs=2"],
    "baseline": "dense",
    "systems": {
        "dense": ["model.kind=mt_dense"],
        "tag": ["model.kind=mt_tag", "moe.gate_scale=preserve"],
        "tag_more": ["tag", "moe.num_experts=8"],
    },
    "stages": {
        "tune": {"seeds": [9], "grid": {"train.lr": RATES}},
        "screen": {"seeds": [0, 1], "tuned": "tune"},
        "final": {"seeds": [5], "tuned": "tune", "systems": ["dense"], "best": 1, "of": "screen"},
    },
}
STUDY = Study.model_validate(VALUES)
STARTED_GRID = {"seeds": [1], "start": "a", "grid": {"start.model": ["m"]}}


@pytest.fixture
def data(tmp_path):
    """A data root with the files that own_six names, empty."""
    for name in ("reviews.csv", "tickets.csv", "duplicates.tsv", "nli_train.jsonl"):
        (tmp_path / "own").mkdir(exist_ok=True)
        (tmp_path / "own" / name).touch()
    for name in ("nli_dev.jsonl", "topics_wide.jsonl"):
        (tmp_path / "own" / name).touch()
    return tmp_path


def started(start="a", seeds=(1,), data=("x",), of=("z",), systems=("tag",), say="start.gate=nli"):
    """What changes a study to one with a stage b that begins with the models of a."""
    variants = {name: [say] if name in data else [] for name in "xyz"}
    tune = {"seeds": [9], "grid": {"train.lr": RATES}, "systems": ["tag"], "data": list(of)}
    first = {"seeds": [1], "systems": ["tag"], "data": list(of), "tuned": "tune"}
    second = {"seeds": list(seeds), "systems": list(systems), "data": list(data), "start": start}
    return {
        "data": variants,
        "stages": {"tune": tune, "a": first, "b": second},
    }


def grid(values, **second):
    """What changes a study to one of a grid, and a second stage."""
    first = {"seeds": [1], "data": ["x"], "grid": values}
    return {
        "data": {"x": []},
        "stages": {"a": first, "b": {"seeds": [1], "start": "a", **second}},
    }


def line(run, mean):
    return {"run": run.name, "mean": mean}


def tuned(system, scores, data="all"):
    """Lines of a system's tuning: its mean score at each rate."""
    return [
        line(StudyRun("tune", data, system, (f"train.lr={rate}",), 9), score)
        for rate, score in zip(RATES, scores, strict=True)
    ]


def test_a_system_takes_the_overrides_of_those_it_names():
    run = StudyRun("screen", "all", "tag_more", ("train.lr=3e-4",), 1)
    assert overrides_of(STUDY, run) == [
        *("train.epochs=2", "model.kind=mt_tag", "moe.gate_scale=preserve", "moe.num_experts=8"),
        *("train.lr=3e-4", "run.seed=1"),
    ]
    assert StudyRun.from_json(run.to_json()) == run


def test_a_grid_is_planned_at_once_and_tuned_stages_when_their_system_is_tuned():
    runs, waiting = Stages(STUDY, []).plan("tune")
    assert len(runs) == 6 and not waiting and runs[0].name == "tune/all/dense/lr=1e-4/seed9"
    assert Stages(STUDY, []).plan("screen") == (
        [],
        [(f"screen/all/{name}", "waits for tune", False) for name in ("dense", "tag", "tag_more")],
    )
    runs, waiting = Stages(STUDY, tuned("tag", [50.0, 60.0])).plan("screen")
    assert [run.name for run in runs] == [f"screen/all/tag/lr=3e-4/seed{seed}" for seed in (0, 1)]
    assert len(waiting) == 2


def test_the_best_rate_is_chosen_once_all_are_done_and_a_diverged_one_is_the_last():
    lines = tuned("tag", [50.0, 60.0])
    assert Stages(STUDY, lines[:1]).chosen_point("tune", "all", "tag") is None
    assert Stages(STUDY, lines).chosen_point("tune", "all", "tag") == ("train.lr=3e-4",)
    lines = tuned("tag", [50.0, None])
    assert Stages(STUDY, lines).chosen_point("tune", "all", "tag") == ("train.lr=1e-4",)


def test_the_finals_have_the_named_systems_and_the_best_of_the_others():
    lines = [line for system in STUDY.systems for line in tuned(system, [50.0, 60.0])]
    screened = Stages(STUDY, lines).plan("screen")[0]
    means = {"dense": 70.0, "tag": 60.0, "tag_more": 65.0}
    lines += [line(run, means[run.system]) for run in screened]
    assert {run.system for run in Stages(STUDY, lines).plan("final")[0]} == {"dense", "tag_more"}
    runs, waiting = Stages(STUDY, lines[:-1]).plan("final")
    assert {run.system for run in runs} == {"dense"}  # the named ones wait for nobody
    assert waiting == [("final/all", "the best 1 wait for screen", False)]


def test_a_run_is_the_same_on_another_machine_and_another_with_another_key(data, tmp_path):
    run = StudyRun("tune", "all", "tag", ("train.lr=1e-4",), 9)
    root = f"data.root={data}"
    here = run_hash(run, run_config(STUDY, run, [root], tmp_path / "here"))
    (tmp_path / "moved").mkdir()
    (data / "own").rename(tmp_path / "moved" / "own")
    moved = f"data.root={tmp_path / 'moved'}"
    there = run_config(STUDY, run, [moved, "train.threads=1"], tmp_path / "there")
    assert run_hash(run, there) == here and there.run.dir.endswith(here[:8])
    others = [
        ["train.epochs=3"],
        ["moe.gate_scale=paper"],
        ["deepspeed=ds_configs/deepspeed/zero2.json"],
    ]
    hashes = {run_hash(run, run_config(STUDY, run, [moved, *own], tmp_path)) for own in others}
    assert len(hashes | {here}) == 4


def test_own_files_are_found_below_the_data_root_after_all_other_places(
    data, tmp_path, monkeypatch
):
    base = ROOT / "ds_configs/studies/base/own_six.yaml"
    found = load_config(base, [f"data.root={data}"])
    assert found.tasks[0].train == str(data / "own" / "reviews.csv")
    here = tmp_path / "here"
    (here / "own").mkdir(parents=True)
    (here / "own" / "reviews.csv").touch()
    monkeypatch.chdir(here)
    nearer = load_config(base, [f"data.root={data}"])
    assert nearer.tasks[0].train == str(here / "own" / "reviews.csv")
    with pytest.raises(UserError, match="no such file"):
        load_config(base, ["data.root=embedded"])


@pytest.mark.parametrize("name", sorted(path.stem for path in STUDIES.glob("*.yaml")))
def test_a_shipped_study_loads_and_every_system_of_it_is_a_run(name, data, tmp_path):
    found, study = load_study(name)
    own = [] if name == "embedded" else [f"data.root={data}"]
    kinds = set()
    for variant in study.data:
        for system in study.systems:
            run = StudyRun("tune", variant, system, (), 0)
            config = run_config(study, run, own, tmp_path)
            kinds.add((variant, config.model.kind, config.moe.gate_scale, run_hash(run, config)))
    assert found == name and len(kinds) == len(study.data) * len(study.systems)
    used = {seed for stage in study.stages.values() for seed in stage.seeds}
    apart = [stage for stage in study.stages.values() if stage.start is None]
    assert len(used) == sum(len(stage.seeds) for stage in apart)  # none twice


def test_a_run_of_stage_two_has_the_run_that_it_begins_with(data, tmp_path):
    study = Study.model_validate({**VALUES, **started(data=["x", "y"], of=["z"])})
    why = "waits for a (waits for tune)"
    waits = [(f"b/{data}/tag/default/seed1", why, False) for data in "xy"]
    assert Stages(study, []).plan("b") == ([], waits)
    lines = [line(run, 50.0) for run in Stages(study, []).plan("tune")[0]]
    runs, waiting = Stages(study, lines).plan("b")
    assert not waiting and [(run.data, run.start.name) for run in runs] == [
        *(("x", "a/z/tag/lr=1e-4/seed1"), ("y", "a/z/tag/lr=1e-4/seed1")),
    ]
    assert StudyRun.from_json(runs[0].to_json()) == runs[0]
    config, begun = (
        run_config(study, run, [f"data.root={data}"], tmp_path) for run in (runs[0], runs[0].start)
    )
    assert config.start.model == begun.run.dir and config.start.gate == "nli"
    faster = replace(runs[0], start=replace(runs[0].start, point=("train.lr=3e-4",)))
    other = run_config(study, faster, [f"data.root={data}"], tmp_path)
    assert run_hash(faster, other) != run_hash(runs[0], config)  # the first stage's rate counts
    lines.append({"run": runs[0].start.name, "mean": None})
    failed = Stages(study, lines).plan("b")
    assert failed[0] == [] and "whose model it begins with, has failed" in failed[1][0].why
    assert failed[1][0].never


def test_a_system_whose_first_stage_failed_is_no_finalist():
    change = started(systems=["tag", "tag_more", "dense"])
    change["stages"]["a"] |= {"systems": ["tag", "tag_more"], "tuned": None}
    final = {"seeds": [7], "systems": ["dense"], "best": 2, "of": "b", "data": ["x"]}
    change["stages"]["c"] = final
    study = Study.model_validate({**VALUES, **change})
    lines = [line(run, 50.0) for run in Stages(study, []).plan("a")[0]]
    lines[0]["mean"] = None
    runs, waiting = Stages(study, lines).plan("b")
    assert {run.system for run in runs} == {"tag_more", "dense"} and waiting[0].never
    assert Stages(study, lines).plan("c")[1] == [("c/x", "the best 2 wait for b", False)]
    lines += [line(run, 60.0) for run in runs]
    finals, waiting = Stages(study, lines).plan("c")
    assert {run.system for run in finals} == {"tag_more", "dense"} and not waiting


def test_what_a_stage_says_replaces_what_data_and_system_say():
    stages = {"one": {"seeds": [1], "set": ["moe.num_experts=3", "train.lr=5e-5"]}}
    study = Study.model_validate({**VALUES, "stages": stages, "data": {"x": ["train.lr=1e-3"]}})
    said = overrides_of(study, StudyRun("one", "x", "tag_more", (), 1))
    assert said[-3:] == ["moe.num_experts=3", "train.lr=5e-5", "run.seed=1"]


def test_a_start_of_ones_own_is_kept_without_stages_and_refused_with_them(data, tmp_path):
    own = [f"data.root={data}", f"start.model={data}"]
    run = StudyRun("tune", "all", "tag", (), 9)
    assert run_config(STUDY, run, own, tmp_path).start.model == str(data)
    systems = {**VALUES["systems"], "tag": [*VALUES["systems"]["tag"], f"start.model={data}"]}
    study = Study.model_validate({**VALUES, "systems": systems})
    assert run_config(study, run, own[:1], tmp_path).start.model == str(data)
    study = Study.model_validate({**VALUES, **started()})
    with pytest.raises(UserError, match=r"start.model=.* with stages.b.start = a"):
        run_config(study, StudyRun("b", "x", "tag", (), 1), own, tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"systems": {"tag": ["model.kind=single"]}}, "model.kind single, a model for each task"),
        (
            {"data": {"x": ["start.gate=sst9"], "z": []}},
            "has no gate for stars .*allowed: .*stars, tickets",
        ),
        (
            {"data": {"x": ["train.stepz=5"], "z": []}},
            "^run b/x/tag/.* of the study: unknown key train.ste",
        ),
        (
            {"data": {"x": ["start.gate=nli", "start.head=keep", "tasks=[rte]"], "z": []}},
            "has no head for rte .start.head = keep.; it has: stars, tickets",
        ),
        (
            {"data": {"x": ["start.gate=nli", "moe.tied_steps=5"], "z": []}},
            "^run b/x/tag/.* of the study: moe.tied_steps = 5 with start.model = .*/a/z/tag/",
        ),
    ],
)
def test_what_cannot_begin_is_told_before_anything_is_trained(data, tmp_path, change, words):
    systems = {"systems": {"tag": ["model.kind=mt_tag"]}, "baseline": "tag"}
    study = Study.model_validate({**VALUES, **systems, **started(), **change})
    begun = StudyRun("a", "z", "tag", (), 1)
    with pytest.raises(UserError, match=words):
        run_config(study, StudyRun("b", "x", "tag", (), 1, begun), [f"data.root={data}"], tmp_path)


def test_a_model_that_keeps_its_tasks_has_their_gates_in_the_next_stage(data, tmp_path):
    own = [f"data.root={data}"]
    stages = {name: {"seeds": [1], "systems": ["tag"], "data": [name]} for name in "xyz"}
    stages["y"]["start"], stages["z"]["start"] = "x", "y"
    systems = {"systems": {"tag": ["model.kind=mt_tag"]}, "baseline": "tag"}
    for kept, known in (("true", "stars"), ("false", "rte")):
        variants = {"x": [], "y": ["tasks=[rte]", "start.gate=random"], "z": ["tasks=[cola]"]}
        variants["y"].append(f"start.keep_tasks={kept}")
        variants["z"].append("start.gate=stars")
        study = Study.model_validate({**VALUES, **systems, "data": variants, "stages": stages})
        (run,) = Stages(study, []).plan("z")[0]
        assert run.start.start.name == "x/x/tag/default/seed1"
        if known == "stars":
            assert run_config(study, run, own, tmp_path).start.gate == "stars"
        else:
            with pytest.raises(
                UserError, match="no gate for cola .*= stars.*: start.gate = rte or"
            ):
                run_config(study, run, own, tmp_path)


def test_runs_of_ones_own_models_differ_by_them(data, tmp_path):
    run = StudyRun("tune", "all", "tag", (), 9)
    configs = []
    for name in ("A", "B"):
        (tmp_path / name / "model").mkdir(parents=True)
        own = [f"data.root={data}", f"start.model={tmp_path / name / 'model'}"]
        configs.append(run_config(STUDY, run, own, tmp_path))
    assert configs[0].run.dir != configs[1].run.dir
    assert run_hash(run, configs[0]) != run_hash(run, configs[1])


def test_chains_of_tuned_stages_are_planned_at_once():
    stages = {}
    for name, before in zip("abcdef", ["", *"abcde"], strict=True):
        start = {"start": before} if before else {}
        stages[f"tune_{name}"] = {"seeds": [1], "grid": {"train.lr": RATES}, **start}
        stages[name] = {"seeds": [1], "tuned": f"tune_{name}", **start}
    systems = {f"s{number}": [] for number in range(20)}
    values = {**VALUES, "baseline": "s0", "systems": systems, "stages": stages}
    study = Study.model_validate(values)
    lines = []
    for name in stages:
        lines += [line(run, 50.0) for run in Stages(study, lines).plan(name)[0]]
    runs, waiting = Stages(study, lines).plan("f")
    assert len(runs) == 20 and not waiting and runs[0].start.start.start.start.start.start is None


def test_what_the_tuning_or_the_first_stage_lacks_goes_without(data, tmp_path):
    change = started(data=["x"], of=["z"], systems=["tag", "dense"])
    study = Study.model_validate({**VALUES, **change})
    runs, waiting = Stages(study, []).plan("b")
    (wait,) = waiting
    assert str(wait) == "b/x/tag/default/seed1: waits for a (waits for tune)" and len(runs) == 1
    assert (runs[0].system, runs[0].point, runs[0].start) == ("dense", (), None)
    config = run_config(study, runs[0], [f"data.root={data}"], tmp_path)
    assert config.start.model is None  # and start.gate, said for those that have one, is left out


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"baseline": "dens"}, "baseline: 'dens'; allowed: dense, tag, tag_more"),
        (
            {"systems": {"dense": ["tagg"]}, "stages": {"a": {"seeds": [1]}}},
            "systems.dense: 'tagg'; allowed: none",
        ),
        ({"stages": {"a": {"seeds": [1], "tuned": "b"}}}, "stages.a.tuned: 'b'; allowed: none"),
        ({"stages": {"a": {"seeds": []}}}, "stages.a.seeds = (); allowed: a list of 1 or more"),
        ({"stages": {"a": {"seeds": [1], "best": 1}}}, "best and of go together"),
        (started(start="c"), "stages.b.start: 'c'; allowed: tune, a"),
        (started(seeds=[1, 2]), "stages.b.seeds (start: a): 2; allowed: 1"),
        (started(data=["y"], of=["x", "z"]), "stages.b.data (start: a): 'y'; allowed: x, z"),
        (started(say="start.model = m"), "start.model = m with stages.b.start; allowed: one of"),
        ({"set": ["run.seed=3"]}, "run.seed=3 with the stages' seeds; allowed: one of them"),
        (
            {"stages": {"a": {"seeds": [1]}, "b": STARTED_GRID}},
            "start.model with stages.b.start; allowed: one of them",
        ),
        (grid({"train.lr": ["1", "1"]}), "stages.a.grid.train.lr has one twice"),
        (
            {"stages": {"a": {"seeds": [1]}, "b": {"seeds": [2], "tuned": "a"}}},
            "stages.b.tuned: a has no grid; allowed: a stage with a grid, without best",
        ),
        ({"stages": {"a": {"seeds": [1, 1]}}}, "stages.a.seeds has one twice"),
        ({"stages": {"a": {"seeds": [1], "systems": []}}}, "systems = (); allowed: a list of 1"),
        ({"stages": {}}, "stages = {}; allowed: "),
        ({"stages": ["a"]}, "allowed: a section with names of your own"),
        ({"stages": {"a b": {"seeds": [1]}}}, "stages.a b is no name; allowed: a name of letters"),
        (
            grid({"train.lr": ["1"]}, start=None, tuned="a") | {"data": {"x": [], "y": []}},
            "stages.b.data (tuned: a): 'y'; allowed: x",
        ),
        (started(start="tune"), "stages.b.start: tune has a grid; allowed: a stage without"),
        ({"sytems": {}}, "unknown key sytems; nearest known key: systems"),
    ],
)
def test_a_mistake_in_a_study_is_one_line(tmp_path, change, words):
    path = tmp_path / "mine.yaml"
    path.write_text(dump_yaml(json.loads(json.dumps({**VALUES, **change}))))
    with pytest.raises(UserError) as error:
        load_study(str(path))
    assert words in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(UserError, match="unknown study 'nothing'; allowed: .*own_six"):
        load_study("nothing")
