"""What is declared can be installed: every range has a tested pin inside it."""

import re
from fnmatch import fnmatch

import pytest
from packaging.requirements import Requirement

tomllib = pytest.importorskip("tomllib", reason="Python 3.10 brings no TOML reader")


def canonical(name):
    """Return a package's name as pip compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.fixture(scope="module")
def project(root):
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def pins(root):
    lines = (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonical(pin.name): str(pin.specifier).removeprefix("==") for pin in pinned}


def test_every_range_admits_its_pin(project, pins):
    extras = project["optional-dependencies"]
    declared = [*project["dependencies"], *extras["test"], *extras["export"]]
    for requirement in map(Requirement, declared):
        assert requirement.specifier.contains(pins[canonical(requirement.name)]), requirement


def test_torch_is_pinned_without_a_local_version_so_that_the_cpu_build_fits(pins):
    assert "+" not in pins["torch"]
    assert Requirement(f"torch=={pins['torch']}").specifier.contains(pins["torch"] + "+cpu")


def test_an_installed_package_brings_the_configurations_and_launchers_along(root):
    # Links, which a wheel holds as files: ds_moe_mtl.config.files looks for both through them.
    shipped = root / "ds_moe_mtl" / "shipped"
    assert {link.name: link.resolve() for link in shipped.iterdir()} == {
        name: root / name for name in ("ds_configs", "launchers")
    }
    tools = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    assert tools["setuptools"]["package-data"]["ds_moe_mtl.shipped"] == ["**/*"]


def test_a_wheel_has_every_file_that_is_no_python(root):
    text = (root / "pyproject.toml").read_text(encoding="utf-8")
    patterns = tomllib.loads(text)["tool"]["setuptools"]["package-data"]["*"]
    left = []
    packages = ("ds_moe_mtl", *(f"kernels/{name}_kernels" for name in ("moe", "encoder", "update")))
    for folder in packages:
        for file in (root / folder).rglob("*.*"):
            if file.suffix in (".py", ".pyc") or file.is_dir() or "shipped" in file.parts:
                continue
            package = next(up for up in file.parents if (up / "__init__.py").exists())
            name = file.relative_to(package).as_posix()
            if not any(fnmatch(name, pattern) for pattern in patterns):
                left.append(str(file.relative_to(root)))
    assert left == []
