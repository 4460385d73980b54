"""Whether an encoder runs packed as it runs alone, and routed as dense: tried, not believed.

An architecture that attends in a way of its own takes our packed attention without a word, and
lets every example see its neighbours. No name or attribute tells which do.

B sequences, T tokens of them all, D hidden size.
"""

import copy
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import nn

from ds_moe_mtl.models.dropout import without_dropout
from ds_moe_mtl.models.encoder import PackedEncoder
from ds_moe_mtl.models.encoder_files import quiet, reason
from ds_moe_mtl.models.families import family_of
from ds_moe_mtl.models.heads import HeadSpec
from ds_moe_mtl.models.multitask import SPARSE_KINDS, MultiTaskNetwork, build_network
from ds_moe_mtl.models.task_level.task_router import RouterOptions
from ds_moe_mtl.models.token_level.gating import RoutingOptions

ROUTED_KINDS = (*SPARSE_KINDS, "task_moe")

LENGTHS = (11, 5, 17)
"""Tokens of the sequences tried: unequal, so that attention pads; the middle one is exchanged."""

_ULPS = 4
"""Rounding that a layer may bring, in eps of the largest output times sqrt(D), the error of a sum
of D products. Our choice. Measured with tiny random and MiniLM's weights: right encoders stay below
1 / 20 of it, the mildest wrong one is at more than 300 times as much."""


@dataclass(frozen=True)
class EncoderCheck:
    """Largest absolute differences that were found, and what rounding may bring.

    packed: sequences packed to each alone. beside: a sequence beside others, in training without
    dropout, to itself in evaluation. routed: the routed network with one expert to the dense one,
    None where it was not tried. tolerance: of packed and routed; repeated: of beside, where the
    same products are taken twice.
    """

    packed: float
    beside: float
    routed: float | None
    tolerance: float
    repeated: float


def check_encoder(transformer: nn.Module, name: str, kind: str = "mt_dense") -> EncoderCheck:
    """Return what trying out a dense float32 encoder found; it and all random states stay as is.

    kind: of the network that it is for; a routed one takes memory for one more copy of each FFN
    (task_moe: layer) while it is tried. No collective calls: every rank finds the same by itself.
    Raises ValueError, one line, for an encoder that cannot run packed or routed, or gives something
    else there.
    """
    what = f"model.encoder: {name} ({type(transformer).__name__})"
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), quiet():
            text = _text(transformer)
            found, packed_TD = _try_packed(transformer, text)
            fault = _fault(found, kind)
            if not fault and kind in ROUTED_KINDS:
                difference_TD = _routed(_sharing(transformer), kind, text) - packed_TD
                found = replace(found, routed=_largest(difference_TD))
                fault = _fault(found, kind)
    except Exception as error:  # whatever an unknown architecture raises
        raise ValueError(f"{what}: not for model.kind {kind}: {reason(error)}") from error
    if fault:
        raise ValueError(f"{what}: {fault}")
    return found


def _fault(found: EncoderCheck, kind: str) -> str:
    """Return what is wrong, "" if nothing. A NaN is."""
    rounding = f"rounding: {found.tolerance:.1g}"
    allowed = "allowed: encoders that attend through transformers' interface, as BERT and RoBERTa"
    if not found.packed <= found.tolerance:
        difference = f"differ by {found.packed:.2g} from each alone"
        return f"packed sequences {difference} ({rounding}); {allowed}"
    if not found.beside <= found.repeated:
        return (
            f"in training, without dropout, a sequence differs by {found.beside:.2g} beside other "
            f"ones: it sees them, or draws in a way of its own; {allowed}"
        )
    if found.routed is not None and not found.routed <= found.tolerance:
        return (
            f"with model.kind {kind} and one expert it differs by {found.routed:.2g} from the "
            f"dense encoder ({rounding}); allowed: single, mt_dense"
        )
    return ""


class _Text(NamedTuple):
    """Tokens to try an encoder with, and the tokens of each sequence."""

    ids_T: torch.Tensor
    types_T: torch.Tensor
    lengths: list[int]


def _try_packed(transformer: nn.Module, text: _Text) -> tuple[EncoderCheck, torch.Tensor]:
    """Return what running packed found, and the packed hidden states [T, D]."""
    packed = PackedEncoder(_sharing(transformer)).eval()
    packed_TD = _packed(packed, text)
    expected_TD, expected_BD = _alone(_sharing(transformer).eval(), text)
    difference = _largest(packed_TD - expected_TD)
    if expected_BD is not None:
        starts_B = torch.tensor([0, *text.lengths[:-1]]).cumsum(0)
        pooled_BD = packed.pool(packed_TD[starts_B])
        if pooled_BD.shape != expected_BD.shape:
            raise ValueError(
                "its pooler does not take states of [CLS]; allowed: model.pooler false"
            )
        difference = max(difference, _largest(pooled_BD - expected_BD))
    middle = slice(text.lengths[0], text.lengths[0] + text.lengths[1])
    change_TD = _packed(without_dropout(packed.train()), _exchanged(text, middle)) - packed_TD
    change_TD[middle] = 0
    ulps = _ULPS * torch.finfo(packed_TD.dtype).eps * max(1.0, _largest(expected_TD))
    depth, width = transformer.config.num_hidden_layers, packed_TD.shape[1]
    tolerance = depth * width**0.5 * ulps
    return EncoderCheck(difference, _largest(change_TD), None, tolerance, ulps), packed_TD


def _text(transformer: nn.Module) -> _Text:
    """Return tokens that stand for text, and types that alternate.

    None is a special token but one, that of pads, in the middle of a text: RoBERTa counts it out.
    """
    family = family_of(transformer)
    lengths = list(LENGTHS)
    if family.window(transformer):  # one sequence of several windows
        lengths[-1] = max(lengths[-1], 2 * family.window(transformer) + 3)
    lengths = [min(length, family.max_length(transformer)) for length in lengths]
    count, config = sum(lengths), transformer.config.to_dict()
    special = {
        value
        for name, value in config.items()
        if name.endswith("token_id") and isinstance(value, int)
    }
    rows = family.word_embeddings(transformer).num_embeddings
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(0)).tolist()
    ids = [number for number in order[: count + len(special)] if number not in special] or [0]
    types_T = torch.arange(count) % max(1, min(2, family.token_types(transformer)))
    ids_T, pad = torch.tensor((ids * count)[:count]), config.get("pad_token_id")
    if isinstance(pad, int) and 0 <= pad < rows:
        ids_T[lengths[0] // 2] = pad
    return _Text(ids_T, types_T, lengths)


def _exchanged(text: _Text, middle: slice) -> _Text:
    """Return the text with the tokens of its middle sequence exchanged for the first one's."""
    ids_T = text.ids_T.clone()
    ids_T[middle] = text.ids_T[: middle.stop - middle.start]
    return text._replace(ids_T=ids_T)


def _packed(encoder: nn.Module, text: _Text) -> torch.Tensor:
    """Return the hidden states [T, D] of all sequences at once, padded together in attention."""
    return encoder(*_inputs(text), text.lengths)


def _inputs(text: _Text) -> tuple:
    positions_T = torch.cat([torch.arange(length) for length in text.lengths])
    ends = torch.tensor([0, *text.lengths]).cumsum(0).int()
    return text.ids_T, text.types_T, positions_T, ends, [(0, len(text.lengths))]


def _alone(transformer: nn.Module, text: _Text) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return hidden states [T, D] and, with a pooler, pooled states [B, D], by transformers alone:
    each sequence is a batch of its own."""
    hidden, pooled = [], []
    has_types = family_of(transformer).token_types(transformer) > 0
    pairs = zip(text.ids_T.split(text.lengths), text.types_T.split(text.lengths), strict=True)
    for ids, types in pairs:
        more = {"token_type_ids": types[None]} if has_types else {}
        mask = torch.ones_like(ids)[None]
        out = transformer(input_ids=ids[None], attention_mask=mask, **more)
        hidden.append(out.last_hidden_state[0])
        if getattr(transformer, "pooler", None) is not None:
            pooled.append(out.pooler_output)
    return torch.cat(hidden), torch.cat(pooled) if pooled else None


def _routed(transformer: nn.Module, kind: str, text: _Text) -> torch.Tensor:
    """Return the hidden states [T, D] of a network of that kind with one expert, one task."""
    routing = RoutingOptions(num_experts=1, gate_scale="preserve")
    router = RouterOptions(experts=1, route="average")
    heads = [HeadSpec("tried", 1)]
    network: MultiTaskNetwork = build_network(
        transformer, kind, heads, 0.0, routing, router=router
    ).eval()
    seen = []
    network.encoder.register_forward_hook(lambda *call: seen.append(call[-1]))
    number = len(text.lengths)
    network(
        *_inputs(text),
        torch.zeros(number, dtype=torch.long),
        torch.full((number, 2, 2), -1),
        torch.arange(number),
        lengths=text.lengths,
    )
    return seen[0]


def _sharing(transformer: nn.Module) -> nn.Module:
    """Return a copy that shares the weights and nothing else: modes, buffers, configuration."""
    return copy.deepcopy(transformer, {id(weight): weight for weight in transformer.parameters()})


def _largest(x: torch.Tensor) -> float:
    return float(x.abs().max())
