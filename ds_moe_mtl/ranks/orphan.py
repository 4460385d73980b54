"""A process that ends with the one that started it, however that one ends.

Imports nothing of this package: mpi_address.py does without it.
"""

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_with_parent(parent: int) -> bool:
    """Have the kernel kill this process as soon as its parent ends, be it by SIGKILL.

    parent: the parent's process id as it was told. Returns whether it is still there.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    return os.getppid() == parent
