"""A process that ends with the one that started it, however that one ends."""

import ctypes
import os
import signal

from ds_moe_mtl.config import UserError

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_with_parent(parent: int) -> None:
    """Have the kernel kill this process as soon as its parent ends, be it by SIGKILL.

    parent: the parent's process id as it was told; one that has gone by now is a UserError.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise UserError(f"process {parent}, which started this run, has ended")
