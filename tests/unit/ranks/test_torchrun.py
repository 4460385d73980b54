"""A mistake to mend ends the torchrun that would start it again; nothing else does."""

import signal
import subprocess
import sys

import pytest

from tests.support.launch import rank_environ

RANK = """
import os, sys
from ds_moe_mtl.ranks import torchrun
torchrun.SPEAKING = 0.0
torchrun.prevent_restart(int(sys.argv[1]), os.environ)
sys.exit(int(sys.argv[1]))
"""
LEFT = {"TORCHELASTIC_RESTART_COUNT": "1", "TORCHELASTIC_MAX_RESTARTS": "3"}


def ends(parent: str, status: int, environ: dict[str, str]) -> int:
    """Return how a rank's parent of that name ends: as the rank, or by a signal from it."""
    script = '"$1" -c "$2" "$3"; exit $?'
    words = ["sh", "-c", script, parent, sys.executable, RANK, str(status)]
    return subprocess.run(words, env=rank_environ(environ), timeout=60).returncode


@pytest.mark.parametrize(
    ("parent", "status", "environ", "expected"),
    [
        ("/usr/bin/torchrun", 2, LEFT, -signal.SIGTERM),
        ("/usr/bin/torchrun", 70, LEFT, 70),  # a host that is lost: started again
        ("/usr/bin/torchrun", 2, LEFT | {"TORCHELASTIC_RESTART_COUNT": "3"}, 2),  # the last one
        ("/usr/bin/torchrun", 2, {}, 2),
        ("/usr/bin/something", 2, LEFT, 2),
    ],
)
def test_torchrun_is_ended_where_it_would_repeat_a_mistake(parent, status, environ, expected):
    assert ends(parent, status, environ) == expected
