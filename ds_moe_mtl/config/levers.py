"""Which options of the sparse layer do not go together, and why: one table for YAML and library.

A lever is an option of `moe` that is off by default. Most go with everything; what is listed here
would be silently without effect, or wrong.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

SPARSE_KINDS = ("mt_switch", "mt_tag")
"""The kinds of model that have experts in their FFNs."""


class _Lever(NamedTuple):
    """An option that, where it is on, wants other options at the values given."""

    name: str
    is_on: Callable[[Any], bool]
    wants: dict[str, Any]
    because: str


_LEVERS = (
    _Lever(
        "combine",
        lambda value: value == "merged",
        {
            "gate_scale": "preserve",
            "dispatch": "dropless",
            "ep_size": 1,
            "load_balance_loss": 0.0,
            "router_z_loss": 0.0,
            "jitter": 0.0,
            "gate_embedding": 0,
            "expert_dropout": 0.0,
            "shared_share": 0.0,
            "tied_steps": 0,
            "gate_init": "small",
            "route_by": "token",
        },
        "no token is routed",
    ),
    _Lever(
        "tied_steps",
        lambda value: value > 0,
        {"gate_scale": "preserve", "dispatch": "dropless", "ep_size": 1, "expert_noise": 0.0},
        "experts are one before they part, and parting changes nothing",
    ),
    _Lever(
        "expert_pull",
        lambda value: value > 0,
        {"ep_size": 1},
        "every rank needs all experts' weights",
    ),
    _Lever(
        "route_by",
        lambda value: value == "sequence",
        {"dispatch": "dropless"},
        "all tokens of a sequence have one expert",
    ),
    _Lever(
        "gate_init",
        lambda value: value == "spread",
        {"gate_embedding": 0},
        "generated gates start as small ones",
    ),
)
"""A wanted option that the object at hand does not have is not asked for."""


def check_levers(options: Any, prefix: str = "") -> None:
    """Raise ValueError, one line, where two options do not go together; see conflict."""
    found = conflict(options, prefix)
    if found:
        raise ValueError(found)


def conflict(options: Any, prefix: str = "") -> str:
    """Return which two options do not go together, in one line; "" where all do.

    options: an object with some of the options as attributes. prefix: put before their names.
    """
    for lever in _LEVERS:
        value = getattr(options, lever.name, None)
        if value is None or not lever.is_on(value):
            continue
        for other, wanted in lever.wants.items():
            found = getattr(options, other, wanted)
            if found != wanted:
                return (
                    f"{prefix}{other} = {found} with {prefix}{lever.name} = {value} "
                    f"({lever.because}); allowed: {prefix}{other}={wanted}"
                )
    return ""


def tell_idle(config: Any, steps: int, say: Callable[[str], None]) -> None:
    """Say which options have no effect in a run of so many steps, those at their defaults apart.

    Options of experts and router in a kind of model that has none; experts that never part.
    """
    kind = config.model.kind
    for section, kinds in (("moe", SPARSE_KINDS), ("router", ("task_moe",))):
        options = getattr(config, section)
        idle = [
            f"{section}.{name}"
            for name, field in type(options).model_fields.items()
            if kind not in kinds and getattr(options, name) != field.default
        ]
        if idle:
            have = "has" if len(idle) == 1 else "have"
            say(f"note: {', '.join(idle)} {have} no effect for model.kind {kind}")
    tied = config.moe.tied_steps if kind in SPARSE_KINDS else 0
    if tied >= steps:
        say(f"note: moe.tied_steps = {tied} of {steps} steps: the experts never part in this run")
