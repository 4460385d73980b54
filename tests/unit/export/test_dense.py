"""One task as transformers' own model: exact where it can be, told where it is not."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from ds_moe_mtl.cli import main
from ds_moe_mtl.config import UserError
from ds_moe_mtl.export.dense import export_dense
from ds_moe_mtl.export.source import open_source
from ds_moe_mtl.models.plain_classifier import (
    plain_classifier,
    plain_outputs,
    plain_token_model,
)
from tests.support.exported import write_model, write_source
from tests.support.families import PLACES, SHOWN, tiny

EXACT = {
    "dense": {"model": {"kind": "mt_dense"}},
    "pooler": {"model": {"kind": "mt_dense", "pooler": True}},
    "merged": {"moe": {"combine": "merged"}},
    "one_expert": {"moe": {"num_experts": 1}},
    "one_in_use": {"zero_gates": True, "moe": {"shared_share": 0.25, "layers": "last_half"}},
}
NO_ANSWERS = ("eurobert", "nomic_bert")
"""transformers has no model of theirs that answers questions."""


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return write_source(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def routed(source, tmp_path_factory) -> Path:
    return write_model(source, tmp_path_factory.mktemp("routed") / "model")


@pytest.mark.parametrize("way", EXACT)
def test_a_task_that_one_dense_encoder_computes_is_exact_for_every_kind(way, source, tmp_path):
    opened = open_source(write_model(source, tmp_path / "m", **EXACT[way]), None, None, None, None)
    for name in opened.model.specs:
        said = []
        export_dense(opened, name, tmp_path / name, False, said.append)
        about = json.loads((tmp_path / name / "export.json").read_text())
        assert about["exact"] and about["agreement"]["largest_difference"] < 1e-5, said
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert config["model_type"] == "bert" and "auto_map" not in config
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "about")
    assert model.config.problem_type == "multi_label_classification"
    assert AutoTokenizer.from_pretrained(tmp_path / "about").model_max_length == 64


def test_routed_experts_are_merged_by_use_with_the_metric_before_and_after(routed, tmp_path):
    said = []
    opened = open_source(routed, None, None, None, None)
    export_dense(opened, "same", tmp_path / "same", False, said.append)
    about = json.loads((tmp_path / "same/export.json").read_text())
    assert not about["exact"] and "merged by its use of them" in about["how"]
    assert "accuracy" in said[-1] and " -> " in said[-1]
    assert about["agreement"]["largest_difference"] > 1e-3


def test_the_gate_value_of_the_paper_scales_the_merged_experts(source, tmp_path):
    """Gates of zeros give every token expert 0 with the value 1 / 4: merging loses nothing."""
    folder = write_model(source, tmp_path / "m", zero_gates=True, moe={"gate_scale": "paper"})
    opened = open_source(folder, None, None, None, None)
    export_dense(opened, "amount", tmp_path / "amount", False, lambda line: None)
    about = json.loads((tmp_path / "amount/export.json").read_text())
    assert "times the mean gate value" in about["how"]
    assert about["agreement"]["largest_difference"] < 1e-5


def test_without_dev_rows_a_routed_task_needs_merge(routed, tmp_path, capsys):
    description = json.loads((routed / "config.json").read_text())
    for row in description["tasks"]:
        row["train_file"] = str(tmp_path / "gone.csv")
    folder = tmp_path / "model"
    folder.mkdir()
    for path in routed.iterdir():
        (folder / path.name).symlink_to(path)
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps(description))
    words = ["export", str(folder), "--to", "dense", "--task", "same"]
    assert main([*words, "--output", str(tmp_path / "a")]) == 2
    err = capsys.readouterr().err
    assert "gone.csv" in err and "--merge" in err and len(err.splitlines()) == 1
    assert not (tmp_path / "a").exists()
    assert main([*words, "--output", str(tmp_path / "b"), "--merge"]) == 0
    out = capsys.readouterr().out
    assert "merged in equal shares, by --merge" in out and "not compared, no dev rows" in out
    with pytest.raises(UserError, match="a task_moe model; allowed: single"):
        opened = open_source(routed, None, None, None, None)
        opened.model.description = {**opened.model.description, "kind": "task_moe"}
        export_dense(opened, "same", tmp_path / "c", True, print)


@pytest.mark.parametrize(
    ("kind", "way"), [*((kind, "merged") for kind in PLACES), ("modernbert", "one_in_use")]
)
def test_a_task_is_exactly_its_familys_own_dense_class(kind, way, tmp_path):
    source = write_source(tmp_path / "source", kind)
    folder = write_model(source, tmp_path / "m", **EXACT[way])
    opened = open_source(folder, None, None, None, None)
    for name, spec in opened.model.specs.items():
        if spec.kind == "answer" and kind in NO_ANSWERS:
            with pytest.raises(UserError, match="has no AutoModelForQuestionAnswering of"):
                export_dense(opened, name, tmp_path / name, False, lambda line: None)
            assert not (tmp_path / name).exists()
            continue
        export_dense(opened, name, tmp_path / name, False, lambda line: None)
        about = json.loads((tmp_path / name / "export.json").read_text())
        assert about["exact"] and about["agreement"]["largest_difference"] < 1e-5, about
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert config["model_type"] == kind and "auto_map" not in config
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "colour")
    inputs = opened.model.tokenizer(["the red cat", "blue"], padding=True, return_tensors="pt")
    chosen = again(**inputs).logits.argmax(1).tolist()
    wanted = opened.model.predict("colour", ["the red cat", "blue"])
    assert [again.config.id2label[number] for number in chosen] == wanted


@pytest.mark.parametrize(
    ("kind", "pooler"),
    [
        *((kind, False) for kind in dict.fromkeys([*SHOWN, "roberta", "electra", "ernie"])),
        *((kind, True) for kind in ("bert", "roberta", "ernie")),  # the others have no pooler
    ],
)
@torch.no_grad()
def test_the_heads_of_every_architecture_give_our_linear_head_to_rounding(kind, pooler):
    encoder = tiny(kind)
    if hasattr(encoder, "pooler") and not pooler:
        encoder.pooler = None
    ids = torch.randint(5, 290, (4, 10), generator=torch.Generator().manual_seed(0))
    out = encoder(input_ids=ids)
    hidden = out.last_hidden_state
    for outputs in (1, 3):
        head = nn.Linear(32, outputs)
        labels = {number: f"l{number}" for number in range(outputs)}
        model = plain_classifier(encoder, head, labels, "regression")
        wanted = head(out.pooler_output if pooler else hidden[:, 0])
        torch.testing.assert_close(model(input_ids=ids).logits, wanted, rtol=1e-6, atol=1e-6)
        if not pooler:
            tags = plain_token_model(encoder, head, labels)
            torch.testing.assert_close(tags(input_ids=ids).logits, head(hidden), rtol=0, atol=1e-6)
    if not pooler and kind not in NO_ANSWERS:
        head = nn.Linear(32, 2)
        found = plain_outputs(plain_token_model(encoder, head, None)(input_ids=ids))
        torch.testing.assert_close(found, head(hidden), rtol=0, atol=1e-6)


@torch.no_grad()
def test_outputs_far_from_1_go_through_a_norm_and_pads_do_not_count():
    """ModernBERT's classifier has a norm, and pools by the mean where its configuration says so."""
    encoder = tiny("modernbert", classifier_pooling="mean")
    ids = torch.randint(5, 290, (2, 10), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    hidden = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    for scale in (1e-3, 1e5):
        head = nn.Linear(32, 3)
        head.weight *= scale
        model = plain_classifier(encoder, head, dict(enumerate("abc")), None)
        found = model(input_ids=ids, attention_mask=mask).logits
        torch.testing.assert_close(found, head(hidden[:, 0]), rtol=1e-5, atol=1e-6 * scale)


def test_an_architecture_whose_classifier_cannot_do_it_is_one_line():
    encoder = tiny("electra")
    with pytest.raises(ValueError, match="17 outputs in a head of width 32; allowed: half of it"):
        plain_classifier(encoder, nn.Linear(32, 17), dict(enumerate("abcdefghijklmnopq")), None)
    encoder = tiny("modernbert", classifier_activation="sigmoid")
    with pytest.raises(ValueError, match="ModernBertForSequenceClassification cannot compute"):
        plain_classifier(encoder, nn.Linear(32, 2), {0: "a", 1: "b"}, None)
    encoder = tiny("bert")
    with pytest.raises(ValueError, match="is Linear, Linear; allowed: one linear layer, or two of"):
        plain_classifier(encoder, nn.Linear(16, 2), {0: "a", 1: "b"}, None)
