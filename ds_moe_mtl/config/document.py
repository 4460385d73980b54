"""A YAML document as plain values, with the line of every key.

YAML 1.2's scalars: 1e-4 is a number; yes, no, on, off and dates are text. PyYAML's own
(YAML 1.1) reads `lr: 1e-4` as text, which is the commonest mistake of such files.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from ds_moe_mtl.config.errors import UserError

MAX_DEPTH = 20  # far beyond any section; stops an alias that contains itself
MAX_NODES = 100_000  # stops aliases that multiply


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2's core schema instead of 1.1's."""

    yaml_implicit_resolvers: dict[str, Any] = {}


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0|[1-9][0-9]*)$"), list("-+0123456789")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+.0123456789"),
)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that also quotes text which the loader above would take for something else."""


for _first, _resolvers in _Loader.yaml_implicit_resolvers.items():
    for _tag, _pattern in _resolvers:
        _Dumper.add_implicit_resolver(_tag, _pattern, [_first])


@dataclass
class Document:
    """What a YAML text holds: plain values, and the line (from 1) of each dotted key."""

    values: Any = None
    lines: dict[str, int] = field(default_factory=dict)


def parse_yaml(text: str, source: str) -> Document:
    """Return the values of a YAML text with their lines; None for an empty text.

    `source` names the text in messages, with the line where it has several. Raises UserError
    for what is not YAML, a key given twice, a key that is not text, and a tag beyond YAML's own.
    """
    document = Document()
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is not None:
            document.values = _Builder(loader, source, document.lines).build(node, ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark if "\n" in text else None
        line = "" if mark is None else f":{mark.line + 1}"
        raise UserError(f"{source}{line}: not valid YAML: {_one_line(error.problem)}") from None
    except (yaml.YAMLError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{source}: not valid YAML: {_one_line(error)}") from None
    return document


def dump_yaml(values: Any) -> str:
    """Return the YAML text that parse_yaml reads back as these very values."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, width=100)


def dotted(path: tuple[str | int, ...]) -> str:
    """Return a path as a user writes it: train.lr, tasks.0.name."""
    return ".".join(str(part) for part in path)


def _one_line(problem: object) -> str:
    return " ".join(str(problem).split())


class _Builder:
    """Turns a node tree into values, noting lines and refusing doubled keys."""

    def __init__(self, loader: _Loader, source: str, lines: dict[str, int]):
        self._loader = loader
        self._source = source
        self._lines = lines
        self._nodes = 0

    def build(self, node: yaml.Node, path: tuple[str | int, ...]) -> Any:
        """Return the value of a node that stands at `path`."""
        self._nodes += 1
        line = node.start_mark.line + 1
        if len(path) > MAX_DEPTH or self._nodes > MAX_NODES:
            raise UserError(f"{self._source}:{line}: nested too deeply or too large for a run")
        self._lines.setdefault(dotted(path), line)
        if isinstance(node, yaml.MappingNode) and node.tag == _Loader.DEFAULT_MAPPING_TAG:
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode) and node.tag == _Loader.DEFAULT_SEQUENCE_TAG:
            return [self.build(item, (*path, i)) for i, item in enumerate(node.value)]
        return self._loader.construct_object(node)

    def _mapping(self, node: yaml.MappingNode, path: tuple[str | int, ...]) -> Mapping[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            line = key_node.start_mark.line + 1
            if not isinstance(key, str) or key == "":
                raise UserError(f"{self._source}:{line}: a key must be plain text")
            if key in values:
                raise UserError(
                    f"{self._source}:{line}: {dotted((*path, key))} is given twice; "
                    f"the first is on line {self._lines[dotted((*path, key))]}"
                )
            self._lines[dotted((*path, key))] = line
            values[key] = self.build(value_node, (*path, key))
        return values
