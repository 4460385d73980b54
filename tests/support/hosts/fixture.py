"""Hosts for a module of tests, or the reason why they are skipped."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.hosts.hosts import Hosts
from tests.support.hosts.packages import Unavailable, require


def hosts_or_skip(folder: Path, **options) -> Iterator[Hosts]:
    """Yield hosts under a new folder; options are those of Hosts."""
    try:
        hosts = Hosts(folder, **options)
    except Unavailable as reason:
        pytest.skip(str(reason))
    with hosts:
        yield hosts


def require_or_skip(programs: dict[str, str], purpose: str) -> None:
    """Return once programs (name -> Debian package) are there, or skip with the reason."""
    try:
        require(programs, purpose)
    except Unavailable as reason:
        pytest.skip(str(reason))
