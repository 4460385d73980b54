"""An encoder's shape for the planner, of any family: counted in the model itself, without memory.

The model that a transformers configuration describes is built on the meta device, and its family
says what its layers and FFNs are.
"""

import copy
from collections.abc import Iterable, Iterator

import torch
from torch import nn

from ds_moe_mtl.config import UserError
from ds_moe_mtl.models.encoder_files import quiet, reason
from ds_moe_mtl.models.families import FFN, Family, family_of, set_dropout
from ds_moe_mtl.planner.shape import KNOWN_ENCODERS, Shape

OF_DISTANCES = "relative_attention"
"""The key of a DeBERTa's configuration that says whether scores have terms for distances."""

_OF_ROWS = ".pos_"
"""How a DeBERTa's maps are named that no token passes, but rows for distances."""

LOCAL = "sliding_attention"
"""What transformers' layer_types calls a layer with a window."""


def known_config(name: str):
    """Return transformers' configuration of an encoder of KNOWN_ENCODERS."""
    from transformers import AutoConfig

    model_type, more = KNOWN_ENCODERS[name]
    return AutoConfig.for_model(model_type, **more)


def shape_of(config) -> Shape:
    """Return the shape of the encoder that a transformers configuration describes.

    Raises UserError, one line, for one that is of no family, or whose layers are not alike.
    """
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            model = build(config, dropout=0.1, pooler=True)
        family = family_of(model)
        ffns = [family.ffn(layer, config) for layer in family.layers(model)]
        return _counted(model, family, ffns)
    except ValueError as error:
        kind = config.model_type
        raise UserError(f"model.encoder: model_type {kind} has no plan: {error}") from error


def build(config, dropout: float, pooler: bool) -> nn.Module:
    """Return the encoder of a configuration with random weights, in float32.

    Raises ValueError, one line, for a configuration of which transformers makes no encoder.
    """
    from transformers import AutoModel

    config = copy.deepcopy(config)
    set_dropout(config, dropout)
    try:
        with quiet():
            model = AutoModel.from_config(config, dtype=torch.float32, trust_remote_code=False)
    except Exception as error:  # whatever a foreign configuration leads to
        raise ValueError(reason(error)) from error
    if not pooler and hasattr(model, "pooler"):
        model.pooler = None
    return model


def with_layers(config, layers: int):
    """Return a copy of a configuration with only its first `layers` layers."""
    shorter = copy.deepcopy(config)
    if getattr(config, "layer_types", None):
        shorter.layer_types = config.layer_types[:layers]
    shorter.num_hidden_layers = layers
    return shorter


def _counted(model: nn.Module, family: Family, ffns: list[FFN]) -> Shape:
    """Return the shape of a model on the meta device."""
    config, layers, ffn = model.config, family.layers(model), ffns[-1]
    if len({(one.inner_size, one.gated, one.has_bias) for one in ffns}) > 1:
        raise ValueError(f"layers of {type(model).__name__} differ in their FFNs; allowed: alike")
    maps = [*ffn.first, ffn.second]
    layer, window = layers[-1], family.window(model)
    of_ffn, pooled = _weights(maps), _weights([getattr(model, "pooler", None)])
    beside = _weights([layer]) - of_ffn
    table = family.word_embeddings(model)
    return Shape(
        layers=len(layers),
        hidden=ffn.hidden_size,
        intermediate=ffn.inner_size,
        heads=config.num_attention_heads,
        vocabulary=table.num_embeddings,
        positions=family.max_length(model),
        token_types=family.token_types(model),
        gated=ffn.gated,
        biased=ffn.has_bias,
        head_size=family.head_size(model),
        beside=beside,
        projections=_products(layer, maps),
        outside=_weights([model]) - pooled - len(layers) * (beside + of_ffn),
        mapped=_products(model, [*layers, getattr(model, "pooler", None)]),
        pooled=pooled,
        table_width=table.embedding_dim,
        window=window,
        local=list(config.layer_types).count(LOCAL) if window else 0,
        relative=family.relative,
        terms=_terms(config),
        masks=_masks(layer),
        scaled=sum(_scaled(module) for module in layer.modules()),
    )


def _weights(modules: Iterable[nn.Module | None]) -> int:
    """Return the weights of modules, each counted once."""
    found = {id(p): p.numel() for m in modules if m is not None for p in m.parameters()}
    return sum(found.values())


def _running(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules below one that a token passes; of a ModuleDict (X-MOD's adapters, one a
    language) it passes one."""
    yield module
    children = list(module.children())
    for child in children[:1] if isinstance(module, nn.ModuleDict) else children:
        yield from _running(child)


def _products(module: nn.Module, but: Iterable[nn.Module | None]) -> int:
    """Return the weights that a token is multiplied by in a module, but not in those of `but`."""
    left_out = {id(inner) for outer in but if outer is not None for inner in outer.modules()}
    left_out |= {id(m) for name, m in module.named_modules() if _OF_ROWS in f".{name}"}
    linear = [m for m in _running(module) if isinstance(m, nn.Linear) and id(m) not in left_out]
    return sum(m.weight.numel() for m in linear)


def _terms(config) -> int:
    """Return how many of DeBERTa's two products for distances scores have."""
    kinds = getattr(config, "pos_att_type", None) if getattr(config, OF_DISTANCES, False) else ()
    return sum(kind in (kinds or ()) for kind in ("c2p", "p2c"))


def _masks(layer: nn.Module) -> int:
    """Return the dropouts of rows of D. One beside maps of query, key and value is of scores."""
    found = 0
    for module in layer.modules():
        children = list(module.children())
        if sum(isinstance(child, nn.Linear) for child in children) < 3:
            found += sum(isinstance(child, nn.Dropout) and child.p > 0 for child in children)
    return found


def _scaled(module: nn.Module) -> int:
    """Return the rows that a norm in plain PyTorch keeps, one for each of its vectors of weights;
    0 for torch's own, and for what is no norm."""
    own = {name: parameter.dim() for name, parameter in module.named_parameters(recurse=False)}
    plain = own in ({"weight": 1}, {"weight": 1, "bias": 1})
    return 0 if not plain or isinstance(module, nn.LayerNorm | nn.RMSNorm) else len(own)
