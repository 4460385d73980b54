"""The DeepSpeed edge: the only code that knows DeepSpeed's MoE.

DeepSpeed comes with the first name that is asked for, so that a release whose insides are not
known is refused in one line (engine.contract) and not by an import that fails.
"""

from importlib import import_module

_HOMES = {
    "TaskGate": "ds_moe_mtl.moe.gate",
    "TaskMoE": "ds_moe_mtl.moe.layer",
    "to_deepspeed": "ds_moe_mtl.moe.convert",
}

__all__ = ["TaskGate", "TaskMoE", "to_deepspeed"]


def __getattr__(name: str):
    """Import a public name when it is asked for."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
