"""--version of both commands, before anything of a run is looked at."""

import re

import pytest

from ds_moe_mtl.cli import main
from ds_moe_mtl.cli.train import main as train


@pytest.mark.parametrize("command", [main, train], ids=["ds-moe-mtl", "train.py"])
def test_version_is_the_name_and_the_version_of_pyproject(command, capsys, root):
    declared = re.search(r'^version = "(.+)"$', (root / "pyproject.toml").read_text(), re.MULTILINE)
    assert command(["--version"]) == 0
    assert capsys.readouterr().out == f"ds-moe-mtl {declared[1]}\n"
