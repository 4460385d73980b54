"""The page of a run that was trained: texts of its dev rows, gates, and what experts are worth."""

import csv
import json

import numpy as np
import pytest
import torch

from ds_moe_mtl.analysis.page.ablation import FILE, measure_losses, stored_losses
from ds_moe_mtl.analysis.page.gates import task_gates
from ds_moe_mtl.analysis.page.stored import read_run
from ds_moe_mtl.cli import main
from ds_moe_mtl.config import dump_config
from ds_moe_mtl.data import encode_task, evaluation_batches
from ds_moe_mtl.evaluation import MultiTaskModel
from ds_moe_mtl.models.losses import network_inputs
from ds_moe_mtl.models.token_level.direct_calls import routed_ffns
from tests.support.pages import Parsed
from tests.support.tiny import tiny_config, write_tiny

SCRIPT = "<script>alert('the dog')</script>"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a tiny MT-TaG run, in whose texts stands a script."""
    from ds_moe_mtl.cli.train import main as train

    folder = write_tiny(tmp_path_factory.mktemp("trained"))
    for path in (folder / "data").glob("*.csv"):
        rows = list(csv.reader(path.open(newline="")))
        for row in rows[1:]:
            row[0] = f"{SCRIPT} {row[0]}"
        with path.open("w", newline="") as file:
            csv.writer(file).writerows(rows)
    config = tiny_config(folder, train={"steps": 3, "keep_checkpoints": 0}, moe={"layers": [1]})
    (folder / "run.yaml").write_text(dump_config(config))
    assert train([str(folder / "run.yaml")]) == 0
    return folder


def page_of(run, *options):
    assert main(["report", str(run), *options]) == 0
    html = (run / "report.html").read_text()
    return html, Parsed(html)


def test_worst_examples_are_those_of_the_largest_losses_and_their_texts_escaped(trained, capsys):
    html, page = page_of(trained / "run")
    assert not page.of("script") and SCRIPT not in html and SCRIPT in page.words
    spec = MultiTaskModel.from_pretrained(trained / "run").specs["colour"]
    model = MultiTaskModel.from_pretrained(trained / "run")
    split = encode_task(spec, "dev", model.tokenizer, None, trained / "cache")
    logits = torch.tensor(model.outputs("colour", split))
    losses = torch.nn.functional.cross_entropy(
        logits, torch.tensor(np.array(split.labels)).long(), reduction="none"
    )
    # The run scored in the trainer, in half precision on the disk: the order is that of the losses.
    worst = int(losses.argmax())
    assert f"dev example {worst}, from 0" in page.words
    assert f"{float(losses[worst]):.2f}: right" in page.words
    assert "layer 1" in page.words and "layer 0" not in page.words  # counted from 0, as moe.layers


def test_changed_data_has_no_texts_and_lost_data_neither(trained, tmp_path, capsys):
    path = trained / "data/colour.csv"
    before = path.read_text()
    try:
        path.write_text(before.replace("coloured", "plain", 3))
        words = page_of(trained / "run")[1].words
        assert "No texts of colour: the dev rows have changed since the run scored them." in words
        assert "No texts of same" not in words
        path.unlink()
        words = page_of(trained / "run")[1].words
        assert "No texts of colour: tasks: 'colour': no file" in words
        assert "accuracy" in words and "cross-entropy" in words
    finally:
        path.write_text(before)
    words = page_of(trained / "run", "--no-data")[1].words
    assert "Texts are left out" in words and "alert" not in words


def test_gates_are_the_models_centred_over_experts(trained):
    part = read_run(trained / "run").parts[0]
    gates_KLX = task_gates(part)
    (ffn,) = routed_ffns(MultiTaskModel.from_pretrained(trained / "run").network)
    weight = ffn.moe.gate.wg.weight.detach().numpy().reshape(3, 4, -1)
    centred = weight - weight.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(gates_KLX, centred.reshape(3, 1, -1), rtol=1e-6, atol=1e-9)


@torch.no_grad()
def test_a_disabled_expert_gives_its_tokens_nothing(trained, capsys):
    part = read_run(trained / "run").parts[0]
    found = measure_losses(part, 8, lambda line: print(line))
    assert "passes over 8 dev rows" in capsys.readouterr().out
    model = MultiTaskModel.from_pretrained(trained / "run")
    (ffn,) = routed_ffns(model.network)
    forward = ffn.moe.forward
    for task, name in enumerate(model.specs):
        split = encode_task(
            model.specs[name], "dev", model.tokenizer, None, trained / "cache", limit=8
        )
        for expert in range(4):

            def without(hidden_states, off=expert, **more):
                from ds_moe_mtl.models.token_level.context import kept_routes

                with kept_routes() as routes:
                    y, aux_loss, counts = forward(hidden_states, **more)
                mine_T = routes[0].expert_T.reshape(-1) == off
                return y * ~mine_T.reshape(*y.shape[:-1], 1), aux_loss, counts

            ffn.moe.forward = without
            total = 0.0
            for batch in evaluation_batches(split, task):
                outputs = model.network(**network_inputs(batch))
                total += float((model.network.losses(outputs, batch) * batch.weights_B).sum())
            assert found.disabled[task][0][expert] == pytest.approx(total / 8, rel=1e-5)
    stored, why = stored_losses(part)
    assert stored == found and why == ""
    words = page_of(trained / "run")[1].words
    assert "on at most 8 dev examples" in words


def test_figures_of_another_model_are_not_shown(trained, tmp_path):
    part = read_run(trained / "run").parts[0]
    path = trained / "run" / FILE
    path.write_text(json.dumps({"format": 1, "model": "of another"}))
    found, why = stored_losses(part)
    path.unlink()
    assert found is None and "of another model" in why
    assert "Not measured" in stored_losses(part)[1]
