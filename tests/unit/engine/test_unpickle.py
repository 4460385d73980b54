"""What may be in a checkpoint file: a member of DeepSpeed's enum, as any Python pickles it."""

import pickle

import pytest
import torch
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum

from ds_moe_mtl.engine.unpickle import load_pickled


class Pickled:
    """An object that a file holds as a call."""

    def __init__(self, *call) -> None:
        self.call = call

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "call",
    [(getattr, (ZeroStageEnum, "gradients")), (ZeroStageEnum, (ZeroStageEnum.gradients.value,))],
    ids=["by name", "by value"],
)
def test_a_member_is_read_however_it_was_written(tmp_path, call):
    torch.save({"stage": Pickled(*call), "weights": torch.ones(3)}, tmp_path / "file.pt")
    found = load_pickled(tmp_path / "file.pt")
    assert found["stage"] is ZeroStageEnum.gradients and found["weights"].tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    "call",
    [
        (getattr, (ZeroStageEnum, "mro")),
        (getattr, (ZeroStageEnum, "__class__")),
        (getattr, (DynamicLossScaler, "__init__")),
        (getattr, ("text", "format")),
        (getattr, (ZeroStageEnum, ["gradients"])),
        (print, ("code of a stranger",)),
    ],
)
def test_nothing_else_is_reached_by_a_name(tmp_path, capsys, call):
    torch.save({"stage": Pickled(*call)}, tmp_path / "file.pt")
    with pytest.raises(pickle.UnpicklingError):
        load_pickled(tmp_path / "file.pt")
    assert capsys.readouterr().out == ""
