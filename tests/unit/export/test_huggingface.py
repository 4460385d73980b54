"""A folder for transformers answers as its source: every routing and kind, and on its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ds_moe_mtl.cli import main
from ds_moe_mtl.config import UserError
from ds_moe_mtl.data import read_split
from ds_moe_mtl.evaluation import MultiTaskModel
from ds_moe_mtl.export.dense import export_dense
from ds_moe_mtl.export.huggingface import export_huggingface
from ds_moe_mtl.export.source import open_source
from tests.support.exported import write_model, write_source
from tests.support.families import PLACES
from tests.support.launch import ROOT

ROUTINGS = {
    "preserve": {},
    "paper": {"moe": {"gate_scale": "paper"}},
    "merged": {"moe": {"combine": "merged"}},
    "shared": {"moe": {"shared_share": 0.25}},
    "some_layers": {"moe": {"layers": "last_half"}},
    "sequence": {"moe": {"route_by": "sequence"}},
    "generated": {"moe": {"gate_embedding": 4}},
    "switch": {"model": {"kind": "mt_switch"}},
    "dense": {"model": {"kind": "mt_dense"}},
    "pooler": {"model": {"pooler": True}},
}
OUTSIDE = Path(__file__).with_name("outside.py")


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return write_source(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def model(source, tmp_path_factory) -> Path:
    return write_model(source, tmp_path_factory.mktemp("routed") / "model")


@pytest.mark.parametrize("routing", ROUTINGS)
def test_the_opened_folder_gives_what_the_packed_model_gives_on_every_dev_row(
    routing, source, tmp_path
):
    check_export(write_model(source, tmp_path / "model", **ROUTINGS[routing]), tmp_path / "out")


@pytest.mark.parametrize("kind", PLACES)
def test_the_folder_of_every_family_does_too(kind, tmp_path):
    source = write_source(tmp_path / "source", kind)
    moe = {"gate_scale": "paper", "shared_share": 0.25}
    check_export(write_model(source, tmp_path / "model", moe=moe), tmp_path / "out")


def check_export(folder: Path, output: Path) -> None:
    """Export a model folder and see that it answers alike, and opens here to the bit."""
    said = []
    opened = open_source(folder, None, None, None, None)
    export_huggingface(opened, output, "same", "a card", said.append)
    about = json.loads((output / "export.json").read_text())
    assert about["tasks"].keys() == opened.model.specs.keys() and len(said) == 6
    units = {name: found["unit"] for name, found in about["tasks"].items()}
    read_by_word = [n for n, spec in opened.model.specs.items() if spec.kind == "tags"]
    assert read_by_word == [n for n, unit in units.items() if unit == "words of dev rows"] != []
    for found in about["tasks"].values():
        assert found["largest_difference"] < 1e-5, found
        assert found["other_answers"] in (0, None) and found["before"] == found["after"]
    again = MultiTaskModel.from_pretrained(output)
    assert again.description["encoder_class"] == opened.model.description["encoder_class"]
    for name, tensor in opened.model.network.state_dict().items():
        assert torch.equal(again.network.state_dict()[name], tensor), name
    assert again.tokenizer.model_max_length == opened.model.tokenizer.model_max_length


def outside(*arguments: object, **more: str) -> dict:
    """Return what a process without this package found."""
    packages = ":".join(path for path in sys.path if path.endswith("site-packages"))
    command = [sys.executable, "-I", "-S", OUTSIDE, packages, *arguments]
    environment = {**os.environ, **more}
    run = subprocess.run(
        [str(word) for word in command], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout)


def test_pipelines_without_the_package_answer_as_predict_does(source, model, tmp_path):
    opened = open_source(model, None, None, None, None)
    export_huggingface(opened, tmp_path / "all", None, "a card", lambda line: None)
    plain = open_source(
        write_model(source, tmp_path / "plain", model={"kind": "mt_dense"}), None, None, None, None
    )
    export_dense(plain, "colour", tmp_path / "colour", False, lambda line: None)
    rows, wanted = {}, {}
    for name, spec in opened.model.specs.items():
        columns = read_split(spec, "validation", None)
        examples = [list(row) for row in zip(*(columns[c] for c in spec.inputs), strict=True)]
        wanted[name] = opened.model.predict(name, examples)
        if name == "colour":
            wanted["dense"] = plain.model.predict(name, examples)
        firsts = [" ".join(row[0]) if spec.kind == "tags" else row[0] for row in examples]
        rows[name] = [
            [spec.prefix + first, *row[1:]] for first, row in zip(firsts, examples, strict=True)
        ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    found = outside(tmp_path, HF_MODULES_CACHE=str(tmp_path / "modules"))
    assert found["colour"] == wanted["colour"] and found["same"] == wanted["same"]
    np.testing.assert_allclose(found["amount"], wanted["amount"], atol=1e-5)
    ends = opened.model.task("about").label_thresholds
    for row, mine in zip(wanted["about"], found["about"], strict=True):
        given = {e: mine[e] for e, end in zip(mine, ends, strict=True) if mine[e] >= end}
        assert given == pytest.approx(dict(row), abs=1e-5)
    assert found["marks"] == [[tag for _, tag in row] for row in wanted["marks"]]
    assert [label for label, _ in found["dense"]] == wanted["dense"]
    chances = torch.from_numpy(plain.outputs("colour")).softmax(1).amax(1)
    np.testing.assert_allclose([score for _, score in found["dense"]], chances, atol=1e-5)


def test_the_hub_cache_registration_and_push_work_offline(model, tmp_path):
    MultiTaskModel.from_pretrained(model).save_pretrained(tmp_path / "folder", "amount")
    cached = tmp_path / "hub/models--someone--tiny"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs/main").write_text("0" * 40)
    (cached / "snapshots").mkdir()
    (tmp_path / "folder").rename(cached / "snapshots" / ("0" * 40))
    code = """
import sys, ds_moe_mtl
assert not {"torch", "transformers"} & set(sys.modules)
from ds_moe_mtl import MultiTaskModel, register_auto_classes
model = MultiTaskModel.from_pretrained("someone/tiny")
print(model.predict("same", [("one cat", "one dog")]))
for name in ("someone/other", "someone/other/third"):
    try:
        MultiTaskModel.from_pretrained(name)
    except ValueError as error:
        print(error)
register_auto_classes()
from transformers import AutoModelForSequenceClassification
found = AutoModelForSequenceClassification.from_pretrained("someone/tiny")
print(type(found).__module__, found.config.task, found.config.problem_type)
print(model.push_to_hub("someone/tiny", dry_run=True))
for name in ("someone/tiny", "../tiny"):
    try:
        model.push_to_hub(name)
    except ValueError as error:
        print(error)
"""
    own = {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    environment = {**os.environ, **own, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-3000:]
    lines = run.stdout.splitlines()
    labels = ("['yes']", "['no']")
    assert lines[0] in labels
    assert "someone/other" in lines[1] and "no model of the Hub" in lines[1]
    assert "is not a model folder" in lines[2]
    assert lines[3] == "ds_moe_mtl.models.portable.modeling_ds_moe_mtl amount regression"
    assert "modeling_ds_moe_mtl.py" in lines[4] and "README.md" in lines[4]
    assert "HF_HUB_OFFLINE" in lines[5] and "allowed: user/name" in lines[6]


def test_sequences_of_several_tasks_in_one_call_give_what_each_gives_alone(model):
    from ds_moe_mtl.models.portable.folder import opened

    trained = MultiTaskModel.from_pretrained(model)
    portable = opened(trained.network, trained.description)
    inputs = trained.tokenizer(["the red cat", "a dog", "one"], padding=True, return_tensors="pt")
    names = ["same", "amount", "colour"]
    together = portable(**inputs, task=names).logits
    for row, name in enumerate(names):
        alone = {key: values[row : row + 1] for key, values in inputs.items()}
        wanted = portable(**alone, task=name).logits[0]
        torch.testing.assert_close(together[row, : len(wanted)], wanted)
        assert (together[row, len(wanted) :] == -torch.inf).all()
    with pytest.raises(ValueError, match="'marks' is tags: open it with AutoModelForToken"):
        portable(**inputs, task="marks")
    with pytest.raises(ValueError, match="no task 'x'; it has: colour"):
        portable.set_task("x")
    with pytest.raises(ValueError, match="2 tasks for 3 sequences"):
        portable(**inputs, task=["same", "same"])


def test_pads_on_either_side_and_labels_change_nothing_and_gates_learn(model):
    from ds_moe_mtl.models.portable.folder import opened

    trained = MultiTaskModel.from_pretrained(model)
    portable = opened(trained.network, trained.description)
    ids = torch.tensor([[2, 7, 9, 3]])
    plain = portable(input_ids=ids, task="colour")
    for pads in ((0, 3), (3, 0)):
        padded = torch.nn.functional.pad(ids, pads)
        mask = torch.nn.functional.pad(torch.ones_like(ids), pads)
        found = portable(input_ids=padded, attention_mask=mask, task="colour")
        torch.testing.assert_close(found.logits, plain.logits, rtol=1e-5, atol=1e-5)
    portable(input_ids=ids, task="colour", labels=torch.tensor([1])).loss.backward()
    gates = portable.encoder.transformer.encoder.layer[0].intermediate.moe.gate.wg.weight
    assert gates.grad[:4].abs().sum() > 0 and gates.grad[4:].abs().sum() == 0


def test_a_folder_that_is_taken_and_a_model_that_routes_whole_layers_are_refused(
    source, model, tmp_path, capsys
):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/mine").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    places = {"taken": "not empty", "taken/mine": "not empty", "link": "a link"}
    for name, what in places.items():
        words = ["export", str(model), "--to", "huggingface", "--output", str(tmp_path / name)]
        assert main(words) == 2
        assert f"{name} is {what}; allowed: a new folder" in capsys.readouterr().err
    assert (tmp_path / "taken/mine").read_text() == "mine"
    assert not (tmp_path / "elsewhere").exists()
    with pytest.raises(UserError, match="not empty"):
        MultiTaskModel.from_pretrained(model).save_pretrained(tmp_path / "taken")
    routed = write_model(source, tmp_path / "routed", model={"kind": "task_moe"})
    words = ["export", str(routed), "--to", "huggingface", "--output", str(tmp_path / "out")]
    assert main(words) == 2 and not (tmp_path / "out").exists()
    assert "a task_moe model routes whole layers" in capsys.readouterr().err


def test_a_folder_that_answers_otherwise_is_refused_and_removed(model, tmp_path):
    opened = open_source(model, None, None, None, None)
    outputs = opened.model.outputs("same", opened.dev("same"))
    opened._outputs["same"] = outputs[:, ::-1]  # as if the source answered the other way round
    with pytest.raises(UserError, match="does not agree with its source: same: 18 dev rows"):
        export_huggingface(opened, tmp_path / "out", None, "a card", lambda line: None)
    assert not (tmp_path / "out").exists()


def test_options_that_do_not_go_together_are_one_line(model, tmp_path, capsys):
    out = str(tmp_path / "out")
    for words, said in (
        (["--to", "dense"], "--to dense: give --task"),
        (["--to", "huggingface", "--int8"], "--int8 with --to huggingface; allowed: onnx"),
        (["--task", "same"], "--task with --to model; allowed: huggingface, dense, onnx"),
        (["--to", "dense", "--task", "../x"], "the model has no task '../x'"),
        (["--to", "huggingface", "--task", "x"], "the model has no task 'x'"),
        (["--to", "huggingface", "--to-topology", "ranks=1"], "--to-topology with --to huggingf"),
    ):
        assert main(["export", str(model), "--output", out, *words]) == 2
        err = capsys.readouterr().err
        assert said in err and len(err.splitlines()) == 1, err
        assert not Path(out).exists()
