"""A model folder without some of its tasks: their gates and heads go, nothing is trained.

G gates, E experts, D hidden size, L layers.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from ds_moe_mtl.config import UserError
from ds_moe_mtl.config.files import new_folder
from ds_moe_mtl.data import encode_task
from ds_moe_mtl.evaluation import MultiTaskModel
from ds_moe_mtl.models.description import head_specs_of, save_folder
from ds_moe_mtl.models.heads import own_heads
from ds_moe_mtl.models.transfer import HEADS, PER_GATE

EXAMPLES = 400
"""Dev examples of a task that are routed to see which experts it uses."""


def prune(model: MultiTaskModel, names: Collection[str], output: Path) -> None:
    """Write the model folder of `model` without the tasks `names`.

    Raises UserError for a task that the model does not have, where none would be left, for a model
    with whole-task routing (its router reads all tasks' vectors), and where `output` is taken.
    """
    for name in names:
        model.task(name)
    if len(set(names)) == len(model.specs):
        raise UserError("--task: every task of the model; allowed: at least one of them stays")
    if "router" in model.description or "heads" not in model.description:
        raise UserError(
            "a model that routes whole tasks has one router for all; it keeps its tasks"
        )
    with new_folder(output) as folder:
        description, state = without_tasks(model.description, model.network.state_dict(), names)
        save_folder(folder, description, state, model.tokenizer)


def without_tasks(
    description: Mapping, state: Mapping[str, torch.Tensor], names: Collection[str]
) -> tuple[dict, dict[str, torch.Tensor]]:
    """Return a network's description and state without these tasks.

    A gate or head goes when no task that stays has it; the others keep their weights and order.
    """
    kept = [n for n, task in enumerate(description["tasks"]) if task["name"] not in names]
    heads = [description["heads"][n] for n in kept]
    new = {**description, "tasks": [description["tasks"][n] for n in kept], "heads": heads}
    gates = sorted({description["gate_of_task"][n] for n in kept})
    number = 1
    if description["kind"] == "mt_tag":
        number = description["routing"]["num_gates"]
        new["gate_of_task"] = [gates.index(description["gate_of_task"][n]) for n in kept]
        new["routing"] = {**description["routing"], "num_gates": len(gates)}
    else:
        new["gate_of_task"] = [description["gate_of_task"][n] for n in kept]
    about = dict(description["about"])
    if isinstance(about.get("results"), Mapping):
        about["results"] = {k: v for k, v in about["results"].items() if k not in names}
    new["about"] = {**about, "removed": [*about.get("removed", ()), *sorted(names)]}
    before = [spec.key for spec in own_heads(head_specs_of(description))]
    places = {key: n for n, key in enumerate(s.key for s in own_heads(head_specs_of(new)))}
    found = {}
    for key, tensor in state.items():
        if key.startswith(HEADS):
            place, _, kind = key.removeprefix(HEADS).partition(".")
            if before[int(place)] in places:
                found[f"{HEADS}{places[before[int(place)]]}.{kind}"] = tensor
        elif key.endswith(PER_GATE) and description["kind"] == "mt_tag":
            rows = tensor.chunk(number)
            found[key] = torch.cat([rows[gate] for gate in gates])
        else:
            found[key] = tensor
    return new, found


def unused_experts(
    model: MultiTaskModel, tasks: Sequence[str], root: str | None
) -> list[tuple[int, int]]:
    """Return (layer, expert), from 0, of those that no token of the tasks' dev rows goes to.

    At most EXAMPLES rows a task are routed. Raises UserError where a task's data is not there, and
    for a dense model.
    """
    total_LE: np.ndarray | int = 0
    for name in tasks:
        split = encode_task(model.task(name), "dev", model.tokenizer, root, limit=EXAMPLES)
        total_LE = total_LE + model.route_counts(name, split)
    layers, experts = np.nonzero(total_LE == 0)
    return list(zip(layers.tolist(), experts.tolist(), strict=True))
