"""A model card says what is known, says what is not, and no text of a user's is markup in it."""

import yaml

from ds_moe_mtl.evaluation.card import model_card
from ds_moe_mtl.models.pretrained import MINILM_PACKAGED
from ds_moe_mtl.tasks import TaskSpec

ROWS = [
    TaskSpec("a", "classification", ("t", "u"), labels=("<script>|x", "[y](z)\n# h"), prefix="p: "),
    TaskSpec("b", "multilabel", ("t",), labels=("x", "y"), thresholds=(0.25, 0.5)),
    TaskSpec("c", "regression", ("t",), train_file="/home/someone/c.csv"),
    TaskSpec("d", "tags", ("t",), labels=("O", "B-x"), hub=("owner/set", "en")),
]
DESCRIPTION = {
    "kind": "mt_tag",
    "routing": {"combine": "top1", "num_experts": 4, "num_gates": 3, "route_by": "token"},
    "encoder": {"num_hidden_layers": 6},
    "about": {"encoder": {"name": MINILM_PACKAGED}, "notes": ["a: trained on 5"]},
    "tasks": [spec.to_dict() for spec in ROWS],
}


def parts(card: str) -> tuple[dict, str]:
    _, head, body = card.split("---\n", 2)
    return yaml.safe_load(head), body


def test_scores_intervals_notes_and_limits_are_told():
    results = {"tasks": {"a": {"metric": "accuracy", "value": 61.25, "examples": 1234}}}
    results |= {"notes": ["a: half of it"], "data": {"a": {"examples": 9876}}}
    head, body = parts(model_card(DESCRIPTION, results, {"a": (58.04, 64.5)}, "mit"))
    assert head["license"] == "mit"
    (row,) = (line for line in body.splitlines() if line.startswith("| a |"))
    assert "9,876" in row and "| 61.2 | 58.0 to 64.5 | 1,234 |" in row
    assert "- a: half of it\n" in body and "trained on 5" not in body
    assert "training data included MNLI and SNLI" in body
    assert "b: a label is given from these probabilities on: 0.25, 0.50." in body
    assert "d: opens with AutoModelForTokenClassification." in body
    assert "a: put 'p: ' before the first text." in body
    assert "Pairs of texts go to: a." in body
    assert "not known" in next(line for line in body.splitlines() if line.startswith("| b |"))


def test_what_nobody_gave_is_said_to_be_unknown_and_labels_are_no_markup():
    head, body = parts(model_card(DESCRIPTION))
    assert "license" not in head
    assert "The licence is unknown" in body and "No scores came with the model" in body
    assert "<script>" not in body and "\n# h" not in body and "[y](z)" not in body
    assert "someone" not in body and "own files" in body and "owner/set/en" in body
