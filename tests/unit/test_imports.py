"""Imports point down only: the contracts of pyproject.toml, and what they cannot see."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

KNOWS_RANKS = {"ranks", "moe", "engine", "training"}
"""The only packages that may use torch.distributed."""
KERNELS_NEED = {"encoder_kernels", "moe_kernels", "update_kernels", "torch", "triton"}


def imported_modules(file: Path) -> Iterator[str]:
    """Yield every module a file imports or reaches as an attribute, in dotted form."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield f"{node.value.id}.{node.attr}"


def strings(file: Path) -> Iterator[str]:
    """Yield every string of a file, docstrings and the fixed parts of f-strings included."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def rooms_named(text: str) -> set[str]:
    """Return the rooms of the package that a text names as modules, as `python -m` takes them."""
    return set(re.findall(r"\bds_moe_mtl\.(\w+)", text))


def test_import_contracts_hold(root):
    lint = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()"],
        cwd=root,
        capture_output=True,
        text=True,
    )
    assert lint.returncode == 0, lint.stdout + lint.stderr


def test_only_the_rooms_that_know_ranks_use_torch_distributed(root):
    package = root / "ds_moe_mtl"
    users = {
        str(file.relative_to(root))
        for file in package.rglob("*.py")
        if file.relative_to(package).parts[0] not in KNOWS_RANKS
        and any(name.startswith("torch.distributed") for name in imported_modules(file))
    }
    assert users == set()


def test_no_string_outside_cli_names_cli(root):
    package = root / "ds_moe_mtl"
    found = {
        str(file.relative_to(root))
        for file in package.rglob("*.py")
        if file.relative_to(package).parts[0] not in ("cli", "__main__.py")
        and any("cli" in rooms_named(text) for text in strings(file))
    }
    assert found == set()


def test_no_string_names_a_room_above_its_own(root):
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 brings no TOML reader")
    contracts = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["importlinter"]
    (layers,) = [
        contract["layers"]
        for contract in contracts["contracts"]
        if contract["name"].startswith("What trains and predicts")
    ]
    height = {
        room.strip().removeprefix("ds_moe_mtl."): -number
        for number, line in enumerate(layers)
        for room in line.split("|")
    }
    found = {
        f"{file.relative_to(root)} names {room}"
        for own in height
        for file in (root / "ds_moe_mtl" / own).rglob("*.py")
        for text in strings(file)
        for room in rooms_named(text)
        if height.get(room, height[own]) > height[own]
    }
    assert found == set()


def test_a_room_is_found_in_a_program_that_python_c_would_run():
    program = "import sys; from ds_moe_mtl.cli import main; sys.exit(main(sys.argv[1:]))"
    assert rooms_named(program) == {"cli"}
    assert rooms_named("python -m ds_moe_mtl.benchmark.worker") == {"benchmark"}
    assert rooms_named("python -m ds_moe_mtl") == set()


def test_kernels_import_torch_and_triton_only(root):
    others = {
        f"{file.relative_to(root)}: {name}"
        for package in ("encoder_kernels", "moe_kernels", "update_kernels")
        for file in (root / "kernels" / package).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        for name in outer_packages(node)
        if name not in KERNELS_NEED and name not in sys.stdlib_module_names
    }
    assert others == set()


def outer_packages(node: ast.AST) -> list[str]:
    """Return the top-level packages that an import statement names."""
    if isinstance(node, ast.Import):
        return [alias.name.partition(".")[0] for alias in node.names]
    if isinstance(node, ast.ImportFrom) and not node.level:
        return [str(node.module).partition(".")[0]]
    return []
