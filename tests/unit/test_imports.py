"""Imports point down only: the contracts of pyproject.toml, and what they cannot see."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

KNOWS_RANKS = {"ranks", "moe", "engine", "training"}
"""The only packages that may use torch.distributed."""
KERNELS_NEED = {"moe_kernels", "torch", "triton"}


def imported_modules(file: Path) -> Iterator[str]:
    """Yield every module a file imports or reaches as an attribute, in dotted form."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield f"{node.value.id}.{node.attr}"


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


def test_kernels_import_torch_and_triton_only(root):
    others = {
        f"{file.relative_to(root)}: {name}"
        for file in (root / "kernels" / "moe_kernels").rglob("*.py")
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
