"""The table of a finished run's scores that a person reads."""

from collections.abc import Callable, Mapping

from ds_moe_mtl.tasks.known import known_tasks
from ds_moe_mtl.tasks.metrics import average_half_up
from ds_moe_mtl.tasks.spec import TaskSpec, is_small


def is_paper_small(spec: TaskSpec) -> bool:
    """Return whether the first paper's tables count a task among the small ones."""
    known = known_tasks().get(spec.name)
    return known is not None and not known.generated and is_small(spec)


def print_results(results: Mapping, say: Callable[[str], None]) -> None:
    """Say the table of a finished run; averages and values are rounded half up."""
    say("")
    width = max(15, *(len(name) for name in results["tasks"])) + 1
    say(f"{'task':<{width}}{'metric':<12}{'dev':>8}{'examples':>10}")
    for name, result in results["tasks"].items():
        value = average_half_up([result["value"]], 1)
        say(f"{name:<{width}}{result['metric']:<12}{value:>8}{result['examples']:>10,}")
    for key, title in (("small_tasks", "small tasks"), ("all_tasks", "all tasks")):
        if results[key] is not None:
            say(f"{title:<{width + 12}}{average_half_up([results[key]], 1):>8}")
    for note in results["notes"]:
        say(f"note: {note}")
