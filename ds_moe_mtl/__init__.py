"""Sparse multi-task encoders with task-conditioned DeepSpeed MoE layers."""

from importlib import import_module

_HOMES = {
    "MultiTaskModel": "ds_moe_mtl.evaluation",
    "register_auto_classes": "ds_moe_mtl.models.portable.registration",
    "TaskMoE": "ds_moe_mtl.moe",
    "to_deepspeed": "ds_moe_mtl.moe",
    "upcycle": "ds_moe_mtl.models",
}
"""Public names by the package that defines them: torch and DeepSpeed come with the first use."""

__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str):
    """Import a public name when it is asked for."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name == "__version__":
        from importlib.metadata import version

        return version("ds-moe-mtl")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
