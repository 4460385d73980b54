"""ds-moe-mtl tasks: what is known by name."""

import json

from ds_moe_mtl.cli.arguments import Parser, answer


def main(arguments: list[str]) -> int:
    """Print the known tasks, groups and metrics and return the exit status."""
    parser = Parser(
        "tasks", "Lists the tasks, groups and metrics known by name.", "ds-moe-mtl tasks --json"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    return answer(lambda: _tasks(options.json))


def _tasks(as_json: bool) -> int:
    from ds_moe_mtl.tasks import known_tasks, task_groups
    from ds_moe_mtl.tasks.metrics import METRIC_NOTES, OWN_KINDS, metrics_of
    from ds_moe_mtl.tasks.text2text import gym_tasks

    tasks, groups = known_tasks(), task_groups()
    metrics = {kind: metrics_of(kind) for kind in OWN_KINDS}
    if as_json:
        rows = {name: spec.to_dict() for name, spec in (tasks | gym_tasks()).items()}
        print(json.dumps({"tasks": rows, "groups": groups, "metrics": metrics}))
        return 0
    print(f"{'task':<18}{'kind':<16}{'metric':<12}{'train':>9}  labels")
    for name, spec in tasks.items():
        size = f"{spec.published_size:,}" if spec.published_size else "-"
        print(f"{name:<18}{spec.kind:<16}{spec.metric:<12}{size:>9}  {', '.join(spec.labels)}")
    print()
    print("gym-<name>: the 160 CrossFit tasks, text to text (tasks/crossfit.json)")
    for name, members in groups.items():
        print(f"group {name}: {', '.join(members)}")
    print()
    for kind, names in metrics.items():
        print(f"metrics of {kind}: {', '.join(names)} (the first where a task names none)")
    for name, note in METRIC_NOTES.items():
        print(f"metric {name}: {note}")
    return 0
