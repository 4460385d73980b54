"""What one training step asks of torch and of other ranks, counted while it runs."""

from collections import Counter

from torch.utils._python_dispatch import TorchDispatchMode

HOST_READS = {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "unique2", "_unique2"}
"""Operators whose result the host waits for: on a GPU each of them stops the queue."""

COUNTED_STEP = 3
"""The step that is counted, from 0: DeepSpeed's throughput timer starts with the third."""


class Counts(TorchDispatchMode):
    """Counts operators by name while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names[f"{function.namespace}.{function.overloadpacket.__name__}"] += 1
        return function(*args, **(kwargs or {}))
