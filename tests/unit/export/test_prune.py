"""A model without one of its tasks: the others answer to the bit, in every family."""

import pytest
import torch

from ds_moe_mtl.evaluation import MultiTaskModel
from ds_moe_mtl.export.prune import prune
from tests.support.exported import write_model, write_source
from tests.support.families import PLACES
from tests.support.packed import packed_batch


@pytest.mark.parametrize("kind", PLACES)
@torch.no_grad()
def test_the_tasks_that_stay_answer_to_the_bit(kind, tmp_path):
    source = write_source(tmp_path / "source", kind)
    folder = write_model(source, tmp_path / "model", moe={"gate_scale": "paper"})
    before = MultiTaskModel.from_pretrained(folder, "cpu")
    prune(before, ["same"], tmp_path / "pruned")
    after = MultiTaskModel.from_pretrained(tmp_path / "pruned", "cpu")
    assert list(after.specs) == [name for name in before.specs if name != "same"]
    for name, spec in after.specs.items():
        if spec.kind in ("tags", "answer"):
            continue
        answers = []
        for model in (before, after):
            batch = packed_batch(list(model.specs).index(name))
            batch["input_ids_T"] %= 36  # words of the tiny tokenizer
            answers.append(model.network(**batch).logits_BC[:, : spec.num_outputs])
        assert torch.equal(*answers)
