"""ds-moe-mtl crossfit: mistakes are one line and status 2; the study's systems; its report."""

import json
from types import SimpleNamespace

import pytest

from ds_moe_mtl.cli import main
from ds_moe_mtl.config import load_config
from ds_moe_mtl.studies.crossfit.report import write_report
from ds_moe_mtl.studies.crossfit.study import (
    STAGE_1,
    SYSTEMS,
    Layout,
    Study,
    study_jobs,
    system_overrides,
)

YAML = "crossfit_router_minilm"
TUNE = ["tune", "direct", "--output", "{}/o"]


def status_and_error(capsys, arguments):
    try:
        status = main(["crossfit", *arguments])
    except SystemExit as exit_:
        status = exit_.code
    return status, capsys.readouterr().err.strip().splitlines()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trainn"], "unknown part 'trainn' of crossfit; allowed: vectors, tune, routes, study"),
        (["routes", "{}"], "is not a model folder"),
        (["tune", "{}", "--output", "{}/o", "--tasks", "gym-emo"], "is not a model folder"),
        (["tune", "direct", "--output", "{}/o", "--tasks", "gym-nq"], "unknown task 'gym-nq'"),
        (["tune", "direct", "--output", "{}/o", "--tasks", "gym-xsum"], "has no answer options"),
        (["tune", "direct", "--output", "{}/o", "--sample", "14"], "--sample: 14; allowed: 13, 21"),
        (["tune", "direct", "--output", "{}/o", "--steps", "0"], "--steps"),
        (
            ["tune", "direct", "--output", "{}/o", "--rates", "1e-5", "0"],
            "--rates: 0; allowed: abo",
        ),
        (
            ["tune", "direct", "--output", "{}/o", "--test-limit", "0"],
            "--test-limit: 0; allowed: at",
        ),
        (
            ["tune", "direct", "--output", "{}/o", "--max-length", "4"],
            "--max-length: 4; allowed: at",
        ),
        ([*TUNE, "--rates", "1e-5", "0"], "--rates: 0; allowed: above 0"),
        ([*TUNE, "--clip", "-1"], "--clip: -1; allowed: at least 0"),
        ([*TUNE, "--test-limit", "0"], "--test-limit: 0; allowed: at least 1"),
        ([*TUNE, "--max-length", "4"], "--max-length: 4; allowed: at least 8"),
        (["study", "glue_small_dense_minilm", "--output", "{}/s"], "allowed: stage 1 of a learned"),
        (["study", YAML, "--output", "{}/s", "--systems", "best"], "--systems: 'best'; allowed"),
        (["study", YAML, "--output", "{}/s", "--seeds", "9"], "--seeds: 9; allowed: 1 to 5"),
        (["study", YAML, "--output", "{}/s", "--routes", "best"], "--routes: 'best'; allowed"),
        (["study", YAML, "--output", "{}/s", "--tune-lr", "0"], "--tune-lr: 0; allowed: rates"),
        (["vectors", YAML, "--output", "{}/v", "--more", "gym-x"], "unknown task 'gym-x'"),
        (["vectors", YAML, "--output", "{}/v"], "data.root: task 'gym-anli' is of the few-shot"),
        (["study", YAML], "the following arguments are required: --output"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(tmp_path, capsys, arguments, words):
    arguments = [argument.format(tmp_path) for argument in arguments]
    status, errors = status_and_error(capsys, arguments)
    assert status == 2 and len(errors) == 1 and words in errors[0], errors


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["router.selection=hard"], "router.selection = 'hard'; allowed: one of softmax"),
        (["router.experts=1"], "router.experts = 1; allowed: a whole number at least 2"),
        (["router.temperature=0.05"], "router.temperature_min = 0.1 is above"),
        (["router.layers=[1,1]"], "router.layers names a layer twice"),
        (["router.routes_from=nowhere"], "router.routes_from = 'nowhere': no such file or folder"),
        (["moe.ep_size=2"], "moe.ep_size = 2 with model.kind = task_moe"),
        (["router.vectors=nowhere.npz"], "router.vectors = 'nowhere.npz': no such file"),
    ],
)
def test_a_mistake_in_the_router_section_is_one_line(overrides, words):
    with pytest.raises(ValueError) as error:
        load_config(YAML, overrides)
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("part", [[], ["study"], ["tune"], ["vectors"], ["routes"]])
def test_every_part_has_help_with_an_example(capsys, part):
    try:
        assert main(["crossfit", *part, "--help"]) == 0
    except SystemExit as exit_:
        assert exit_.code == 0
    assert "example" in capsys.readouterr().out


def test_every_system_of_the_study_is_a_configuration_of_its_own(tmp_path):
    config = load_config(YAML)
    layout = Layout(tmp_path, SYSTEMS, 3)
    layout.vectors.write_bytes(b"")
    found = {}
    for system in (STAGE_1, *SYSTEMS):
        layout.run(system, 2).mkdir(parents=True)
        found[system] = load_config(YAML, system_overrides(system, config, layout, 2))
    assert found["vanilla"].model.kind == "mt_dense"
    assert [found[s].router.route for s in ("average", "random_task")] == ["average", "random_task"]
    stage2 = found["learned"].router
    assert stage2.routes_from == str(layout.run(STAGE_1, 2)) and stage2.selection == "softmax"
    assert (stage2.temperature, stage2.temperature_min) == (300, 1)
    assert stage2.vectors == found[STAGE_1].router.vectors == str(layout.vectors)
    for system in found.values():
        assert system.run.seed == 2 and system.train == config.train


def test_a_study_is_a_list_of_commands_and_what_each_waits_for(tmp_path):
    study = Study(
        YAML,
        tmp_path,
        overrides=("train.steps=2",),
        routes="nearest",
        tune_steps=7,
        tune_lr=(1e-4, 3e-4),
        test_limit=9,
    )
    layout = Layout(tmp_path, ("vanilla", "learned"), 2)
    jobs = {job.name: job for job in study_jobs(load_config(YAML), study, layout)}
    assert len(jobs) == 1 + 2 * (1 + 1 + 2 * 2)  # vectors; direct, stage 1, two runs and tunings
    assert jobs["stage1, seed 1"].needs == ("vectors",)
    assert jobs["learned, seed 1"].needs == ("stage1, seed 1",)
    assert jobs["tuning from learned, seed 1"].needs == ("learned, seed 1",)
    tuning = " ".join(jobs["tuning from learned, seed 1"].arguments)
    assert f"crossfit tune {layout.run('learned', 1)} " in tuning
    assert "--sample 21 --seed 1 --routes nearest --steps 7 --rates 0.0001 0.0003" in tuning
    assert "train.steps=2" in jobs["vanilla, seed 0"].arguments
    layout.vectors.write_bytes(b"")
    assert "vectors" not in [job.name for job in study_jobs(load_config(YAML), study, layout)]


def test_the_report_has_gains_spread_and_negative_transfer(tmp_path):
    layout = Layout(tmp_path, ("vanilla",), 2)
    encoder = {"model_type": "bert", "num_hidden_layers": 6, "hidden_size": 384}
    encoder |= {"intermediate_size": 1536, "num_attention_heads": 12}
    for seed, (base, score, dev) in enumerate([(50.0, 60.0, 40.0), (50.0, 50.0, 44.0)]):
        run = layout.run("vanilla", seed)
        (run / "model").mkdir(parents=True)
        (run / "results.json").write_text(json.dumps({"all_tasks": dev}))
        description = {"format": 1, "kind": "mt_dense", "encoder": encoder, "about": {}}
        description |= {"encoder_class": "BertModel", "pooler": False, "tasks": []}
        (run / "model/config.json").write_text(json.dumps(description))
        for system, values in (("direct", (base, 40.0, 0.5)), ("vanilla", (score, 30.0, 9.0))):
            rows = [{"task": t, "value": v} for t, v in zip("abc", values, strict=True)]
            layout.tuned(system, seed).write_text("".join(json.dumps(r) + "\n" for r in rows))
    text = write_report(layout, SimpleNamespace)
    # a: 55 against 50, b: 30 against 40, c left out: (0.1 - 0.25) / 2
    assert "| vanilla | 42.0 ± 2.8 | 31.3 ± 2.4 | -7.5% (-7.5 ± 7.1) | 1 of 2 |" in text
    assert "Left out, base under 1%: 1 (c)." in text
    assert (tmp_path / "gains.png").exists() and (tmp_path / "report.md").read_text() == text + "\n"
    assert json.loads((tmp_path / "report.json").read_text())["systems"]["vanilla"]["arg"] == (
        pytest.approx(-7.5)
    )
