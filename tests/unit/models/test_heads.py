"""No task's name is a name inside: heads go by their numbers, and by their tasks' names on disk."""

import os
import stat

import pytest
import torch
from torch import nn

from ds_moe_mtl.models.description import read_state, save_folder
from ds_moe_mtl.models.heads import HeadSpec, TaskHeads, from_disk, names_on_disk, to_disk
from tests.support.tiny import write_encoder

ATTRIBUTES = sorted(name for name in dir(nn.ModuleDict()) if name.isidentifier() and name[0] != "_")
NAMES = [*ATTRIBUTES, "options", "expert", "deepspeed_moe", "weight", "bias", "0", "tasks", "gate"]


def specs_of(names):
    return [HeadSpec(name, 2 + place % 3) for place, name in enumerate(names)]


def test_every_attribute_of_a_module_is_a_name_for_a_task():
    specs = [*specs_of(NAMES), HeadSpec("x", 1, shared="options")]
    heads = TaskHeads(8, specs, 0.0)
    assert not [key for key in heads.state_dict() for name in ("expert", "train") if name in key]
    hidden = torch.randn(len(specs), 8)
    spans = torch.full((len(specs), 2, 2), -1)
    rows = torch.arange(len(specs))
    outputs = heads(hidden, hidden, rows, rows, spans)
    for row, spec in enumerate(specs):
        own = heads.head(spec.key)(hidden[row])
        torch.testing.assert_close(outputs[row, : spec.outputs], own)


def test_what_a_folder_calls_the_heads_goes_there_and_back():
    specs = [HeadSpec("type", 2), HeadSpec("options", 3), HeadSpec("a", 1, shared="options")]
    heads = TaskHeads(4, specs, 0.0)
    state = {f"heads.{key}": value for key, value in heads.state_dict().items()}
    stored = to_disk(state, specs)
    assert [key for key in stored if key.endswith("weight")] == [
        "heads.tasks.type.weight",
        "heads.tasks.task:options.weight",
        "heads.tasks.options.weight",
    ]
    back = from_disk(stored, specs)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)


def test_names_on_disk_of_heads_are_distinct_whatever_the_tasks_are_called():
    specs = [*specs_of(NAMES), *(HeadSpec(f"x{n}", 1, shared=n) for n in ("options", "type"))]
    assert len(set(names_on_disk(specs))) == len(specs)


def test_a_folder_of_before_loads_by_its_tasks_names():
    specs = specs_of(["colour", "a", "same"])
    heads, other = TaskHeads(4, specs, 0.0), TaskHeads(4, specs, 0.0)
    before = {
        f"tasks.{spec.name}.{kind}": getattr(head, kind)
        for spec, head in zip(specs, heads.linears, strict=True)
        for kind in ("weight", "bias")
    }
    other.load_state_dict(before)
    for mine, theirs in zip(heads.linears, other.linears, strict=True):
        assert torch.equal(mine.weight, theirs.weight)
    with pytest.raises(RuntimeError, match="tasks.other.weight"):
        other.load_state_dict({**before, "tasks.other.weight": torch.zeros(1)})


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_every_file_of_a_folder_has_the_permissions_of_a_new_file(tmp_path, mask):
    from ds_moe_mtl.models.tokenizer import EncoderLimits, load_tokenizer

    tokenizer = load_tokenizer(write_encoder(tmp_path / "encoder"), EncoderLimits(1000, 64))
    before = os.umask(mask)
    try:
        for _ in range(2):  # also over a folder that is there
            save_folder(tmp_path / "model", {}, {"x": torch.zeros(2)}, tokenizer)
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "model").iterdir()}
    assert modes == {0o666 & ~mask} and torch.equal(
        read_state(tmp_path / "model")["x"], torch.zeros(2)
    )
