"""A disk that takes no more, without one: the system's own limit on a file's size."""

import contextlib
import resource
from collections.abc import Iterator


@contextlib.contextmanager
def files_up_to(most: int) -> Iterator[None]:
    """Have every write of this process that makes a file longer than `most` bytes fail (EFBIG)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
