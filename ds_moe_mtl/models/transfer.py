"""From a trained model's tensors to those of a network for other tasks: stage two.

G gates, E experts, D hidden size.
Source: "Sparsely Activated MoE are Robust Multi-Task Learners", sec. 4.5 and 5.2 (gates re-used).
"""

from collections.abc import Collection, Mapping, Sequence

import torch

from ds_moe_mtl.models.description import head_specs_of
from ds_moe_mtl.models.heads import INSIDE, HeadSpec, from_disk, own_heads
from ds_moe_mtl.models.multitask import MultiTaskNetwork
from ds_moe_mtl.models.token_level.gating import RoutingOptions
from ds_moe_mtl.tasks import TaskSpec

OWN, RANDOM = "own", "random"
HEADS = f"heads.{INSIDE}."
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
    gate: str | Mapping[str, str],
    head: str,
    tasks: Sequence[TaskSpec] = (),
    kept: Collection[str] = (),
    drawn: Mapping[str, torch.Tensor] | None = None,
) -> dict[str, torch.Tensor]:
    """Return the state of `network` with what it shares with a trained model taken from there.

    network: newly drawn, with one gate a task of its own (mt_tag). drawn: its state in the plain
    form, where the network itself has another. gate: "own", "random" (as
    drawn) or the model's task whose gate every task here begins with; or one of them by task,
    "own" for a task that is not named. head: "keep", "new" (as
    drawn), or "auto": kept where the model has the task. tasks: the rows of the network's tasks;
    a head's outputs go to the classes of their names, whatever the order of both. kept: tasks whose
    own gate and head are taken whatever gate and head say. Raises
    ValueError, one line, for a gate or head that the model does not have, and for a task of its
    name that has other classes.
    """
    specs = network.heads.specs
    asked = dict(gate) if isinstance(gate, Mapping) else {spec.name: gate for spec in specs}
    gates = {spec.name: OWN if spec.name in kept else asked.get(spec.name, OWN) for spec in specs}
    theirs = head_specs_of(description)
    state = from_disk(state, theirs)
    heads, known = own_heads(specs), [spec.key for spec in own_heads(theirs)]
    found = dict(network.state_dict() if drawn is None else drawn)
    for key in found:
        if key.startswith(HEADS):
            place, _, kind = key.removeprefix(HEADS).partition(".")
            spec = heads[int(place)]
            if _kept(spec, theirs, "keep" if spec.name in kept else head):
                rows = state[f"{HEADS}{known.index(spec.key)}.{kind}"]
                order = _class_order(spec, theirs, description["tasks"], tasks)
                found[key] = rows if order is None else rows[order]
        elif key.endswith(PER_GATE) and description["kind"] == "mt_tag":
            found[key] = _gates(key, found[key], gates, description, state)
        else:
            found[key] = state[key]
    return found


def train_only_new(network: MultiTaskNetwork, kind: str, known: Collection[tuple]) -> None:
    """Freeze all of `network` but gates by task and the heads that no trained model had.

    known: keys of the heads that it had. Rows of a gate matrix whose tasks are absent get no
    gradient, and Adam without moments leaves them to the bit. Raises ValueError where nothing is
    left to train.
    """
    heads = [spec.key for spec in own_heads(network.heads.specs)]
    trained = 0
    for name, parameter in network.named_parameters():
        if name.startswith(HEADS):
            place = int(name.removeprefix(HEADS).partition(".")[0])
            parameter.requires_grad_(heads[place] not in known)
        else:
            parameter.requires_grad_(kind == "mt_tag" and name.endswith(PER_GATE))
        trained += parameter.requires_grad
    if not trained:
        raise ValueError(
            "start.train = new, but the model has the heads of all tasks here; allowed: all"
        )


def donors(description: Mapping) -> list[str]:
    """Return the tasks whose gates a model can give; empty for a model without gates by task."""
    if description["kind"] != "mt_tag":
        return []
    return [spec["name"] for spec in description["heads"]]


def _gates(
    key: str,
    drawn: torch.Tensor,
    gates: Mapping[str, str],
    description: Mapping,
    state: Mapping[str, torch.Tensor],
) -> torch.Tensor:
    """Return a layer's rows for each task here, from the rows of the gate it begins with."""
    there = state[key].chunk(description["routing"]["num_gates"])
    rows = [
        new if asked == RANDOM else there[_donor(name, asked, description)]
        for (name, asked), new in zip(gates.items(), drawn.chunk(len(gates)), strict=True)
    ]
    return torch.cat(rows)


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


def _kept(spec: HeadSpec, theirs: Sequence[HeadSpec], head: str) -> bool:
    known = [other.key for other in theirs]
    if head == "keep" and spec.key not in known:
        raise ValueError(
            f"start.head: keep, but the model has no head for {spec.name!r}; it has: "
            f"{', '.join(other.name for other in theirs)}"
        )
    return head != "new" and spec.key in known


def _class_order(
    spec: HeadSpec, theirs: Sequence[HeadSpec], known: Sequence[Mapping], tasks: Sequence[TaskSpec]
) -> list[int] | None:
    """Return, for each class of the task here, its place in the model; None: the same order.

    Raises ValueError where the task is of another kind there, or has other classes.
    """
    allowed = "allowed: start.head=new, or another name for the task"
    there = next((row for row in known if row["name"] == spec.name), None)
    here = next((task for task in tasks if task.name == spec.name), None)
    if here is not None and there is not None and not spec.shared:
        if there["kind"] != here.kind:
            raise ValueError(
                f"start.head: {spec.name!r} is a {there['kind']} in the model and a {here.kind} "
                f"here; {allowed}"
            )
        before, now = list(there["labels"]), list(here.labels)
        if sorted(before) != sorted(now):
            lost, new = (sorted(set(a) - set(b)) for a, b in ((before, now), (now, before)))
            raise ValueError(
                f"start.head: {spec.name!r} has other classes in the model: {_listed(lost)} there "
                f"only, {_listed(new)} here only; {allowed}"
            )
        return None if before == now else [before.index(name) for name in now]
    outputs = next(other.outputs for other in theirs if other.key == spec.key)
    if outputs != spec.outputs:
        raise ValueError(
            f"start.head: the model's head for {spec.name!r} has {outputs} outputs, "
            f"the task {spec.outputs}; {allowed}"
        )
    return None


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:6])) or "none"
    return shown if len(names) <= 6 else f"{shown} and {len(names) - 6} more"
