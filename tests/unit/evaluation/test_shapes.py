"""Models of several labels, tags and answers: packed as alone, loaded as saved, scored as told."""

import json

import numpy as np
import pytest
import torch

from ds_moe_mtl.config import UserError
from ds_moe_mtl.data import EncodedSplit, collate, encode_columns
from ds_moe_mtl.evaluation import MultiTaskModel
from ds_moe_mtl.evaluation.bootstrap import weighted_score
from ds_moe_mtl.evaluation.outputs import task_result, with_thresholds
from ds_moe_mtl.evaluation.predictions import (
    collect_predictions,
    read_predictions,
    write_predictions,
)
from ds_moe_mtl.evaluation.probable import probable_answers
from ds_moe_mtl.evaluation.shapes import best_part, found_answers, tag_lists
from ds_moe_mtl.evaluation.units import units_of
from ds_moe_mtl.models.description import save_folder
from ds_moe_mtl.models.losses import network_inputs
from ds_moe_mtl.models.task_fit import fitting_rows
from ds_moe_mtl.training.network import new_network
from ds_moe_mtl.training.plan import make_plan, routing_options, task_specs
from ds_moe_mtl.training.step import training_loss
from tests.support.shapes import write_shapes
from tests.support.steps import quiet
from tests.support.tiny import differ_experts, spread_gates, tiny_config, write_tiny

KINDS = ("mt_tag", "mt_switch", "mt_dense", "task_moe")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("shapes"))


@pytest.fixture(scope="module")
def tasks(folder):
    rows = write_shapes(folder / "shapes")
    rows[0]["metrics"] = ["macro_f1", "micro_f1", "lrap", "subset_accuracy"]
    rows[1]["class_weights"] = "balanced"
    return [*json.loads((folder / "tasks.json").read_text()), *rows]


def planned(folder, tasks, kind="mt_tag", **sections):
    config = tiny_config(folder, tasks=tasks, model={"kind": kind}, **sections)
    plan = make_plan(config, task_specs(config), quiet)
    network, _ = new_network(plan)
    torch.manual_seed(1)
    for head in network.heads.linears:
        torch.nn.init.normal_(head.weight, std=0.5)
    if kind in ("mt_tag", "mt_switch"):
        spread_gates(network)
        differ_experts(network)
    return plan, network.eval()


@pytest.fixture(scope="module")
def model(folder, tasks):
    """The model of a folder that was written, and the plan and network that it is of."""
    plan, network = planned(folder, tasks)
    specs = plan.specs
    outputs = {
        spec.name: MultiTaskModel(network, plan.tokenizer, specs, {}).outputs(spec.name, split)
        for spec, split in zip(specs, plan.dev, strict=True)
    }
    results = {
        spec.name: task_result(spec, outputs[spec.name], split)
        for spec, split in zip(specs, plan.dev, strict=True)
    }
    specs, results = with_thresholds(specs, plan.dev, outputs, results)
    rows = [spec.to_dict() for spec in specs]
    options = routing_options(plan.config, len(rows))
    about = {"results": results}
    description = network.description("mt_tag", options, rows, about)
    save_folder(folder / "model", description, network.state_dict(), plan.tokenizer)
    write_predictions(folder, collect_predictions(specs, plan.dev, outputs, plan.tokenizer))
    return MultiTaskModel.from_pretrained(folder, "cpu"), plan, network, outputs, results


@pytest.mark.parametrize("kind", KINDS)
def test_a_sequence_among_others_of_all_kinds_is_as_it_is_alone(folder, tasks, kind):
    plan, network = planned(folder, tasks, kind)
    rows = [(task, n) for n in (3, 0, 5) for task in range(len(plan.specs))]
    batch = collate(rows, plan.train)
    outputs = network(**network_inputs(batch))
    losses = network.losses(outputs, batch)
    assert torch.isfinite(losses).all()
    for place, (task, n) in enumerate(
        zip(batch.task_ids_B.tolist(), batch.example_ids_B.tolist(), strict=True)
    ):
        alone = collate([(task, n)], plan.train)
        found = network(**network_inputs(alone))
        torch.testing.assert_close(
            network.losses(found, alone)[0], losses[place], atol=1e-5, rtol=1e-5
        )
        torch.testing.assert_close(
            found.logits_BC[0], outputs.logits_BC[place], atol=1e-5, rtol=1e-5
        )
        mine = batch.unit_rows_U == place
        torch.testing.assert_close(
            found.unit_logits_UC, outputs.unit_logits_UC[mine], atol=1e-5, rtol=1e-5
        )


def test_a_tasks_loss_moves_its_own_head_alone(folder, tasks):
    plan, network = planned(folder, tasks)
    for task, spec in enumerate(plan.specs):
        network.zero_grad()
        batch = collate([(task, 0), (task, 1)], plan.train)
        network.losses(network(**network_inputs(batch)), batch).sum().backward()
        moved = [
            other.name
            for other, head in zip(plan.specs, network.heads.linears, strict=True)
            if head.weight.grad is not None and head.weight.grad.abs().sum() > 0
        ]
        assert moved == [spec.name]


def test_a_loaded_model_scores_as_the_one_that_was_saved(folder, model):
    loaded, plan, _, outputs, results = model
    for spec, split in zip(plan.specs, plan.dev, strict=True):
        np.testing.assert_array_equal(loaded.outputs(spec.name, split), outputs[spec.name])
        again = task_result(loaded.task(spec.name), outputs[spec.name], split, plan.tokenizer)
        told = {key: results[spec.name][key] for key in again}
        assert again == told
    thresholds = results["about"]["thresholds"]
    assert tuple(thresholds.values()) == loaded.task("about").thresholds
    assert results["about"]["value"] >= results["about"]["value_at_half"]


def test_predictions_are_what_evaluation_scores(model):
    loaded, plan, _, outputs, _ = model
    rows = {spec.name: json_rows(spec.train_file) for spec in plan.specs[3:]}
    for spec in plan.specs[3:]:
        columns = {name: [row[name] for row in rows[spec.name]] for name in spec.columns}
        split = encode_columns(spec, columns, plan.tokenizer, None, "here")
        found = loaded.predict(spec.name, [{n: r[n] for n in spec.inputs} for r in rows[spec.name]])
        scored = loaded.outputs(spec.name, split)
        if spec.kind == "tags":
            assert [[tag for _, tag in row] for row in found] == tag_lists(spec, scored, split)
            assert [[word for word, _ in row] for row in found] == columns["tokens"]
        elif spec.kind == "answer":
            assert found == found_answers(spec, scored, split)
            for answer, context in zip(found, columns["context"], strict=True):
                assert context[answer.start : answer.end] == answer.text != ""
        else:
            p = 1 / (1 + np.exp(-scored.astype(np.float64)))
            given = p >= loaded.task("about").thresholds
            assert [[name for name, _ in row] for row in found] == [
                [spec.labels[i] for i in np.flatnonzero(row)] for row in given
            ]


def test_an_answer_of_a_blank_alone_has_the_probability_of_its_token(model):
    loaded = model[0]
    context = np.frombuffer("a\u00a0".encode(), dtype=np.uint8)
    split = EncodedSplit(
        *([np.zeros(1)] * 7),
        unit_offsets=np.array([0, 2]),
        unit_chars=np.array([[0, 1], [1, 2]]),
        contexts=context,
        context_offsets=np.array([0, len(context)]),
    )
    scores_U2 = np.array([[0.0, 0.0], [1.0, 1.0]])
    (found,) = probable_answers(loaded.task("which"), scores_U2, split, {}, None)
    assert found["label"].text == ""
    assert found["probability"] == pytest.approx((np.e / (1 + np.e)) ** 2)


def json_rows(path):
    with open(path) as lines:
        return [json.loads(line) for line in lines]


def test_examples_of_tags_are_lists_texts_tuples_or_dicts(model):
    loaded = model[0]
    words = ["the", "red", "", "cat"]
    asked = [words, tuple(words), (words,), {"tokens": words}, np.array(words)]
    found = loaded.predict("marks", asked)
    assert all(row == found[0] for row in found) and found[0][2] == ("", "O")
    assert [word for word, _ in loaded.predict("marks", ["the red cat"])[0]] == [
        "the",
        "red",
        "cat",
    ]
    with pytest.raises(UserError, match="allowed: a list of texts, at least one"):
        loaded.predict("marks", [[]])


def test_kept_predictions_score_as_the_run_did_when_every_row_counts_once(folder, model):
    results = model[4]
    kept = read_predictions(folder)
    for name in ("about", "marks", "which"):
        units = units_of(kept[name])
        score = weighted_score(units, np.ones((1, len(units.truth_U))))[0]
        assert 100 * score == pytest.approx(results[name]["value"])


def test_an_empty_context_has_the_empty_answer(model):
    assert model[0].predict("which", [("is a cat here", "")]) == [("", 0, 0)]


def test_a_model_that_generates_refuses_them_in_one_line(folder, model):
    config = tiny_config(folder, model={"kind": "mt_dense"})
    for spec in model[1].specs[3:]:
        with pytest.raises(UserError, match=f"{spec.name}' is no text-to-text task"):
            fitting_rows([spec], True, config)


def test_a_tasks_weight_is_in_what_is_differentiated_and_not_in_its_loss(folder, tasks):
    plan, network = planned(folder, tasks)
    batch = collate([(0, 0), (3, 1), (4, 2)], plan.train)
    outputs = network(**network_inputs(batch))
    plain, total = training_loss(network, outputs, batch, 0.25, True)
    weights = torch.tensor([1.0, 1.0, 1.0, 3.0, 0.5, 1.0])
    losses, weighted = training_loss(network, outputs, batch, 0.25, True, weights)
    torch.testing.assert_close(losses, plain)
    torch.testing.assert_close(total, 0.25 * plain.sum())
    torch.testing.assert_close(weighted, 0.25 * (plain * weights[batch.task_ids_B]).sum())


def test_the_best_part_is_the_best_of_all_that_are_short_enough():
    draw = np.random.default_rng(0)
    for size in (1, 2, 9):
        scores = draw.normal(size=(size, 2))
        every = [
            (scores[i, 0] + scores[j, 1], i, j)
            for i in range(size)
            for j in range(i, min(size, i + 3))
        ]
        assert best_part(scores, 3) == max(every)[1:]
    assert best_part(np.zeros((4, 2)), 3) == (0, 0) and best_part(np.zeros((0, 2)), 3) == (0, -1)
