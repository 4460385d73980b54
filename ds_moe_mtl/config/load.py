"""From a YAML path and `section.key=value` overrides to one RunConfig."""

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ds_moe_mtl.config.complaint import complaint
from ds_moe_mtl.config.document import dotted, dump_yaml, parse_yaml
from ds_moe_mtl.config.errors import UserError
from ds_moe_mtl.config.files import REPOSITORY, displayed, locate, read_text
from ds_moe_mtl.config.schema import RunConfig
from ds_moe_mtl.config.task_rows import OwnTask

EXPERIMENTS = REPOSITORY / "ds_configs" / "experiments"
DEFAULT_EXPERIMENT = EXPERIMENTS / "embedded_mttag_minilm.yaml"
COMMAND_LINE = "command line"
Where = Callable[..., str]  # from dotted keys to the place where the most telling was written
_SECTIONS = tuple(
    name
    for name, field in RunConfig.model_fields.items()
    if hasattr(field.annotation, "model_fields")
)
"""What is set key by key."""


def load_config(
    path: str | Path | None = None,
    overrides: Sequence[str] = (),
    check_files: bool = True,
    said_by: Mapping[str, str] | None = None,
    to_be_made: str | None = None,
) -> RunConfig:
    """Return the run that a YAML describes after its overrides; None: the embedded default.

    Relative paths to the DeepSpeed file, the data and a user's own files are looked for in the
    current folder, then the YAML's, then the repository's (a user's own files last below
    data.root), and come back absolute. With check_files=False nothing is looked for (a finished
    run's config.yaml, read elsewhere). said_by: where an override was written, for complaints about
    it; the command line where that does not say. to_be_made: a start.model that another run is to
    leave, which need not be there yet.
    Raises UserError, one line, for anything the user can mend.
    """
    file = DEFAULT_EXPERIMENT if path is None else find_experiment(Path(path))
    source = displayed(file)
    document = parse_yaml(read_text(file), source)
    if not isinstance(document.values, dict):
        what = "is empty" if document.values is None else "is not a mapping of sections"
        raise UserError(f"{source}: {what}; allowed: the sections {_sections()}")
    places = {key: f"{source}:{line}" for key, line in document.lines.items()}
    _settle_length(document.values, overrides)
    for override in overrides:
        place = (said_by or {}).get(override, COMMAND_LINE)
        key = _apply(document.values, override, place)
        places = {k: v for k, v in places.items() if not k.startswith(f"{key}.")}
        places[key] = place

    def where(*keys: str) -> str:
        return _place(keys, places, source)

    config = _validate(document.values, where)
    if not check_files:
        return config
    return _with_files(config, file.parent, where, to_be_made)


def _settle_length(values: dict[str, Any], overrides: Sequence[str]) -> None:
    """Have train.steps of the overrides replace the YAML's train.epochs, or the other way round.

    Two of them in one place contradict each other, and are refused later.
    """
    lengths = {"train.steps": "epochs", "train.epochs": "steps"}
    set_here = [each.partition("=") for each in overrides]
    given = {key for key, _, text in set_here if key in lengths and text not in ("", "null", "~")}
    train = values.get("train")
    if len(given) == 1 and isinstance(train, dict):
        train.pop(lengths[given.pop()], None)


def _validate(values: Mapping[str, Any], where: Where) -> RunConfig:
    """Return plain values as a RunConfig; `where` tells the place of dotted keys."""
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise UserError(complaint(error, RunConfig, where)) from None


def dump_config(config: RunConfig) -> str:
    """Return the YAML that loads to this very configuration, every default written out."""
    return dump_yaml(config.model_dump(mode="json"))


def plain_values(config: RunConfig) -> dict[str, str | int | float | bool]:
    """Return a configuration by dotted key, as pages of experiments take it; tasks by name."""
    values = config.model_dump(mode="json")
    values["tasks"] = [task if isinstance(task, str) else task.name for task in config.tasks]
    flat = {
        f"{section}.{key}" if isinstance(of, dict) else section: value
        for section, of in values.items()
        for key, value in (of.items() if isinstance(of, dict) else [("", of)])
    }
    plain = str | int | float | bool
    return {k: v if isinstance(v, plain) else _in_words(v) for k, v in flat.items()}


def _in_words(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def differing_keys(one: RunConfig, other: RunConfig) -> list[str]:
    """Return the dotted keys whose values differ, in the schema's order."""
    return _differences(one.model_dump(mode="json"), other.model_dump(mode="json"), ())


def _differences(one: Any, other: Any, path: tuple[str, ...]) -> list[str]:
    if isinstance(one, dict) and isinstance(other, dict):
        keys = [*one, *(key for key in other if key not in one)]
        pairs = [(key, one.get(key), other.get(key)) for key in keys]
        return [found for key, a, b in pairs for found in _differences(a, b, (*path, key))]
    return [] if one == other else [dotted(path)]


def find_experiment(path: Path) -> Path:
    """Return the YAML in the current folder, else in the repository or among the shipped."""
    found = locate(str(path), (Path.cwd(), REPOSITORY))
    if path.parent == Path() and found is None:
        found = locate(f"{path.name}.yaml", (EXPERIMENTS,))
    if found is not None and found.is_file():
        return found
    shipped = sorted(file.stem for file in EXPERIMENTS.glob("*.yaml"))
    close = difflib.get_close_matches(path.stem, shipped, n=1)
    hint = f"; nearest shipped one: ds_configs/experiments/{close[0]}.yaml" if close else ""
    what = "no such file" if found is None else "is a folder, not a file"
    raise UserError(f"{path}: {what}{hint or '; allowed: the YAML of a run'}")


def _place(keys: Sequence[str], places: Mapping[str, str], source: str) -> str:
    """Return where `keys` were written: the command line and the first other place, or that alone.

    The last is asked for where no other was written: itself, what is written below it, or the
    nearest section around it.
    """
    given = [places[key] for key in keys[:-1] if key in places]
    if given:
        others = [place for place in given if place != COMMAND_LINE]
        return " and ".join([COMMAND_LINE] * (COMMAND_LINE in given) + others[:1])
    key = keys[-1]
    while key:
        if key in places:
            return places[key]
        below = [place for name, place in places.items() if name.startswith(f"{key}.")]
        if below:
            return below[0]
        key = key.rpartition(".")[0]
    return source


def _sections() -> str:
    return ", ".join(RunConfig.model_fields)


def _apply(values: dict[str, Any], override: str, place: str) -> str:
    """Set one `section.key=value` in place and return its dotted key. place: where it was written.

    The value is read as YAML. Indices reach into lists (tasks.0.train=..., train.betas.1=0.98).
    """
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals:
        raise UserError(
            f"{place}: {override!r} sets nothing; allowed: section.key=value, as in train.lr=1e-4"
        )
    path = key.split(".")
    if not all(path):
        raise UserError(f"{place}: {override!r} names no key; allowed: section.key=value")
    if key in _SECTIONS:
        raise UserError(
            f"{place}: {key} is a section; set one of its keys, as in {_example(key)}=..."
        )
    value = parse_yaml(text, f"{place}, {key}").values
    _set(values, path, value, key, place)
    return key


def _example(section: str) -> str:
    fields = RunConfig.model_fields[section].annotation.model_fields
    return f"{section}.{next(iter(fields))}"


def _set(values: dict[str, Any], path: Sequence[str], value: Any, key: str, place: str) -> None:
    """Set a value below nested mappings and lists, making the mappings that are missing."""
    holder: Any = values
    for depth, part in enumerate(path):
        last = depth == len(path) - 1
        if isinstance(holder, list):
            here = ".".join(path[:depth])
            index = _index(part, holder, here, place)
            if last:
                holder[index] = value
            holder = holder[index]
        elif isinstance(holder, dict):
            if last:
                holder[part] = value
            elif holder.get(part) is None:
                holder[part] = _default_list(path[: depth + 1])
            holder = holder[part]
        else:
            here = ".".join(path[:depth])
            raise UserError(f"{place}: {key}: {here} = {holder!r} has no keys of its own")


def _default_list(path: Sequence[str]) -> Any:
    """Return the default that an index reaches into, or a new mapping."""
    if len(path) == 2 and path[0] in RunConfig.model_fields:
        fields = getattr(RunConfig.model_fields[path[0]].annotation, "model_fields", {})
        default = fields[path[1]].default if path[1] in fields else None
        if isinstance(default, tuple):
            return list(default)
    return {}


def _index(part: str, items: list[Any], here: str, place: str) -> int:
    if not part.isdecimal() or int(part) >= len(items):
        raise UserError(
            f"{place}: {here}.{part} is no item of {here}; allowed: "
            f"{here}.0 to {here}.{len(items) - 1}, or the whole list, as in {here}=[...]"
        )
    return int(part)


def _with_files(
    config: RunConfig, folder: Path, where: Where, to_be_made: str | None = None
) -> RunConfig:
    """Return the configuration with the files it names found, as absolute paths."""
    folders = (Path.cwd(), folder, REPOSITORY)
    root = config.data.root
    root = None if root in (None, "embedded") else locate(root, folders)

    def found(key: str, name: str, allowed: str) -> str:
        path = locate(name, folders)
        if path is None and root is not None and key.startswith("tasks."):
            path = locate(name, (root,))
        if path is None or path.is_dir() != allowed.startswith("a folder"):
            kind = re.split("[,:]", allowed)[0]
            what = "no such file or folder" if path is None else f"not {kind}"
            raise UserError(f"{where(key)}: {key} = {name!r}: {what}; allowed: {allowed}")
        return str(path)

    tasks = []
    for i, task in enumerate(config.tasks):
        if isinstance(task, OwnTask) and task.hub is None:
            parts = {part: getattr(task, part) for part in ("train", "dev", "test")}
            files = {part: name for part, name in parts.items() if name}
            kinds = "a file: csv, tsv, jsonl, parquet, conll or bio"
            paths = {part: found(f"tasks.{i}.{part}", name, kinds) for part, name in files.items()}
            task = task.model_copy(update=paths)
        tasks.append(task)
    data = config.data
    if data.root is not None and data.root != "embedded":
        root = found("data.root", data.root, "a folder, embedded, or null for the Hub")
        data = data.model_copy(update={"root": root})
    router = config.router
    if config.model.kind == "task_moe":
        files = {"routes_from": "a folder, a run's or a model's", "vectors": "a file, or random"}
        given = {key: getattr(router, key) for key in files}
        router = router.model_copy(
            update={
                key: found(f"router.{key}", name, files[key])
                for key, name in given.items()
                if name not in (None, "random")
            }
        )
    start = config.start
    if start.model not in (None, to_be_made):
        model = found("start.model", start.model, "a folder, of a model or of a finished run")
        start = start.model_copy(update={"model": model})
    native = found("deepspeed", config.deepspeed, "a file, DeepSpeed's JSON")
    files = {"tasks": tuple(tasks), "data": data, "start": start}
    files |= {"router": router, "deepspeed": native}
    return _from_home(config.model_copy(update=files), where)


def _from_home(config: RunConfig, where: Where) -> RunConfig:
    """Return the configuration with a home for ~ (shells leave run.dir=~/x as it is).

    In the paths that are not looked for: they need not be there, or may be words.
    """
    changed = {}
    for section, keys in {
        "run": ("dir", "resume"),
        "data": ("cache",),
        "model": ("encoder",),
    }.items():
        values = getattr(config, section)
        for key in keys:
            name = getattr(values, key)
            if name is not None and name.startswith("~"):
                try:
                    home = str(Path(name).expanduser())
                except RuntimeError:
                    key = f"{section}.{key}"
                    raise UserError(f"{where(key)}: {key} = {name!r}: no such home") from None
                values = values.model_copy(update={key: home})
        changed[section] = values
    return config.model_copy(update=changed)
