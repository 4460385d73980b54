"""Routes and task vectors that a run takes from files: another run's router, computed vectors."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ds_moe_mtl.models.description import WEIGHTS, read_description
from ds_moe_mtl.models.task_level.task_router import TaskRouter

_SHAPE = ("experts", "net", "hidden", "route", "layers")


def load_vectors(
    path: str | Path, names: Sequence[str], reference: Sequence[str] | None = None
) -> torch.Tensor:
    """Return task vectors [tasks, V] in the order of `names` from an .npz of names and vectors.

    Centred on the mean of the reference tasks and scaled by their root mean square, so that they
    are as large as random ones (our choice: vectors from text share most of their length).
    reference: the tasks a router is trained on; None: `names`. Raises ValueError, one line, for
    another file or one that lacks a task.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            stored = dict(zip(file["names"].tolist(), file["vectors"], strict=True))
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"router.vectors: {path} is no file of task vectors ({error}); allowed: random, or "
            f"what `ds-moe-mtl crossfit vectors` writes"
        ) from None
    reference = names if reference is None else reference
    missing = [name for name in (*names, *reference) if name not in stored]
    if missing:
        raise ValueError(f"router.vectors: {path} has no vector of task {missing[0]!r}")
    known = np.stack([stored[name] for name in reference]).astype(np.float32)
    centre = known.mean(axis=0) if len(known) > 1 else np.zeros_like(known[0])
    size = max(float(np.sqrt(((known - centre) ** 2).mean())), 1e-12)
    own = np.stack([stored[name] for name in names]).astype(np.float32)
    return torch.from_numpy((own - centre) / size)


def load_routes(router: TaskRouter, folder: str | Path, names: Sequence[str]) -> None:
    """Fill a router with the net and task vectors of a trained model, bit for bit.

    folder: a run's or a model's. Raises ValueError, one line, where its router has another shape
    or it has not been trained on a task.
    """
    from safetensors.torch import load_file

    folder = Path(folder)
    folder = folder / "model" if (folder / "model").is_dir() else folder
    description = read_description(folder)
    stored = description.get("router")
    if stored is None:
        raise ValueError(
            f"router.routes_from: {folder} is a {description['kind']} model without task routes; "
            f"allowed: a run of model.kind task_moe with router.route learned"
        )
    for key in _SHAPE:
        own = getattr(router.options, key)
        theirs = tuple(stored[key]) if key == "layers" else stored[key]
        if own != theirs:
            raise ValueError(
                f"router.routes_from: router.{key} is {theirs} in {folder} and {own} here; "
                f"make them agree"
            )
    known = [task["name"] for task in description["tasks"]]
    missing = [name for name in names if name not in known]
    if missing:
        raise ValueError(f"router.routes_from: {folder} has no routes of task {missing[0]!r}")
    weights = load_file(folder / WEIGHTS)
    for name, parameter in router.net.named_parameters():
        parameter.data.copy_(weights[f"router.net.{name}"])
    rows = torch.tensor([known.index(name) for name in names])
    router.vectors.data = weights["router.vectors"][rows].to(router.vectors)
