"""A dense encoder and one head as transformers' own classifier, which needs no code of anybody's.

Heads that read tokens are the same there. transformers' heads of a sequence are two layers: BERT's
pooler, RoBERTa's and ELECTRA's `classifier.dense`, each with an activation. Where our head reads
[CLS] linearly, the inner layer has to do nothing:

- tanh: the inner layer is 2^-18 times the identity, and the outer one 2^18 times our head. Scaling
  by a power of two is exact, and tanh(x) is x within (2^-18 x)^2 / 3 of it, 2e-9 for a state of 20:
  below float32's rounding (6e-8), above which nothing is lost. In float16 it would be lost.
- GELU: gelu(x) - gelu(-x) = x, so the inner layer gives every output of our head twice, with both
  signs, and the outer one takes the difference.

Which one fits is tried, not believed. D hidden size, C outputs.
"""

import copy
from collections.abc import Callable, Mapping

import torch
from torch import nn

SHRINK = 2.0**-18

_ULPS = 64
"""Rounding allowed to the head's two products, in eps of the largest output; our choice."""


@torch.no_grad()
def plain_classifier(
    encoder: nn.Module, head: nn.Linear, id2label: Mapping[int, str], problem_type: str
) -> nn.Module:
    """Return transformers' sequence classifier of the encoder's architecture, in eval mode.

    encoder: a dense transformers encoder; its pooler, where it has one, stands between [CLS] and
    the head. Raises ValueError, one line, for an architecture without a classifier that can do the
    same.
    """
    from transformers import AutoModelForSequenceClassification

    config = copy.deepcopy(encoder.config)
    config.id2label = dict(id2label)
    config.label2id = {label: number for number, label in id2label.items()}
    config.problem_type = problem_type
    name = type(encoder).__name__
    model, base = _filled(AutoModelForSequenceClassification, config, encoder, head)
    pooler = getattr(encoder, "pooler", None)
    inner, outer = _two_layers(model, base, name)
    states_BD = torch.randn(64, head.in_features, generator=torch.Generator().manual_seed(0))
    states_BD = (4 * states_BD).to(head.weight)
    wanted_BC = head(states_BD if pooler is None else pooler(states_BD[:, None]))
    fills = (_shrunk, _paired) if pooler is None else (_pooled(pooler),)
    for fill in fills:
        fill(inner, outer, head)
        found_BC = _head_of(model, base, states_BD)
        largest = float(wanted_BC.abs().max().clamp(min=1))
        tolerance = _ULPS * torch.finfo(head.weight.dtype).eps * largest
        if float((found_BC - wanted_BC).abs().max()) <= tolerance:
            return model
    raise ValueError(f"the classifier of {type(model).__name__} cannot compute this model's head")


@torch.no_grad()
def plain_token_model(
    encoder: nn.Module, head: nn.Linear, id2label: Mapping[int, str] | None
) -> nn.Module:
    """Return transformers' token classifier of the encoder's architecture, in eval mode.

    id2label None: its model that answers questions, head's outputs the scores of an answer's first
    and last token. Raises ValueError, one line, for an architecture without such a model.
    """
    from transformers import AutoModelForQuestionAnswering, AutoModelForTokenClassification

    config = copy.deepcopy(encoder.config)
    auto, place = AutoModelForQuestionAnswering, "qa_outputs"
    if id2label is not None:
        auto, place = AutoModelForTokenClassification, "classifier"
        config.id2label = dict(id2label)
        config.label2id = {label: number for number, label in id2label.items()}
    model, _ = _filled(auto, config, encoder, head)
    outer = getattr(model, place, None)
    if type(outer) is not nn.Linear or outer.weight.shape != head.weight.shape:
        raise ValueError(f"{type(model).__name__} has no plain head {place}")
    outer.load_state_dict(head.state_dict())
    return model


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


def _two_layers(model: nn.Module, base: nn.Module, name: str) -> tuple[nn.Linear, nn.Linear]:
    """Return the inner and the outer linear layer of a classifier's head."""
    head = model.classifier if hasattr(model, "classifier") else None
    inner = getattr(getattr(base, "pooler", None), "dense", None)
    outer = head
    if not isinstance(head, nn.Linear):
        inner, outer = getattr(head, "dense", None), getattr(head, "out_proj", None)
    if not isinstance(inner, nn.Linear) or not isinstance(outer, nn.Linear):
        raise ValueError(f"transformers' classifier of {name} has no head of two linear layers")
    return inner, outer


def _head_of(model: nn.Module, base: nn.Module, states_BD: torch.Tensor) -> torch.Tensor:
    """Return what a classifier's own layers make of [CLS] states."""
    if isinstance(model.classifier, nn.Linear):
        return model.classifier(base.pooler(states_BD[:, None]))
    return model.classifier(states_BD[:, None])


def _shrunk(inner: nn.Linear, outer: nn.Linear, head: nn.Linear) -> None:
    inner.weight.copy_(SHRINK * torch.eye(len(inner.weight)))
    inner.bias.zero_()
    outer.weight.copy_(head.weight / SHRINK)
    outer.bias.copy_(head.bias)


def _paired(inner: nn.Linear, outer: nn.Linear, head: nn.Linear) -> None:
    outputs = len(head.weight)
    if 2 * outputs > len(inner.weight):
        raise ValueError(
            f"{outputs} outputs in a head of width {len(inner.weight)}; allowed: half of it"
        )
    for place, sign in ((0, 1), (outputs, -1)):
        inner.weight[place : place + outputs] = sign * head.weight
        outer.weight[:, place : place + outputs] = sign * torch.eye(outputs)
    inner.weight[2 * outputs :] = 0
    inner.bias.zero_()
    outer.weight[:, 2 * outputs :] = 0
    outer.bias.copy_(head.bias)


def _pooled(pooler: nn.Module) -> Callable[[nn.Linear, nn.Linear, nn.Linear], None]:
    def fill(inner: nn.Linear, outer: nn.Linear, head: nn.Linear) -> None:
        inner.load_state_dict(pooler.dense.state_dict())
        outer.load_state_dict(head.state_dict())

    return fill
