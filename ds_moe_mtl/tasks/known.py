"""Every task known by name, and the names of groups of them."""

import difflib
from collections.abc import Iterable

from ds_moe_mtl.config import UserError
from ds_moe_mtl.tasks.glue import GLUE
from ds_moe_mtl.tasks.other import OTHER
from ds_moe_mtl.tasks.spec import TaskSpec, is_small
from ds_moe_mtl.tasks.superglue import SUPERGLUE
from ds_moe_mtl.tasks.synthetic import EMBEDDED
from ds_moe_mtl.tasks.text2text import PREFIX, gym_groups, gym_tasks


def known_tasks() -> dict[str, TaskSpec]:
    """Every known task by its name, the 160 of the few-shot gym apart (`gym_tasks`)."""
    return {spec.name: spec for spec in (*GLUE, *SUPERGLUE, *OTHER, *EMBEDDED)}


def is_paper_small(spec: TaskSpec) -> bool:
    """Return whether the first paper's tables count a task among the small ones."""
    known = known_tasks().get(spec.name)
    return known is not None and not known.generated and is_small(spec)


def task_groups() -> dict[str, tuple[str, ...]]:
    """Task names of every group, in the order of the paper's tables (smallest first)."""
    glue = tuple(spec.name for spec in GLUE)
    return {
        "glue": glue,
        "glue_small": ("rte", "mrpc", "stsb", "cola"),
        # Sec. 5.3: without the two tasks that are related to no other.
        "c-glue": tuple(name for name in glue if name not in ("cola", "sst2")),
        # Sec. 6.2: sixteen tasks; SciTail is kept back as unseen.
        "glue++": (
            *glue,
            *(spec.name for spec in SUPERGLUE),
            *(spec.name for spec in OTHER if spec.name != "scitail"),
        ),
        "embedded": tuple(spec.name for spec in EMBEDDED),
        **gym_groups(),
    }


def get_task(name: str) -> TaskSpec:
    """The row of that name. Raises UserError with the nearest known name."""
    tasks = known_tasks()
    if name not in tasks and name not in gym_tasks():
        raise UserError(_unknown(name, list(tasks)))
    return tasks.get(name) or gym_tasks()[name]


def expand_tasks(names: Iterable[str]) -> list[str]:
    """Task names with every group replaced by its members; a name given twice counts once.

    Raises UserError for a name that is neither a task nor a group.
    """
    tasks, groups = known_tasks(), task_groups()
    expanded: dict[str, None] = {}
    for name in names:
        if name in groups:
            expanded.update(dict.fromkeys(groups[name]))
        elif name in tasks or name in gym_tasks():
            expanded[name] = None
        else:
            raise UserError(_unknown(name, [*tasks, *groups]))
    return list(expanded)


def _unknown(name: str, known: list[str]) -> str:
    plain = {_plain(other): other for other in known}
    near = [other for key, other in plain.items() if len(name) > 3 and key.startswith(_plain(name))]
    if name.startswith(PREFIX):
        plain = {_plain(other): other for other in gym_tasks()}
        known = [*task_groups(), "gym-<CrossFit's name>"]
    near += [plain[key] for key in difflib.get_close_matches(_plain(name), plain, n=1, cutoff=0.5)]
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"tasks: unknown task {name!r}; {hint}known: {', '.join(sorted(known))}"


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum() or letter == "+")
