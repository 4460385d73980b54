"""A tokenizer that fits an encoder: its ids, its longest sequence, the token that heads read."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from ds_moe_mtl.models.encoder_files import quiet, reason
from ds_moe_mtl.models.families import family_of

_VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")
"""Files of which a tokenizer has at least one."""

ENCODER_LENGTH = "encoder_max_length"
"""In tokenizer_config.json of a portable folder: the model_max_length that its encoder had."""


class EncoderLimits(NamedTuple):
    """What an encoder takes: ids below `ids`, sequences of at most `max_length` tokens."""

    ids: int
    max_length: int


def limits_of(model: nn.Module) -> EncoderLimits:
    """Return the limits of a transformers model, an encoder of a family or BART.

    Raises ValueError, one line, for an encoder without a family.
    """
    if model.config.is_encoder_decoder:
        return EncoderLimits(model.config.vocab_size, model.config.max_position_embeddings)
    family = family_of(model)
    return EncoderLimits(family.word_embeddings(model).num_embeddings, family.max_length(model))


def limits_by(config) -> EncoderLimits:
    """Return the limits of the model that a transformers configuration describes; no weights."""
    from transformers import AutoModel

    if config.is_encoder_decoder and config.model_type != "bart":
        raise ValueError(f"a {config.model_type} model; allowed: BART, or an encoder")
    if config.is_encoder_decoder:
        return EncoderLimits(config.vocab_size, config.max_position_embeddings)
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        return limits_of(AutoModel.from_config(config, trust_remote_code=False))


def load_tokenizer(folder: str | Path, limits: EncoderLimits):
    """Return the tokenizer of a folder, its model_max_length no more than the encoder takes.

    A portable folder's tokenizer cuts at its tasks' length: it gets its encoder's back.
    Raises ValueError, one line, where there is none, or none that fits the encoder.
    """
    from transformers import AutoTokenizer

    if not any(found for name in _VOCABULARIES for found in Path(folder).glob(name)):
        # transformers would make one that knows its special tokens only.
        raise ValueError(f"{folder}: no tokenizer ({', '.join(_VOCABULARIES)})")
    try:
        with quiet():  # of a portable folder's code, which is not run
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # whatever a foreign file leads to
        raise ValueError(f"{folder}: no tokenizer can be loaded: {reason(error)}") from error
    fault = _fault(tokenizer, limits)
    if fault:
        raise ValueError(f"model.encoder: the tokenizer of {folder} {fault}")
    longest = tokenizer.init_kwargs.get(ENCODER_LENGTH, tokenizer.model_max_length)
    tokenizer.model_max_length = min(longest, limits.max_length)
    return tokenizer


def _fault(tokenizer, limits: EncoderLimits) -> str:
    """Return why the tokenizer does not do for the encoder, "" if it does."""
    if not tokenizer.is_fast:
        name = type(tokenizer).__name__
        return f"({name}) is not a fast tokenizer; allowed: one with tokenizer.json"
    token, largest = max(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    if largest >= limits.ids:
        return (
            f"has token {token!r} with id {largest}, the encoder's embedding {limits.ids} rows; "
            f"allowed: the tokenizer that it was trained with"
        )
    encoded = [tokenizer(*texts)["input_ids"] for texts in (("",), ("a",), ("a", "b"), ("c", "d"))]
    specials = set(tokenizer.all_special_ids)
    if not all(ids and ids[0] in specials for ids in encoded):
        return (
            "puts no special token before a text, as [CLS], which the heads read; allowed: one "
            "that does"
        )
    largest = max(max(ids) for ids in encoded)
    if largest >= limits.ids:
        return f"adds the special id {largest}, the encoder's embedding has {limits.ids} rows"
    return ""
