"""DeepSpeed's checkpoint files read with a list of what may be in them.

They are pickles, and DeepSpeed reads them as such: a file from a stranger could run its code.
PyTorch's restricted loader admits tensors, plain containers and the few classes named here.
"""

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


def _allowed() -> list[type]:
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [fragment_address, LossScaler, DynamicLossScaler, ZeroStageEnum]
