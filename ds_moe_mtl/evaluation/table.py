"""The table of a run's results that a person reads."""

from collections.abc import Callable, Mapping


def print_results(results: Mapping, say: Callable[[str], None]) -> None:
    """Say the table of a finished run; averages and values are rounded half up."""
    from ds_moe_mtl.tasks.metrics import average_half_up

    say("")
    width = max(15, *(len(name) for name in results["tasks"])) + 1
    say(f"{'task':<{width}}{'metric':<12}{'dev':>8}{'examples':>10}")
    for name, result in results["tasks"].items():
        value = average_half_up([result["value"]], 1)
        say(f"{name:<{width}}{result['metric']:<12}{value:>8}{result['examples']:>10,}")
    for name, result in results.get("test", {}).items():
        value = average_half_up([result["value"]], 1)
        say(f"{name:<{width}}{result['metric']:<12}{value:>8}{result['examples']:>10,} (test)")
    for key, title in (("small_tasks", "small tasks"), ("all_tasks", "all tasks")):
        if results[key] is not None:
            say(f"{title:<{width + 12}}{average_half_up([results[key]], 1):>8}")
    for name, result in results["tasks"].items():
        if result.get("value_at_half", result["value"]) != result["value"]:
            say(
                f"note: {name}: its thresholds were chosen on the dev rows that score it here; at "
                f"0.5 its {result['metric']} is {result['value_at_half']:.1f}"
            )
    for note in results["notes"]:
        say(f"note: {note}")
