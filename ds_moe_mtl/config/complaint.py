"""What pydantic found wrong, in one line a user can act on.

A line says where (file and line, or the command line), which dotted key, the bad value, and
what is allowed. What is allowed is read from the schema, so that it is written down once.
"""

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from ds_moe_mtl.config.document import dotted

_SHOWN = 60  # characters of a bad value
_KEY = re.compile(r"\b[a-z]+(?:\.[a-z0-9_]+)+\b")


def complaint(error: ValidationError, model: type[BaseModel], where: Callable[..., str]) -> str:
    """Return one line about the first thing wrong.

    where(*keys, section): the place that tells most about dotted keys that contradict each other,
    or about their section where none of them was written; a single key is asked for by itself.
    """
    # A key that is not known explains a missing one beside it, so it is told first.
    details = sorted(_innermost(error), key=lambda detail: detail["type"] != "extra_forbidden")
    detail = details[0]
    schema = model.model_json_schema()
    paths = [_as_written(detail["loc"], schema) for detail in details]
    path = paths[0]
    name = dotted(path)
    named: list[str] = []
    if detail["type"] == "value_error":
        line = str(detail["ctx"]["error"])
        named = _KEY.findall(line)
    elif detail["type"] == "extra_forbidden":
        line = f"unknown key {name}; {_nearest(path, schema)}"
    elif detail["type"] == "missing":
        line = f"{name} is missing; allowed: {describe(_node(path, schema), schema)}"
    elif path[-1:] == ("[key]",):
        line = f"{dotted(path[:-1])} is no name; allowed: a name of letters, digits and _+-"
    else:
        value = shown(detail["input"])
        line = f"{name} = {value}; allowed: {describe(_node(path, schema), schema)}"
    more = len(set(paths)) - 1
    return f"{where(*named, name)}: {line}" + (f" (and {more} more)" if more else "")


def _innermost(error: ValidationError) -> list[Any]:
    """Return what is wrong without a list's complaint that its bad item does not count."""
    details = error.errors()
    inner = {detail["loc"][:depth] for detail in details for depth in range(len(detail["loc"]))}
    return [detail for detail in details if detail["loc"] not in inner]


def _as_written(place: tuple[str | int, ...], schema: Mapping[str, Any]) -> tuple[str | int, ...]:
    """Return a path without pydantic's names for the options of a union ("own", "int")."""
    path: tuple[str | int, ...] = ()
    tag = False  # whether the next part may be an option's name
    for part in place:
        node = _resolved(_node(path, schema), schema)
        if tag and isinstance(part, str) and ("anyOf" in node or "oneOf" in node):
            tag = False
            if part not in _keys(node, schema):
                continue
        path, tag = (*path, part), True
    return path


def shown(value: Any) -> str:
    """Return a value as one short line."""
    text = repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def describe(node: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """Return in words what a node of a JSON schema allows."""
    node = _resolved(node, schema)
    options = node.get("anyOf") or node.get("oneOf")
    if options:
        return " or ".join(describe(option, schema) for option in options)
    if "const" in node:
        return str(node["const"])
    if "enum" in node:
        return "one of " + ", ".join(map(str, node["enum"]))
    kind = node.get("type")
    if kind in ("integer", "number"):
        return ("a whole number" if kind == "integer" else "a number") + _bounds(node)
    if kind == "string":
        if ":" in node.get("pattern", ""):
            return "module:Name, as in mypackage.module:Hook"
        return "a name of letters, digits and _+-" if "pattern" in node else "text"
    if kind == "array":
        return _describe_list(node, schema)
    if kind == "object":
        keys = ", ".join(node.get("properties", {}))
        return f"a section with the keys {keys}" if keys else "a section with names of your own"
    return {"boolean": "true or false", "null": "null"}.get(kind, "another value")


def known_keys(schema: Mapping[str, Any]) -> list[str]:
    """Return every dotted key outside lists, sections included."""
    return list(_walk(schema, schema, ()))


def _walk(
    node: Mapping[str, Any], schema: Mapping[str, Any], path: tuple[str, ...]
) -> Iterator[str]:
    for key, child in _resolved(node, schema).get("properties", {}).items():
        yield dotted((*path, key))
        yield from _walk(child, schema, (*path, key))


def _nearest(path: tuple[str | int, ...], schema: Mapping[str, Any]) -> str:
    """Return the nearest known key: a sibling, then the same name elsewhere, then any key."""
    parent, leaf = path[:-1], str(path[-1])
    siblings = list(_keys(_node(parent, schema), schema))
    close = difflib.get_close_matches(leaf, siblings, n=1)
    if close:
        return f"nearest known key: {dotted((*parent, close[0]))}"
    elsewhere = {key.rpartition(".")[2]: key for key in reversed(known_keys(schema))}
    close = difflib.get_close_matches(leaf, elsewhere, n=1, cutoff=0.75)
    if close:
        return f"nearest known key: {elsewhere[close[0]]}"
    section = f"the keys of {dotted(parent)}" if parent else "the sections"
    return f"{section} are {', '.join(siblings)}"


def _node(path: tuple[str | int, ...], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the schema's node at a path; an empty node where the path leaves the schema."""
    node: Mapping[str, Any] = schema
    for part in path:
        node = _resolved(node, schema)
        if isinstance(part, int):
            node = _list_item(node, part)
        else:
            by_name = next(iter(node.get("patternProperties", {}).values()), {})
            node = _keys(node, schema).get(part, by_name)
    return node


def _keys(node: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the keys of a section's node, or of the section among its options."""
    node = _resolved(node, schema)
    options = node.get("oneOf") or node.get("anyOf") or [node]
    holders = [_resolved(option, schema).get("properties", {}) for option in options]
    return next((holder for holder in holders if holder), {})


def _list_item(node: Mapping[str, Any], index: int) -> Mapping[str, Any]:
    fixed = node.get("prefixItems", [])
    return fixed[index] if index < len(fixed) else node.get("items") or {}


def _resolved(node: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a node with its reference followed."""
    reference = node.get("$ref")
    return node if reference is None else schema["$defs"][reference.rpartition("/")[2]]


def _bounds(node: Mapping[str, Any]) -> str:
    words = {
        "exclusiveMinimum": "above",
        "minimum": "at least",
        "exclusiveMaximum": "below",
        "maximum": "at most",
    }
    bounds = [f"{word} {node[key]:.12g}" for key, word in words.items() if key in node]
    return " " + " and ".join(bounds) if bounds else ""


def _describe_list(node: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    low, high = node.get("minItems", 0), node.get("maxItems")
    item = describe(_list_item(node, 0), schema)
    size = f"{low}" if low == high else f"{low} to {high}" if high else f"{low} or more"
    return f"a list of {size}, each {item}"
