"""DeepSpeed's checkpoint files read with a list of what may be in them.

They are pickles, and DeepSpeed reads them as such: a file from a stranger could run its code.
PyTorch's restricted loader admits tensors, plain containers and the few classes named here.
"""

import pickle
from pathlib import Path

import torch


def load_pickled(path: Path | str) -> dict:
    """Return a checkpoint file's content, on CPU and memory-mapped.

    Raises pickle.UnpicklingError where the file holds anything that is not on the list.
    """
    with torch.serialization.safe_globals(_allowed()):
        return torch.load(path, map_location="cpu", mmap=True, weights_only=True)


def restrict_loading(engine) -> None:
    """Let the engine's own load_checkpoint read files as load_pickled does."""
    engine.checkpoint_engine.load = lambda path, map_location=None: load_pickled(path)


def _allowed() -> list:
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    def member(kind: object, name: object) -> ZeroStageEnum:
        known = isinstance(name, str) and name in ZeroStageEnum.__members__
        if kind is not ZeroStageEnum or not known:
            raise pickle.UnpicklingError(f"getattr of {kind!r:.80} was not an allowed global")
        return ZeroStageEnum[name]

    # Python 3.11.2 (Debian 12) pickles an enum's member as getattr(class, name), 3.10, 3.11.7, 3.12
    # and 3.13 as class(value).
    by_name = (member, "builtins.getattr")
    return [fragment_address, LossScaler, DynamicLossScaler, ZeroStageEnum, by_name]
