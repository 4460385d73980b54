"""Families of encoders: one file each, which tells what an encoder must tell us."""

from torch import nn

from ds_moe_mtl.models.families.bert import Bert
from ds_moe_mtl.models.families.deberta import Deberta, DebertaV2
from ds_moe_mtl.models.families.distilbert import DistilBert
from ds_moe_mtl.models.families.eurobert import EuroBert
from ds_moe_mtl.models.families.family import Family
from ds_moe_mtl.models.families.ffn import FFN
from ds_moe_mtl.models.families.megatron_bert import MegatronBert
from ds_moe_mtl.models.families.modernbert import ModernBert
from ds_moe_mtl.models.families.mpnet import MPNet
from ds_moe_mtl.models.families.nomic_bert import NomicBert
from ds_moe_mtl.models.families.rembert import RemBert

__all__ = ["FFN", "Bert", "Family", "dropout_of", "family_of", "ffn_layers", "set_dropout"]

# The first that takes a model has it: those that look for more stand before those that look for
# less.
FAMILIES: tuple[Family, ...] = (
    DistilBert(),
    ModernBert(),
    EuroBert(),
    NomicBert(),
    DebertaV2(),
    Deberta(),
    MPNet(),
    MegatronBert(),
    RemBert(),
    Bert(),
)


def family_names() -> str:
    """Return the families' names for a message."""
    return ", ".join(family.name for family in FAMILIES)


def family_of(encoder: nn.Module) -> Family:
    """Return an encoder's family. Raises ValueError, one line, where it has none."""
    for family in FAMILIES:
        if family.is_encoder(encoder):
            return family
    raise ValueError(
        f"{type(encoder).__name__} is no encoder of a family known here; allowed: "
        f"{family_names()} and their like"
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
        f"{type(model).__name__} has no layer whose FFN is that of an encoder known here; allowed: "
        f"{family_names()} and their like"
    )


def set_dropout(config, probability: float) -> None:
    """Give a transformers configuration `probability` for the dropouts that a family names.

    Those that a family leaves out are 0.
    """
    values = {name: 0.0 for family in FAMILIES for name in family.undropped}
    values |= {name: probability for family in FAMILIES for name in family.dropouts}
    for name, value in values.items():
        if hasattr(config, name):
            setattr(config, name, value)


def dropout_of(config) -> float:
    """Return the first dropout that a family names which a configuration has; 0 for none."""
    names = (name for family in FAMILIES for name in family.dropouts)
    return next((getattr(config, name) for name in names if hasattr(config, name)), 0.0)
