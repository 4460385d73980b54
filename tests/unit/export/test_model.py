"""A checkpoint as a model folder: of the checkpoint alone, and of one that lacks its model."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ds_moe_mtl.cli import main
from ds_moe_mtl.config import dump_config
from ds_moe_mtl.engine.checkpoints import MANIFEST, damage
from ds_moe_mtl.evaluation import MultiTaskModel
from ds_moe_mtl.training.model_files import DESCRIPTION, TOKENIZER
from tests.support.commands import run_commands
from tests.support.launch import ROOT
from tests.support.tiny import tiny_config, write_tiny

TEXTS = {"colour": ["the red cat", "a dog sleeps"], "same": [("one cat", "one dog")]}
CHECKPOINT = "checkpoints/step_00000004"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The folder of a finished run; its encoder and data lie beside it."""
    folder = write_tiny(tmp_path_factory.mktemp("export"))
    zero1 = str(ROOT / "ds_configs/deepspeed/zero1.json")
    train = {"save_every": 4, "lr": 1e-2}
    (folder / "run.yaml").write_text(
        dump_config(tiny_config(folder, deepspeed=zero1, train=train, model={"dropout": 0.1}))
    )
    (answer,) = run_commands([["train", folder / "run.yaml"]])
    assert answer.status == 0, answer.text
    return folder / "run"


@pytest.fixture
def alone(trained, tmp_path) -> Path:
    """A copy of the run, whose configuration names an encoder and data that are not there."""
    run = shutil.copytree(trained, tmp_path / "run")
    yaml = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(yaml.replace(str(trained.parent), str(tmp_path / "gone")))
    return run


def export(run: Path, output: Path, *arguments: str) -> int:
    return main(["export", str(run), "--output", str(output), *arguments])


def test_a_checkpoint_alone_makes_a_model_that_predicts_what_the_runs_own_does(alone, tmp_path):
    assert export(alone, tmp_path / "model") == 0
    mine, own = (MultiTaskModel.from_pretrained(at) for at in (tmp_path / "model", alone))
    for name, tensor in own.network.state_dict().items():
        assert torch.equal(mine.network.state_dict()[name], tensor), name
    for task, texts in TEXTS.items():
        assert mine.predict(task, texts) == own.predict(task, texts)
    assert mine.description["about"]["encoder"] == own.description["about"]["encoder"]
    assert mine.description["about"]["checkpoint"] == Path(CHECKPOINT).name
    keys = own.description.keys() - {"about"}
    assert all(mine.description[key] == own.description[key] for key in keys)


def without_model(run: Path) -> None:
    """Make the run's checkpoint one of those that do not describe their model."""
    checkpoint = run / CHECKPOINT
    shutil.rmtree(checkpoint / TOKENIZER)
    (checkpoint / DESCRIPTION).unlink()
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    ours = (DESCRIPTION, f"{TOKENIZER}/")
    manifest["files"] = {
        name: entry for name, entry in manifest["files"].items() if not name.startswith(ours)
    }
    (checkpoint / MANIFEST).write_text(json.dumps(manifest))
    assert damage(checkpoint) == ""


def test_a_checkpoint_that_does_not_describe_its_model_takes_the_runs_encoder_and_data(
    trained, alone, tmp_path, capsys
):
    without_model(alone)
    assert export(alone, tmp_path / "refused") == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 3 and all("gone" in line for line in errors)
    assert not (tmp_path / "refused").exists()
    shutil.copy(trained / "config.yaml", alone)
    assert export(alone, tmp_path / "model") == 0
    mine = load_file(tmp_path / "model/model.safetensors")
    own = load_file(alone / "model/model.safetensors")
    assert mine.keys() == own.keys() and all(torch.equal(mine[name], own[name]) for name in mine)


@pytest.mark.parametrize("name", [DESCRIPTION, f"{TOKENIZER}/tokenizer.json"])
def test_a_changed_description_or_tokenizer_is_a_damaged_checkpoint(alone, tmp_path, capsys, name):
    with (alone / CHECKPOINT / name).open("a") as file:
        file.write(" ")
    assert export(alone, tmp_path / "model") == 2
    assert f"is damaged ({name} has" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


def test_a_run_and_each_of_its_checkpoints_export_for_transformers(trained, tmp_path, capsys):
    words = ["--to", "huggingface", "--task", "same"]
    assert export(trained, tmp_path / "run", *words, "--licence", "mit") == 0
    out = capsys.readouterr().out
    assert out.count("0 other answers") == 2 and "amount: 18 dev rows, scores differ" in out
    card = (tmp_path / "run/README.md").read_text()
    assert "license: mit" in card and " to " in card and "not known" not in card
    words += ["--checkpoint", Path(CHECKPOINT).name]
    assert export(trained, tmp_path / "step", *words) == 0
    mine, own = (load_file(tmp_path / name / "model.safetensors") for name in ("step", "run"))
    assert mine.keys() == own.keys() and all(torch.equal(mine[key], own[key]) for key in own)
    assert json.loads((tmp_path / "step/config.json").read_text())["task"] == "same"


def test_a_run_of_single_task_models_exports_the_one_that_is_named(alone, tmp_path, capsys):
    many = tmp_path / "many"
    for name in ("a", "b"):
        shutil.copytree(alone / "model", many / name / "model")
    assert export(many, tmp_path / "out", "--to", "dense", "--task", "same") == 2
    assert "has a model a task; allowed: --task with a, b" in capsys.readouterr().err
