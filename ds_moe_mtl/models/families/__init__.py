"""Families of encoders: one file each, which tells what an encoder must tell us."""

from torch import nn

from ds_moe_mtl.models.families import bert
from ds_moe_mtl.models.families.family import FFN, Family

__all__ = ["FFN", "Family", "dropout_of", "family_of", "ffn_layers", "set_dropout"]

FAMILIES: tuple[Family, ...] = (bert,)


def family_of(encoder: nn.Module) -> Family:
    """Return an encoder's family. Raises ValueError, one line, where it has none."""
    for family in FAMILIES:
        if family.is_encoder(encoder):
            return family
    raise ValueError(
        f"{type(encoder).__name__} is not a BERT-family encoder with absolute positions; allowed: "
        f"BERT, MiniLM, RoBERTa, XLM-R, ELECTRA and their like"
    )


def ffn_layers(model: nn.Module) -> tuple[Family, list[nn.Module]]:
    """Return the layers of any model with an FFN of a family's, and that family.

    Raises ValueError, one line, for a model without such layers.
    """
    for family in FAMILIES:
        layers = family.ffn_layers(model)
        if layers:
            return family, layers
    raise ValueError(
        f"{type(model).__name__} has no layer of BERT's shape (intermediate.dense and "
        f"output.dense); allowed: BERT-family encoders"
    )


def set_dropout(config, probability: float) -> None:
    """Give a transformers configuration `probability` for the dropouts that a family names."""
    for name in {name for family in FAMILIES for name in family.DROPOUTS}:
        if hasattr(config, name):
            setattr(config, name, probability)


def dropout_of(config) -> float:
    """Return the dropout of hidden states that a transformers configuration has; 0 for none."""
    names = (family.DROPOUTS[0] for family in FAMILIES)
    return next((getattr(config, name) for name in names if hasattr(config, name)), 0.0)
