"""The whole tree passes ruff: rules and format."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("check", [("check",), ("format", "--check")], ids=["rules", "format"])
def test_ruff_finds_nothing_to_change(root, check):
    ruff = subprocess.run(
        [sys.executable, "-m", "ruff", *check, "."], cwd=root, capture_output=True, text=True
    )
    assert ruff.returncode == 0, ruff.stdout + ruff.stderr
