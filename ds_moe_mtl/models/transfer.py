"""From a trained model's tensors to those of a network for other tasks: stage two.

G gates, E experts, D hidden size.
Source: "Sparsely Activated MoE are Robust Multi-Task Learners", sec. 4.5 and 5.2 (gates re-used).
"""

from collections.abc import Mapping

import torch

from ds_moe_mtl.models.multitask import MultiTaskNetwork
from ds_moe_mtl.models.token_level.gating import RoutingOptions

OWN, RANDOM = "own", "random"
HEADS = "heads.tasks."
FORM = (
    "num_experts",
    "gate_scale",
    "gate_embedding",
    "combine",
    "shared_share",
    "layers",
    "route_by",
)
"""Options that a model's tensors or its function depend on: stage two keeps them."""

PER_GATE = (".gate.wg.weight", ".gate.wg.vectors")  # rows by gate; all else of a gate is shared


def form_of(description: Mapping) -> dict:
    """Return FORM's options of a trained model by name; empty for a dense one."""
    if not description["routing"]:
        return {}
    options = RoutingOptions(**description["routing"])
    return {name: getattr(options, name) for name in FORM}


def continued_state(
    network: MultiTaskNetwork,
    description: Mapping,
    state: Mapping[str, torch.Tensor],
    gate: str,
    head: str,
) -> dict[str, torch.Tensor]:
    """Return the state of `network` with what it shares with a trained model taken from there.

    network: newly drawn, with one gate a task of its own (mt_tag). gate: "own", "random" (as
    drawn) or the model's task whose gate every task here begins with. head: "keep", "new" (as
    drawn), or "auto": kept where the model has the task. Raises ValueError, one line, for a gate
    or head that the model does not have.
    """
    names = [spec.name for spec in network.heads.specs]
    found = dict(network.state_dict())
    for key in found:
        if key.startswith(HEADS):
            name = key.split(".")[2]
            if _kept(name, description, head):
                if state[key].shape != found[key].shape:
                    raise ValueError(
                        f"start.head: the model's head for {name!r} has {len(state[key])} outputs, "
                        f"the task {len(found[key])}; allowed: start.head=new"
                    )
                found[key] = state[key]
        elif key.endswith(PER_GATE) and description["kind"] == "mt_tag":
            found[key] = _gates(key, found[key], names, description, state, gate)
        else:
            found[key] = state[key]
    return found


def donors(description: Mapping) -> list[str]:
    """Return the tasks whose gates a model can give; empty for a model without gates by task."""
    if description["kind"] != "mt_tag":
        return []
    return [spec["name"] for spec in description["heads"]]


def _gates(
    key: str,
    drawn: torch.Tensor,
    names: list[str],
    description: Mapping,
    state: Mapping[str, torch.Tensor],
    gate: str,
) -> torch.Tensor:
    """Return a layer's rows for each task here, from the rows of the gate it begins with."""
    if gate == RANDOM:
        return drawn
    there = state[key].chunk(description["routing"]["num_gates"])
    return torch.cat([there[_donor(name, gate, description)] for name in names])


def _donor(name: str, gate: str, description: Mapping) -> int:
    """Return the number of the gate that a task begins with."""
    asked = name if gate == OWN else gate
    known = donors(description)
    if asked not in known:
        what = f"own, but the model has no task {asked!r}" if gate == OWN else repr(gate)
        raise ValueError(
            f"start.gate: {what}; allowed: {', '.join(known)}, random"
            + ("" if gate == OWN else ", own")
        )
    return description["gate_of_task"][known.index(asked)]


def _kept(name: str, description: Mapping, head: str) -> bool:
    known = [spec["name"] for spec in description["heads"]]
    if head == "keep" and name not in known:
        raise ValueError(
            f"start.head: keep, but the model has no head for {name!r}; it has: {', '.join(known)}"
        )
    return head != "new" and name in known
