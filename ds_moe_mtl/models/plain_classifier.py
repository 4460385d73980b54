"""A dense encoder and one head as transformers' own model, which needs no code of anybody's.

Heads that read tokens are mostly one linear map there, as ours. transformers' heads of a sequence
are two layers with an activation between them: BERT's pooler, RoBERTa's `classifier.dense`,
ModernBERT's `head`, whose norm stands before the outer layer (and before that of its heads of
tokens). Where our head reads a state linearly, the inner layer has to do nothing:

- tanh: the inner layer is 2^-18 times the identity, and the outer one 2^18 times our head. Scaling
  by a power of two is exact, and tanh(x) is x within (2^-18 x)^2 / 3 of it, 2e-9 for a state of 20:
  below float32's rounding (6e-8), above which nothing is lost. In float16 it would be lost.
- GELU, SiLU, ReLU: f(x) - f(-x) = x, so the inner layer gives every output of our head twice, with
  both signs, and the outer one takes the difference.
- A norm between them: the same, 2^-40 times as large. The variance is then nothing beside the
  norm's eps, so that the norm multiplies by 1 / sqrt(eps); its mean goes with the difference.

Which one fits is tried, not believed. D hidden size, C outputs, B sequences, S tokens of each.
"""

import copy
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import nn

SHRINK = 2.0**-18
TINY = 2.0**-40
"""Of outputs before a norm: even 1e6 has a variance of 1e-12 there, 1e-7 of the smallest eps in
use (1e-5 in ModernBERT). Our choice."""

_ULPS = 64
"""Rounding allowed to the head's two products, in eps of the largest output; our choice."""

_FIRST_TOKEN = {"modernbert": "cls", "eurobert": "bos"}
"""A configuration's classifier_pooling that reads the first token, by model_type."""


def plain_classifier(
    encoder: nn.Module, head: nn.Linear, id2label: Mapping[int, str], problem_type: str
) -> nn.Module:
    """Return transformers' sequence classifier of the encoder's architecture, in eval mode.

    encoder: a dense transformers encoder; its pooler, where it has one, stands between [CLS] and
    the head. Raises ValueError, one line, for an architecture without a classifier that can do the
    same.
    """
    from transformers import AutoModelForSequenceClassification

    config = _labelled(encoder.config, id2label)
    config.problem_type = problem_type
    if config.model_type in _FIRST_TOKEN:
        config.classifier_pooling = _FIRST_TOKEN[config.model_type]
    return _plain_model(AutoModelForSequenceClassification, config, encoder, head)


def plain_token_model(
    encoder: nn.Module, head: nn.Linear, id2label: Mapping[int, str] | None
) -> nn.Module:
    """Return transformers' token classifier of the encoder's architecture, in eval mode.

    id2label None: its model that answers questions, head's outputs the scores of an answer's first
    and last token. Raises ValueError, one line, for an architecture without such a model.
    """
    from transformers import AutoModelForQuestionAnswering, AutoModelForTokenClassification

    if id2label is None:
        config = _labelled(encoder.config, {0: "first", 1: "last"})
        return _plain_model(AutoModelForQuestionAnswering, config, encoder, head, of_tokens=True)
    config = _labelled(encoder.config, id2label)
    return _plain_model(AutoModelForTokenClassification, config, encoder, head, of_tokens=True)


def plain_outputs(outputs) -> torch.Tensor:
    """Return the outputs of one of transformers' classes as one tensor."""
    if "start_logits" in outputs:
        return torch.stack([outputs.start_logits, outputs.end_logits], dim=-1)
    return outputs.logits


def _labelled(config, id2label: Mapping[int, str]):
    config = copy.deepcopy(config)
    config.id2label = dict(id2label)
    config.label2id = {label: number for number, label in id2label.items()}
    return config


class _Layers(NamedTuple):
    """The layers of a class's own head, in order; all but `outer` may be None."""

    inner: nn.Linear | None
    norm: nn.LayerNorm | None
    outer: nn.Linear


_Fill = Callable[[_Layers, nn.Linear], None]


@torch.no_grad()
def _plain_model(
    auto, config, encoder: nn.Module, head: nn.Linear, of_tokens: bool = False
) -> nn.Module:
    """Return the model of an AutoModel's class that computes the encoder and the head.

    of_tokens: its head reads every token. Raises ValueError where the class cannot do it.
    """
    model, base = _filled(auto, config, encoder, head)
    pooler = None if of_tokens else getattr(encoder, "pooler", None)
    layers = _layers(model, base, head, of_tokens)
    generator = torch.Generator().manual_seed(0)
    states_BSD = 4 * torch.randn(64, 2, head.in_features, generator=generator)
    states_BSD = states_BSD.to(head.weight)
    read = states_BSD if of_tokens else states_BSD[:, 0]
    wanted = head(read if pooler is None else pooler(states_BSD))
    tolerance = _ULPS * torch.finfo(head.weight.dtype).eps * float(wanted.abs().max().clamp(min=1))
    for fill in _fills(layers, pooler):
        fill(layers, head)
        found = _outputs(model, base, states_BSD)
        if found.shape == wanted.shape and float((found - wanted).abs().max()) <= tolerance:
            return model
    raise ValueError(f"the head of {type(model).__name__} cannot compute this model's")


def _filled(auto, config, encoder: nn.Module, head: nn.Linear) -> tuple[nn.Module, nn.Module]:
    """Return (model of an AutoModel's class, its base with the encoder's weights), in eval mode."""
    try:
        model = auto.from_config(config)
    except ValueError as error:
        name = type(encoder).__name__
        raise ValueError(f"transformers has no {auto.__name__} of {name}") from error
    base = getattr(model, model.base_model_prefix)
    missing, unexpected = base.load_state_dict(encoder.state_dict(), strict=False)
    odd = [key for key in (*missing, *unexpected) if not key.startswith("pooler.")]
    assert not odd, odd
    return model.to(head.weight.dtype).eval(), base


def _layers(model: nn.Module, base: nn.Module, head: nn.Linear, of_tokens: bool) -> _Layers:
    """Return what has weights in a model beside its encoder: one or two linear maps, a norm.

    Raises ValueError, one line, for a head of anything else.
    """
    pooler = None if of_tokens else getattr(base, "pooler", None)
    of_encoder = set(base.modules()) - set(() if pooler is None else pooler.modules())
    found = [
        module for module in model.modules() if module not in of_encoder and module._parameters
    ]
    linears = [module for module in found if type(module) is nn.Linear]
    norms = [module for module in found if type(module) is nn.LayerNorm]
    wide = [tuple(linear.weight.shape) for linear in linears]
    square = (head.in_features, head.in_features)
    if (
        wide not in ([tuple(head.weight.shape)], [square, tuple(head.weight.shape)])
        or len(linears) + len(norms) != len(found)
        or len(norms) >= len(linears)
    ):
        shown = ", ".join(f"{type(module).__name__}" for module in found) or "nothing"
        raise ValueError(
            f"the head of {type(model).__name__} is {shown}; allowed: one linear layer, or two of "
            f"the encoder's width"
        )
    return _Layers(*(linears[:-1] or (None,)), *(norms or (None,)), linears[-1])


def _outputs(model: nn.Module, base: nn.Module, states_BSD: torch.Tensor) -> torch.Tensor:
    """Return what a model's own forward makes of hidden states that its encoder did not give."""

    def put(module, inputs, output):
        output["last_hidden_state"] = states_BSD
        if getattr(base, "pooler", None) is not None:
            output["pooler_output"] = base.pooler(states_BSD)
        return output

    ids_BS = torch.zeros(states_BSD.shape[:2], dtype=torch.long, device=states_BSD.device)
    handle = base.register_forward_hook(put)
    try:
        return plain_outputs(model(input_ids=ids_BS))
    finally:
        handle.remove()


def _fills(layers: _Layers, pooler: nn.Module | None) -> tuple[_Fill, ...]:
    """Return the ways of giving a head's layers ours, to be tried in order."""
    if layers.inner is None:
        return (_alone,)
    if pooler is not None:
        return (_pooled(pooler),)
    return (_paired,) if layers.norm is not None else (_shrunk, _paired)


def _alone(layers: _Layers, head: nn.Linear) -> None:
    layers.outer.load_state_dict(head.state_dict())


def _pooled(pooler: nn.Module) -> _Fill:
    def fill(layers: _Layers, head: nn.Linear) -> None:
        layers.inner.load_state_dict(pooler.dense.state_dict())
        layers.outer.load_state_dict(head.state_dict())

    return fill


def _shrunk(layers: _Layers, head: nn.Linear) -> None:
    inner, _, outer = layers
    inner.weight.copy_(SHRINK * torch.eye(len(inner.weight)))
    _zero_bias(inner)
    outer.weight.copy_(head.weight / SHRINK)
    outer.bias.copy_(head.bias)


def _paired(layers: _Layers, head: nn.Linear) -> None:
    inner, norm, outer = layers
    outputs, scale, back = len(head.weight), 1.0, 1.0
    if 2 * outputs > len(inner.weight):
        raise ValueError(
            f"{outputs} outputs in a head of width {len(inner.weight)}; allowed: half of it"
        )
    if norm is not None:
        scale, back = TINY, norm.eps**0.5 / TINY
        nn.init.ones_(norm.weight)
        _zero_bias(norm)
    for place, sign in ((0, 1), (outputs, -1)):
        inner.weight[place : place + outputs] = sign * scale * head.weight
        outer.weight[:, place : place + outputs] = sign * back * torch.eye(outputs)
    inner.weight[2 * outputs :] = 0
    _zero_bias(inner)
    outer.weight[:, 2 * outputs :] = 0
    outer.bias.copy_(head.bias)


def _zero_bias(module: nn.Module) -> None:
    if module.bias is not None:
        nn.init.zeros_(module.bias)
