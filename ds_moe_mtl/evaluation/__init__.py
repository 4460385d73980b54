"""Trained models in use: predictions and scores."""

from ds_moe_mtl.evaluation.model import MultiTaskModel

__all__ = ["MultiTaskModel"]
