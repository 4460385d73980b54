"""Which lines of a study belong together: the newest of each run, by stage and data variant."""

from collections.abc import Mapping, Sequence

from ds_moe_mtl.studies.evidence.schema import key_of


def of_newest_study(runs: Sequence[Mapping]) -> list[Mapping]:
    """Return the lines that belong together: of each system those that say what its newest says.

    A study's YAML may change between its runs; a tuned system may change its rate.
    """
    latest = {line["run"]: place for place, line in enumerate(runs)}
    newest = [runs[place] for place in sorted(latest.values())]
    recipes = {_begun_by(line): _recipe(line) for line in newest}  # of the newest line of each
    groups: dict[tuple, list[Mapping]] = {}
    for line in newest:
        if _recipe(line) != recipes[_begun_by(line)]:
            continue
        point = tuple(line["point"]) if line["grid"] else ()
        groups.setdefault((line["stage"], line["data"], line["system"], point), []).append(line)
    return [
        line
        for group in groups.values()
        for line in group
        if _said_without_seed(line) == _said_without_seed(group[-1])
    ]


def _begun_by(line: Mapping) -> tuple[str, ...]:
    """Return a line's stage and what it begins with: stage, data and system of an earlier run."""
    begun = (line.get("start") or {}).get("run") or ""
    return (line["stage"], *begun.split("/")[:3])


def _recipe(line: Mapping) -> str | None:
    return (line.get("start") or {}).get("recipe")


def _said_without_seed(line: Mapping) -> list[str]:
    return [item for item in line["overrides"] if key_of(item) != "run.seed"]


def groups_of(lines: Sequence[Mapping]) -> dict[tuple[str, str], list[Mapping]]:
    """Return lines by stage and data variant; the last stage first, as it says the most."""
    groups: dict[tuple[str, str], list[Mapping]] = {}
    for line in lines:
        groups.setdefault((line["stage"], line["data"]), []).append(line)
    stages = list(dict.fromkeys(stage for stage, _ in groups))
    return {key: groups[key] for stage in reversed(stages) for key in groups if key[0] == stage}


def joined_by_task(groups: Mapping[tuple[str, str], list[Mapping]], baseline: str) -> dict:
    """Return groups with those of a stage put together whose data variants are tasks of their own.

    That is stage two, a run per task: its score is the mean over the tasks. While no seed has all
    tasks, of the baseline and of another system, they stay apart.
    """
    found: dict[tuple[str, str], list[Mapping]] = {}
    for stage in dict.fromkeys(stage for stage, _ in groups):
        own = {data: groups[of, data] for of, data in sorted(groups) if of == stage}
        tasks = [{task for line in group for task in line["tasks"]} for group in own.values()]
        is_apart = len(own) > 1 and all(tasks) and sum(map(len, tasks)) == len(set().union(*tasks))
        lines = [line for group in own.values() for line in group]
        if is_apart and _is_paired(lines, set().union(*tasks), baseline):
            found[stage, " + ".join(own)] = lines
        else:
            found |= {key: group for key, group in groups.items() if key[0] == stage}
    return found


def _is_paired(lines: Sequence[Mapping], tasks: set[str], baseline: str) -> bool:
    """Whether the baseline and another system have all tasks in the same seed."""
    done: dict[tuple[str, int], set[str]] = {}
    for line in lines:
        done.setdefault((line["system"], line["seed"]), set()).update(line["tasks"])
    whole = {key for key, have in done.items() if have == tasks}
    return any((baseline, seed) in whole for system, seed in whole if system != baseline)
