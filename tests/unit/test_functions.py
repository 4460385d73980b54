"""No function of the package is longer than a screen; kernels are bodies of their own kind."""

import ast

LONGEST = 60
"""Lines from `def` to the last one, docstring and all."""


def test_no_function_is_longer_than_sixty_lines(root):
    long = [
        f"{file.relative_to(root)}:{node.lineno} {node.name}: {node.end_lineno - node.lineno + 1}"
        for file in sorted((root / "ds_moe_mtl").rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno - node.lineno + 1 > LONGEST
    ]
    assert long == []
