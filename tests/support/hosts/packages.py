"""Debian packages that a test needs, installed where that is possible."""

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

SBIN = "/usr/sbin:/sbin:/usr/local/sbin"  # not on every user's PATH
NO_START = Path("/usr/sbin/policy-rc.d")  # Debian asks it whether a new package's daemon may start
INSTALL_LIMIT = 240


class Unavailable(RuntimeError):
    """This machine cannot have what a test needs; the text is the reason."""


def which(program: str) -> str | None:
    """Return where a program is, in the system's folders too."""
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:{SBIN}")


def require(programs: Mapping[str, str], purpose: str) -> None:
    """Return once all programs (name -> its Debian package) are there; apt-get brings the missing.

    No daemon of a new package is started. Raises Unavailable, with the reason, where one is
    missing and cannot be had.
    """
    missing = {name: package for name, package in programs.items() if not which(name)}
    if not missing:
        return
    said = f"{purpose}: no {', '.join(sorted(missing))}"
    if os.getuid() != 0:
        raise Unavailable(f"{said}, and not root")
    if not which("apt-get"):
        raise Unavailable(f"{said}, and no apt-get")
    with Path(tempfile.gettempdir(), "ds_moe_mtl_apt.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of test files that run side by side
        if any(not which(name) for name in missing):
            _install(sorted(set(missing.values())), said)


def _install(packages: list[str], said: str) -> None:
    ours = not NO_START.exists()
    if ours:
        NO_START.write_text("#!/bin/sh\nexit 101\n")
        NO_START.chmod(0o755)
    apt = ["apt-get", "-q", "-y", "-o", "DPkg::Lock::Timeout=120"]
    try:
        for words in (["update"], ["install", "--no-install-recommends", *packages]):
            run = subprocess.run(
                [*apt, *words],
                env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=INSTALL_LIMIT,
            )
            if run.returncode != 0:
                last = (run.stderr or run.stdout).strip().splitlines()[-1:]
                raise Unavailable(f"{said}, and apt-get cannot install it: {' '.join(last)}")
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{said}, and apt-get took over {INSTALL_LIMIT} s") from None
    finally:
        if ours:
            NO_START.unlink(missing_ok=True)
