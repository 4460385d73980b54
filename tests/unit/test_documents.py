"""What the documents say is there: command lines, keys, files, the tree, examples that run."""

import ast
import contextlib
import io
import re
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

from ds_moe_mtl.cli import COMMANDS, main
from ds_moe_mtl.config import RunConfig
from ds_moe_mtl.config.load import find_experiment
from tests.support.documents import (
    DOCUMENTS,
    ROOT,
    Command,
    cited_files,
    commands,
    expand_braces,
    is_placeholder,
    keys,
    name_of,
    paths,
    python_blocks,
    tree,
)

WRITTEN = {
    *("config.yaml", "deepspeed.json", "environment.json", "manifest.json", "results.json"),
    *("gates.json", "leaderboard.json", "gains.png", "report.md", "report.json"),
    *("trackers.json", "expert_losses.json", "export.json"),
}
"""Files that a run or a command writes, and that documents name without a folder."""

TAKE_A_CONFIG = {
    ("plan",),
    ("data",),
    ("bench",),
    ("train",),
    ("crossfit", "study"),
    ("crossfit", "vectors"),
}
FLAG = re.compile(r"(?<![\w-])--[a-z][\w-]*")


def command_lines(*programs: str) -> list[pytest.param]:
    """Return the documents' commands that one of these words begins, as parameters of a test."""
    found = [command for command in commands() if command.words[0] in programs]
    return [pytest.param(command, id=f"{command.document}: {command.line}") for command in found]


def train_lines() -> list[pytest.param]:
    """Return the commands that start train.py under some launcher."""
    found = [command for command in commands() if "train.py" in command.words]
    return [pytest.param(command, id=f"{command.document}: {command.line}") for command in found]


@cache
def help_of(*words: str) -> str:
    """Return what a subcommand's --help prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main([*words, "--help"])
    return out.getvalue()


def assert_config_exists(word: str) -> None:
    if not word.startswith("-") and "=" not in word and not is_placeholder(word):
        for name in expand_braces(word):
            find_experiment(Path(name))  # raises for one that is not there


@pytest.mark.parametrize("command", command_lines("ds-moe-mtl"))
def test_a_ds_moe_mtl_command_and_each_of_its_flags_exist(command: Command):
    asked = command.words[1:] or ("--help",)
    part = asked[:2] if asked[0] == "crossfit" and len(asked) > 1 else asked[:1]
    if not asked[0].startswith("-"):
        assert asked[0] in COMMANDS
    if part[-1].startswith("-"):
        part = part[:-1]
    told = help_of(*part)
    assert told.startswith("usage: "), f"{part} has no help"
    unknown = {flag for word in asked for flag in FLAG.findall(word)} - set(FLAG.findall(told))
    assert unknown <= {"--help"}, f"{unknown} is not in {told}"
    rest = [word for word in asked[len(part) :] if word != "throughput"]
    if part in TAKE_A_CONFIG and rest:
        assert_config_exists(rest[0])
    for table in (word for word in rest if re.fullmatch(r"table\w+", word)):
        assert (ROOT / f"ds_configs/reproduce/{table}.yaml").is_file()


@pytest.mark.parametrize("command", train_lines())
def test_a_line_with_train_py_names_flags_and_a_configuration_that_exist(command: Command):
    asked = command.words[command.words.index("train.py") + 1 :]
    unknown = {flag for word in asked for flag in FLAG.findall(word)} - set(
        FLAG.findall(help_of("train"))
    )
    assert not unknown
    assert "{" not in command.line, "a shell makes several files of it; train.py takes one"
    if asked:
        assert_config_exists(asked[0])


@pytest.mark.parametrize("command", command_lines("make"))
def test_a_make_target_and_its_variables_exist(command: Command):
    makefile = (ROOT / "Makefile").read_text()
    for word in command.words[1:]:
        name, is_variable, _ = word.partition("=")
        pattern = rf"^{name} \??= ?" if is_variable else rf"^{name}:"
        assert re.search(pattern, makefile, re.MULTILINE), word


@pytest.mark.parametrize(
    "command", command_lines("python", ".venv/bin/python", "pytest", ".venv/bin/pytest")
)
def test_a_python_script_module_or_test_and_each_of_its_flags_exist(command: Command):
    words = list(command.words[1:] if "python" in command.words[0] else ("-m", *command.words))
    if words[:1] == ["-m"]:
        if words[1] != "pytest":
            module = words[1].replace(".", "/")
            assert (ROOT / f"{module}.py").is_file() or (ROOT / module / "__main__.py").is_file()
        for path in (word for word in words[2:] if word.startswith("tests")):
            assert (ROOT / path).exists(), path
        return
    if words and words[0] != "train.py":
        flags = flags_of(ROOT / words[0])
        unknown = {flag for word in words for flag in FLAG.findall(word)} - flags
        assert not unknown, f"{words[0]} has {flags}"


def flags_of(script: Path) -> set[str]:
    """Return the flags that a script gives to add_argument."""
    calls = [node for node in ast.walk(ast.parse(script.read_text())) if isinstance(node, ast.Call)]
    return {
        argument.value
        for call in calls
        if getattr(call.func, "attr", "") == "add_argument"
        for argument in call.args
        if isinstance(argument, ast.Constant) and argument.value.startswith("--")
    }


def test_every_section_key_that_a_document_names_is_a_key_of_a_run():
    sections = RunConfig.model_fields
    wrong = [
        f"{document}: {section}.{key}"
        for document, section, key in keys()
        if section in sections and key not in sections[section].annotation.model_fields
    ]
    assert not wrong


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_file_that_a_document_names_is_in_the_repository(document):
    known = {file.name for file in files_of_the_repository()}
    missing = set()
    for path in paths(document) - WRITTEN:
        here = "/" not in path.rstrip("/") and path in known
        if not here and not (ROOT / path).exists() and not (document.parent / path).exists():
            missing.add(path)
    assert {path for path in missing if not path.startswith(("runs/", "logs/"))} == set()


def test_readmes_tree_is_the_trees():
    found = tree(ROOT / "README.md")
    assert all((ROOT / name).exists() for name in found["top"])
    rooms = {f"{path.parent.name}/" for path in (ROOT / "ds_moe_mtl").glob("*/__init__.py")}
    assert set(found["package"]) == rooms


def test_no_comment_names_a_file_of_ours_that_is_not_there():
    sources = [file for file in files_of_the_repository() if file.suffix in (".py", ".yaml", ".sh")]
    missing = {
        f"{name_of(source)}: {cited}"
        for source in sources
        for cited in cited_files(source)
        if not (ROOT / cited).exists() and cited not in WRITTEN
    }
    assert missing == set()


def files_of_the_repository() -> list[Path]:
    """Return the files below the folders that hold sources, and those beside them."""
    folders = ("ds_moe_mtl", "kernels", "ds_configs", "launchers", "tests", "docs")
    found = [file for folder in folders for file in (ROOT / folder).rglob("*.*")]
    return [*found, *(file for file in ROOT.iterdir() if file.is_file())]


@pytest.mark.parametrize(
    "document", [document for document in DOCUMENTS if python_blocks(document)], ids=name_of
)
def test_an_example_in_python_runs(document):
    import_module("torch").manual_seed(0)
    for block in python_blocks(document):
        exec(compile(block, name_of(document), "exec"), {})


def test_the_documents_have_commands_keys_paths_and_examples_to_check():
    found = {command.words[0] for command in commands()}
    assert {"ds-moe-mtl", "make", "python", "deepspeed", "mpirun"} <= found
    assert len(commands()) > 40 and len(keys()) > 60
    assert python_blocks(ROOT / "README.md") and len(paths(ROOT / "README.md")) > 10
