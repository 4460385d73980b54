"""What torchrun makes of a rank's end: with --max-restarts it starts the ranks again.

It does so whatever their status says, and has no switch for those that another start cannot mend.
"""

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path

FINAL = (2,)
"""Statuses that another start repeats: a mistake to mend."""

SPEAKING = 2.0  # seconds in which the other ranks of this machine say what they have to say
_NAMES = (b"torchrun", b"torch.distributed.run", b"torch/distributed/run.py")  # words end so


def prevent_restart(status: int, environ: Mapping[str, str]) -> None:
    """Have the torchrun of a rank that ends with `status` end too, where it would start it again.

    It ends by SIGTERM and with 1. Returns without an effect for other statuses, under anything
    else, and where no restart is left.
    """
    done, most = (environ.get(f"TORCHELASTIC_{name}") for name in ("RESTART_COUNT", "MAX_RESTARTS"))
    if status not in FINAL or done is None or most is None or int(done) >= int(most):
        return
    parent = os.getppid()
    try:
        words = Path(f"/proc/{parent}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return
    if any(word.endswith(_NAMES) for word in words[:4]):  # the program, and the options before it
        time.sleep(SPEAKING)
        os.kill(parent, signal.SIGTERM)
