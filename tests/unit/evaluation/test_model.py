"""A model folder written, loaded again and used."""

import shutil

import numpy as np
import pytest
import torch

from ds_moe_mtl.cli import main
from ds_moe_mtl.config import UserError
from ds_moe_mtl.evaluation import MultiTaskModel
from ds_moe_mtl.models.description import save_folder
from ds_moe_mtl.training.network import new_network
from ds_moe_mtl.training.plan import make_plan, routing_options, task_specs
from tests.support.steps import quiet
from tests.support.tiny import differ_experts, spread_gates, tiny_config, write_tiny


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder with an untrained MT-TaG model, its plan and the network that was written."""
    folder = write_tiny(tmp_path_factory.mktemp("model"))
    config = tiny_config(folder)
    plan = make_plan(config, task_specs(config), quiet)
    network, _ = new_network(plan)
    spread_gates(network)
    differ_experts(network)
    tasks = [spec.to_dict() for spec in plan.specs]
    description = network.description(
        "mt_tag", routing_options(config, len(tasks)), tasks, {"note": "untrained"}
    )
    save_folder(folder / "model", description, network.state_dict(), plan.tokenizer)
    return folder, plan, network.eval()


def test_a_loaded_model_gives_the_outputs_of_the_one_that_was_saved(written):
    folder, plan, network = written
    model = MultiTaskModel.from_pretrained(folder, "cpu")
    same = MultiTaskModel(network, plan.tokenizer, plan.specs, model.description)
    for spec, split in zip(plan.specs, plan.dev, strict=True):
        np.testing.assert_array_equal(
            model.outputs(spec.name, split), same.outputs(spec.name, split)
        )
    assert model.description["about"] == {"note": "untrained"}


def test_a_model_keeps_the_length_that_it_was_trained_at(written):
    config = tiny_config(written[0], train={"max_length": 9})
    plan = make_plan(config, task_specs(config), quiet)
    assert [spec.max_length for spec in plan.specs] == [9, 9, 9]
    assert max(np.diff(split.offsets).max() for split in plan.train) <= 9


@pytest.mark.parametrize("device", ["foo", "cuda:77"])
def test_a_device_that_is_not_there_is_one_line(written, device):
    with pytest.raises(UserError, match=f"device: '{device}'") as raised:
        MultiTaskModel.from_pretrained(written[0], device)
    assert "\n" not in str(raised.value)


def test_a_model_that_trains_predicts_without_dropout_and_goes_on_training(written):
    model = MultiTaskModel.from_pretrained(written[0], "cpu")
    texts = ["red cat", "old dog runs", "a blue bird is here"]
    for module in model.network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.9
    before = model.predict("same", [(text, "cat") for text in texts * 9])
    model.network.train()
    assert model.predict("same", [(text, "cat") for text in texts * 9]) == before
    assert model.network.training


def test_predictions_are_the_same_alone_and_among_others(written):
    model = MultiTaskModel.from_pretrained(written[0], "cpu")
    pairs = [("the red cat", "a cat sleeps"), ("one two three four five here", "dog"), ("a", "a")]
    together = model.predict("amount", pairs)
    alone = [model.predict("amount", [pair])[0] for pair in pairs]
    assert together == pytest.approx(alone, abs=1e-5)
    assert set(model.predict("same", pairs)) <= {"yes", "no"}
    assert model.predict("colour", ["the red cat", "a dog"])[0] in ("coloured", "plain")
    assert model.predict("colour", []) == []


def test_each_task_is_routed_by_its_own_gate(written):
    model = MultiTaskModel.from_pretrained(written[0], "cpu")
    split = written[1].dev[1]
    same, amount = model.route_counts("same", split), model.route_counts("amount", split)
    assert same.shape == (2, 4) and same.sum() == amount.sum() == 2 * len(split.input_ids)
    assert (same != amount).any()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: m.predict("colours", ["x"]), "no task 'colours'; it has: colour, same, amount"),
        (
            lambda m: m.predict("same", ["one text"]),
            "example 0 has 1 values; needed: first, second",
        ),
    ],
)
def test_what_does_not_fit_the_model_is_one_line(written, call, words):
    with pytest.raises(UserError, match=words):
        call(MultiTaskModel.from_pretrained(written[0], "cpu"))


def test_a_folder_that_is_no_model_or_is_damaged_is_refused(written, tmp_path):
    with pytest.raises(UserError, match="is not a model folder"):
        MultiTaskModel.from_pretrained(tmp_path)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((written[0] / "model" / name).read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="cannot be read"):
        MultiTaskModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", b"[]", "is not a ds_moe_mtl model"),
        ("config.json", b'{"format": 1, "heads": []}', "is not a ds_moe_mtl model"),
        ("config.json", b"\xff\xfe", "config.json: not valid JSON"),
        ("tokenizer.json", None, "no tokenizer"),
        ("tokenizer.json", b"{", "no tokenizer can be loaded"),
    ],
)
def test_a_model_folder_with_a_bad_file_is_refused_in_one_line(
    written, tmp_path, name, content, message
):
    folder = tmp_path / "model"
    shutil.copytree(written[0] / "model", folder)
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        MultiTaskModel.from_pretrained(folder)
    assert "\n" not in str(error.value)


def predicted(folder, capsys, content: bytes, *arguments: str):
    """Return (status, stdout lines, stderr) of `ds-moe-mtl predict` for a file's content."""
    (folder / "input.txt").write_bytes(content)
    words = ["predict", str(folder), "--task", "colour", "--input", str(folder / "input.txt")]
    status = main([*words, *arguments])
    said = capsys.readouterr()
    return status, said.out.splitlines(), said.err


@pytest.mark.parametrize(
    ("content", "answers"),
    [
        (b"a red cat\na dog\n", 2),
        (b"\xef\xbb\xbfa red cat\r\na dog\r\n\r\n", 2),
        ("a red\u2028cat\x0b\na dog".encode(), 2),
        (b"", 0),
    ],
)
def test_predict_answers_line_by_line(written, capsys, content, answers):
    status, out, err = predicted(written[0], capsys, content)
    assert (status, len(out), err) == (0, answers, "")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("réd".encode("latin-1"), "input.txt: not UTF-8 text"),
        (b"a red cat\n\na dog\n", "input.txt: line 2 is empty; allowed: an example on every line"),
        (b"a red cat\ta dog\n", "colour: example 0 has 2 values; needed: text"),
    ],
)
def test_predict_tells_what_is_wrong_with_its_input(written, capsys, content, message):
    status, out, err = predicted(written[0], capsys, content)
    assert status == 2 and out == [] and err.count("\n") == 1 and message in err


def test_weights_are_stored_without_pickle(written):
    from safetensors import safe_open

    with safe_open(written[0] / "model/model.safetensors", "pt") as file:
        names = set(file.keys())
    assert "encoder.transformer.encoder.layer.0.intermediate.moe.gate.wg.weight" in names
    assert not list((written[0] / "model").glob("*.bin"))
