"""Grids and seeds of both stages; ds-moe-mtl finetune: gates, heads, the best epoch, resumes."""

import json

import pytest

from ds_moe_mtl.config import dump_config
from ds_moe_mtl.evaluation.predictions import read_predictions
from tests.support.commands import run_commands
from tests.support.launch import ROOT, launch
from tests.support.predictions import score_predictions
from tests.support.tiny import tiny_config, write_tiny

FAST = ["train.batch_size=6", "train.precision=fp32", "model.dropout=0", "train.threads=1"]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A mixture model and what was fine-tuned from it, with every command's answer by name."""
    folder = write_tiny(tmp_path_factory.mktemp("finetune"))
    zero1 = str(ROOT / "ds_configs/deepspeed/zero1.json")
    run = {"run": {"dir": str(folder / "mix")}, "deepspeed": zero1}
    config = tiny_config(folder, **run, moe={"gate_embedding": 0})
    (folder / "mix.yaml").write_text(dump_config(config))
    generated = {
        "run": {"dir": str(folder / "generated")},
        "deepspeed": zero1,
        "moe": {"gate_embedding": 2, "expert_dropout": 0.1, "load_balance_loss": 0.01},
        "train": {"save_every": 2},
    }
    (folder / "generated.yaml").write_text(dump_config(tiny_config(folder, **generated)))
    mix = folder / "mix"
    grid = ["--grid", "train.lr=1e-2,1e-4", "--seeds", "2", "train.epochs=3", *FAST]
    sweep = ["train", folder / "mix.yaml", f"run.dir={folder / 'sweep'}", "--seeds", "2"]
    sweep += ["--grid", "train.lr=1e-2,1e-3", "--grid=train.warmup=0,0.5", "train.steps=2"]
    commands = {
        "train": ["train", folder / "mix.yaml"],
        "sweep": sweep,
        "sweep again": sweep,
        "half a sweep": ["train", folder / "mix.yaml", "--seeds"],
        "a sweep of nothing": ["train", folder / "mix.yaml", "--grid", "train.lr"],
        "generated": ["train", folder / "generated.yaml"],
        "grid": ["finetune", mix, "--task", "colour", *grid],
        "again": ["finetune", mix, "--task", "colour", "--json", *grid],
        "auto": ["finetune", mix, "--task", "same", "--gate", "auto", "train.epochs=1", *FAST],
        "single": [
            *("finetune", folder / "encoder", "--task", "rte", "--output", folder / "single"),
            *("train.epochs=null", "train.steps=2", *FAST),
            "tasks=" + json.dumps([json.loads((folder / "tasks.json").read_text())[0]]),
        ],
        "from generated": [
            *("finetune", folder / "generated", "--task", "amount", "--gate", "same"),
            *("train.epochs=1", *FAST),
        ],
        "export": ["export", folder / "generated", "--output", folder / "exported"],
        "evaluate": ["evaluate", mix / "finetune/colour/lr=1e-2/seed0", "--json"],
        "no such gate": ["finetune", mix, "--task", "colour", "--gate", "nope", *FAST],
        "no such task": ["finetune", mix, "--task", "rtee", *FAST],
        "a gate of a dense model": [
            *("finetune", folder / "encoder", "--task", "rte", "--gate", "own"),
        ],
        "a grid of nothing": ["finetune", mix, "--task", "colour", "--grid", "train.lr"],
        "another kind": ["finetune", mix, "--task", "colour", "model.kind=mt_switch", *FAST],
        "no seeds": ["finetune", mix, "--task", "colour", "--seeds", "0"],
        "no model": ["finetune", folder / "nowhere", "--task", "toy_sense", "data.root=embedded"],
    }
    answers = run_commands(list(commands.values()))
    return folder, dict(zip(commands, answers, strict=True))


def results(run):
    return json.loads((run / "results.json").read_text())


def scores(run, task):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row[f"dev/{task}"] for row in rows if f"dev/{task}" in row}


def test_every_point_and_seed_is_a_run_that_keeps_its_best_epoch(tuned):
    folder, answers = tuned
    assert answers["grid"].status == 0, answers["grid"].text
    for lr in ("1e-2", "1e-4"):
        for seed in (0, 1):
            run = folder / "mix/finetune/colour" / f"lr={lr}" / f"seed{seed}"
            found, dev = results(run), scores(run, "colour")
            assert len(dev) == 3 and found["steps"] == max(dev)
            assert found["tasks"]["colour"]["value"] == max(dev.values())
            assert dev[found["best_step"]] == max(dev.values())
            assert found["start"]["model"] == str(folder / "mix") and found["seed"] == seed
            assert not (run / "checkpoints").exists() and not (run / "best").exists()
            # The predictions are the kept model's, too, not the last step's.
            kept = score_predictions(read_predictions(run)["colour"])
            assert kept == pytest.approx(found["tasks"]["colour"]["value"])


def test_stage_one_has_grids_and_seeds_too(tuned):
    folder, answers = tuned
    assert answers["sweep"].status == 0, answers["sweep"].text
    rows = json.loads((folder / "sweep/leaderboard.json").read_text())["rows"]
    assert len(rows) == 4 and all(len(row["seeds"]) == 2 for row in rows)
    found = results(folder / "sweep/lr=1e-3,warmup=0.5/seed1")
    assert found["seed"] == 1 and set(found["tasks"]) == {"colour", "same", "amount"}
    shown = answers["sweep again"].stdout
    assert "step 2/2" not in shown and "train.lr=1e-3 train.warmup=0.5" in shown
    assert len(list((folder / "sweep").glob("*/*/model"))) == 8  # all stay


def test_the_leaderboard_ranks_points_and_the_best_runs_model_stays(tuned):
    folder, answers = tuned
    rows = json.loads(answers["again"].stdout)["rows"]
    assert "step 7" not in answers["again"].stderr  # nothing is trained twice
    assert len(rows) == 2 and rows[0]["mean"] >= rows[1]["mean"] and rows[0]["n"] == 2
    assert rows == json.loads((folder / "mix/finetune/colour/leaderboard.json").read_text())["rows"]
    seeds = [seed for row in sorted(rows, key=lambda row: -row["max"]) for seed in row["seeds"]]
    best = max(seeds, key=lambda seed: seed["value"])["run"]
    models = list((folder / "mix/finetune/colour").glob("*/*/model"))
    assert [str(model.parent) for model in models] == [best]


def test_a_tuned_model_holds_the_task_alone_and_scores_as_its_results_say(tuned):
    folder, answers = tuned
    (model,) = (folder / "mix/finetune/colour").glob("*/*/model")
    described = json.loads((model / "config.json").read_text())
    assert [head["name"] for head in described["heads"]] == ["colour"]
    assert described["routing"]["num_gates"] == 1 and described["kind"] == "mt_tag"
    if str(model.parent).endswith("lr=1e-2/seed0"):
        told = json.loads(answers["evaluate"].stdout)
        assert told["colour"].items() >= results(model.parent)["tasks"]["colour"].items()


def test_auto_takes_the_gate_of_least_held_out_loss(tuned):
    folder, answers = tuned
    assert answers["auto"].status == 0, answers["auto"].text
    gates = json.loads((folder / "mix/finetune/same-auto/gates.json").read_text())
    assert gates["gate"] == min(gates["losses"], key=gates["losses"].get)
    assert set(gates["losses"]) == {"colour", "same", "amount", "random"}
    run = folder / "mix/finetune/same-auto/default/seed0"
    assert results(run)["start"]["gate"] == gates["gate"]


def test_an_encoder_is_the_single_task_baseline(tuned):
    folder, answers = tuned
    assert answers["single"].status == 0, answers["single"].text
    found = results(folder / "single/default/seed0")
    assert found["model_kind"] == "single" and found["start"] is None


def test_generated_gates_survive_model_folder_checkpoint_and_stage_two(tuned):
    from safetensors.torch import load_file

    folder, answers = tuned
    for name in ("generated", "export", "from generated"):
        assert answers[name].status == 0, answers[name].text
    model = load_file(folder / "generated/model/model.safetensors")
    exported = load_file(folder / "exported/model.safetensors")
    vectors = [key for key in model if key.endswith(".gate.wg.vectors")]
    assert len(vectors) == 2 and model.keys() == exported.keys()
    assert all((model[key] == exported[key]).all() for key in model)
    run = folder / "generated/finetune/amount-same/default/seed0"
    tuned_vectors = load_file(run / "model/model.safetensors")[vectors[0]]
    assert tuned_vectors.shape == (1, 2) and model[vectors[0]].shape == (3, 2)
    assert results(run)["start"]["gate"] == "same"


def test_expert_loads_are_logged_for_every_layer_and_expert(tuned):
    rows = (tuned[0] / "mix/metrics.jsonl").read_text().splitlines()
    for row in map(json.loads, rows):
        for layer in (0, 1):
            shares = [row[f"load/{layer}/{expert}"] for expert in (0, 1, 2, 3)]
            assert sum(shares) == pytest.approx(1, abs=1e-3) and min(shares) >= 0


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no such gate", "start.gate: 'nope'; allowed: colour, same, amount, random, own"),
        ("no such task", "unknown task 'rtee'"),
        ("a gate of a dense model", "is an encoder, without gates by task"),
        ("a grid of nothing", "--grid train.lr: no values"),
        ("another kind", "model.kind = mt_switch, but start.model ="),
        ("no seeds", "--seeds"),
        ("half a sweep", "--seeds: ''; allowed: a whole number above 0"),
        ("a sweep of nothing", "--grid train.lr: no values"),
        ("no model", "model.encoder"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(tuned, name, words):
    answer = tuned[1][name]
    errors = [line for line in answer.stderr.splitlines() if line.startswith("error: ")]
    assert answer.status == 2 and len(errors) == 1 and words in errors[0], answer.text
    assert "Traceback" not in answer.text


def test_help_is_fast_because_deepspeed_is_not_imported():
    script = (
        "import sys\nfrom ds_moe_mtl.cli import main\n"
        "for name in ('finetune', 'reproduce', 'report', 'compare', 'study'):\n"
        "    try:\n        main([name, '--help'])\n"
        "    except SystemExit as end:\n        assert end.code == 0\n"
        "assert not {'torch', 'deepspeed', 'transformers'} & set(sys.modules), 'slow'\n"
    )
    run = launch(["-c", script], 1, "python")
    assert run.returncode == 0 and run.stdout.count("example:") == 5, run.text
