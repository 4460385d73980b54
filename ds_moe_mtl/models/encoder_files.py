"""An encoder's folder: files that are what their names say, and weights that are the encoder's."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

_TEXT = ("*.json", "*.txt", "*.model")
_WEIGHTS = ("*.safetensors", "*.bin")
POINTER = b"version https://git-lfs"
"""How a file begins that git-lfs has left in the place of the one that it stands for."""
_POOLER = "pooler."
_BUFFERS = ("position_ids", "token_type_ids")
"""Constants that older releases of transformers stored among the weights."""


def check_files(folder: str | Path) -> None:
    """Raise ValueError, one line, for a file of an encoder that is a pointer, a web page or cut.

    Looks at the beginning of each file, and at the table of contents of safetensors.
    """
    for path in sorted(found for kind in (*_TEXT, *_WEIGHTS) for found in Path(folder).glob(kind)):
        with path.open("rb") as file:
            begin = file.read(64).lstrip()
        if begin.startswith(POINTER):
            raise ValueError(f"model.encoder: {path} is a git-lfs pointer; needed: the file itself")
        if begin[:9].lower().startswith((b"<!doctype", b"<html")):
            raise ValueError(f"model.encoder: {path} is a web page; needed: the file itself")
        if path.suffix == ".safetensors":
            _check_safetensors(path)


def _check_safetensors(path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt"):
            pass
    except SafetensorError as error:
        raise ValueError(f"model.encoder: {path} is cut off or no safetensors: {error}") from error


def load_pretrained(auto_class, config, folder: str, name: str, pooler: bool = False) -> nn.Module:
    """Return a folder's model of `auto_class` in float32, with all its weights from the files.

    Code of the folder's own is never run; a .bin file is read as tensors only, not as a pickle
    that may call something. Weights of heads may be left over, a pooler's may be missing unless
    it is asked for. Raises ValueError, one line, for anything else.
    """
    check_files(folder)
    try:
        model, report = auto_class.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # told below, in one line
            trust_remote_code=False,
        )
    except Exception as error:  # whatever a foreign configuration or file leads to
        raise ValueError(f"model.encoder: {name} cannot be loaded: {reason(error)}") from error
    fault = _report_fault(model, report, pooler) or _value_fault(model)
    if fault:
        raise ValueError(f"model.encoder: {name} ({type(model).__name__}): {fault}")
    return model


def reason(error: Exception) -> str:
    """Return an error's first line, short, without what a terminal would make bold."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{lines[0].replace(chr(27), ''):.200}" if lines else type(error).__name__


def _report_fault(model: nn.Module, report: Mapping, pooler: bool) -> str:
    """Return what transformers' loading report has against the weights, "" if nothing."""
    shapes = sorted(report["mismatched_keys"])
    if shapes:
        key, stored, wanted = shapes[0]
        return (
            f"{key} has shape {list(stored)} in the files, but {list(wanted)} by config.json"
            f"{_more(shapes)}"
        )
    left_over = sorted(key for key in report["unexpected_keys"] if not key.endswith(_BUFFERS))
    missing = sorted(key for key in report["missing_keys"] if not key.endswith(_BUFFERS))
    of_pooler = [key for key in missing if key.startswith(_POOLER)]
    missing = [key for key in missing if key not in of_pooler]
    if missing:
        others = f"; they have {left_over[0]}{_more(left_over)}" if left_over else ""
        return f"the files lack its weights {missing[0]}{_more(missing)}{others}"
    if of_pooler and pooler:
        return "the files lack its pooler's weights; allowed: model.pooler false"
    prefix = getattr(model, "base_model_prefix", "") + "."
    parts = tuple(f"{part}." for part, _ in model.named_children() if f"{part}." != _POOLER)
    inside = [key for key in left_over if key.removeprefix(prefix).startswith(parts)]
    if inside:
        return (
            f"the files have weights that this encoder does not use, {inside[0]}{_more(inside)}: "
            f"config.json does not describe them"
        )
    return ""


def _value_fault(model: nn.Module) -> str:
    for key, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            return f"{key} has values that are NaN or infinite"
    return ""


def _more(keys: list) -> str:
    return f" and {len(keys) - 1} more" if len(keys) > 1 else ""


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from warning: what it would warn of is refused, in one line, or fine."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
