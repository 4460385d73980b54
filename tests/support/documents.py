"""What the repository's documents say: their blocks, command lines, configuration keys and paths.

A word that stands for something (CONFIG, RUN, <family>, ...) is no name; `is_placeholder` tells.
"""

import ast
import io
import itertools
import re
import shlex
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = tuple(
    ROOT / name
    for name in (
        *("README.md", "CONTRIBUTING.md", "kernels/README.md", "ds_configs/README.md"),
        *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/*.md")),
    )
)
PROGRAMS = {"ds-moe-mtl", "make", "python", "pytest", "deepspeed", "torchrun", "mpirun", "sbatch"}
EXTENSIONS = "py|md|yaml|json|sh|sbatch|png|cu|cpp|toml|example"

_PATH = re.compile(rf"[\w.{{}},*<>-]+(?:/[\w.{{}},*<>-]+)*\.(?:{EXTENSIONS})\b")
_FOLDER = re.compile(r"[\w-]+(?:/[\w-]+)*/?")
_OURS = "ds_moe_mtl|kernels|ds_configs|launchers|tests|docs"
_CITED = re.compile(rf"[\w-]+(?:/[\w-]+)*\.md\b|\b(?:{_OURS})/[\w/<>*-]+\.(?:{EXTENSIONS})\b")
_KEY = re.compile(r"([a-z]+)\.([a-z_]+)(?:\.\d+)?(?:=.*)?")


@dataclass(frozen=True)
class Command:
    """A command line of a document: its words as a shell has them, without what follows a #."""

    document: str
    line: str
    words: tuple[str, ...]


def name_of(document: Path) -> str:
    """Return a document's path below the repository's root."""
    return str(document.relative_to(ROOT))


def is_placeholder(word: str) -> bool:
    """Return whether a word stands for another: CONFIG, RUN4, runs/..., <family>, ..."""
    return bool(re.search(r"[<>*]|\.\.\.|\b[A-Z][A-Z0-9]*\b(?!\.md)", word))


def python_blocks(document: Path) -> list[str]:
    """Return the fenced blocks of Python."""
    return re.findall(r"^```python\n(.*?)^```", document.read_text(), re.MULTILINE | re.DOTALL)


def code_lines(document: Path) -> Iterator[str]:
    """Yield indented lines (those that end in a backslash joined to the next), then spans."""
    text = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    indented = "\n".join(line[4:] for line in text.splitlines() if line.startswith("    "))
    yield from re.sub(r"\\\n\s*", " ", indented).splitlines()
    prose = "\n".join(line for line in text.splitlines() if not line.startswith("    "))
    yield from (" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose))


def commands() -> list[Command]:
    """Return every command line of every document."""
    found = []
    for document in DOCUMENTS:
        for line in code_lines(document):
            words = _words(line)
            if words and (words[0] in PROGRAMS or words[0].startswith(("launchers/", ".venv/"))):
                found.append(Command(name_of(document), line, tuple(words)))
    return found


def _words(line: str) -> list[str]:
    """Return a line's words: no comment, no brackets of what is optional, no VARIABLE=VALUE."""
    try:
        words = shlex.split(line, comments=True)
    except ValueError:  # an apostrophe: prose
        return []
    words = [word.strip("[]") for word in words]
    return list(itertools.dropwhile(re.compile(r"[A-Z][A-Z_]*=").match, words))


def keys() -> list[tuple[str, str, str]]:
    """Return (document, section, name) of every section.key in a document's code."""
    found = []
    for document in DOCUMENTS:
        for line in code_lines(document):
            for word in line.split():
                match = _KEY.fullmatch(word)
                if match and match[2] not in EXTENSIONS.split("|"):
                    found.append((name_of(document), match[1], match[2]))
    return found


def paths(document: Path) -> set[str]:
    """Return the names of files in a document's text, and of folders and files that it links."""
    text = document.read_text()
    linked = re.findall(r"\]\(([^)#\s]+)\)", text)
    spans = [span for span in re.findall(r"`([^`\n]+)`", text) if _FOLDER.fullmatch(span)]
    folders = [span for span in spans if "/" in span]
    named = [match[0].strip(",") for match in _PATH.finditer(text)]
    return {
        word
        for whole in (*linked, *folders, *named)
        for word in expand_braces(whole)
        if not is_placeholder(word) and "://" not in word
    }


def expand_braces(word: str) -> list[str]:
    """Return a{b,c}d as abd and acd, as a shell does."""
    match = re.search(r"\{([^{}]*)\}", word)
    if match is None:
        return [word]
    options = (word[: match.start()] + part + word[match.end() :] for part in match[1].split(","))
    return [full for option in options for full in expand_braces(option)]


def tree(document: Path) -> dict[str, list[str]]:
    """Return the names of the block of a document's "What is where" by the depth of their line."""
    block = document.read_text().partition("## What is where")[2].partition("\n## ")[0]
    found: dict[str, list[str]] = {}
    for indent, names in re.findall(r"^( {4,})(\S+(?:, \S+)*)  ", block, re.MULTILINE):
        found.setdefault("top" if len(indent) == 4 else "package", []).extend(names.split(", "))
    return found


def cited_files(source: Path) -> set[str]:
    """Return the documents, and the files below our folders, that a source's comments name."""
    text = source.read_text()
    notes = _comments_of_python(text) if source.suffix == ".py" else re.findall(r"#(.*)", text)
    return {path for note in notes for path in _CITED.findall(note) if not is_placeholder(path)}


def _comments_of_python(text: str) -> Iterator[str]:
    """Yield the comments, and the strings that stand by themselves: docstrings."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.string
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            yield str(node.value.value)
