"""Sparse multi-task encoders with task-conditioned DeepSpeed MoE layers."""

__all__ = ["MultiTaskModel"]


def __getattr__(name: str):
    """Import MultiTaskModel when it is asked for: it brings torch and transformers along."""
    if name == "MultiTaskModel":
        from ds_moe_mtl.evaluation import MultiTaskModel

        return MultiTaskModel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
