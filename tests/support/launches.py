"""Which Triton kernels and torch operations run, counted in Triton's interpreter."""

import pytest
from torch.utils._python_dispatch import TorchDispatchMode

# Operations of torch that start no kernel: allocations and views.
FREE = {
    "empty", "new_empty", "empty_like", "new_empty_strided", "empty_strided", "detach", "view",
    "_unsafe_view", "unbind", "slice", "alias", "expand", "as_strided", "t", "reshape", "unsqueeze",
    "transpose", "select", "split_with_sizes", "squeeze",
}  # fmt: skip


class Launches(TorchDispatchMode):
    """Names of the Triton kernels and torch operations that ran, in order."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name not in FREE:
            self.names.append(name)
        return function(*args, **(kwargs or {}))


def counted_launches(monkeypatch: pytest.MonkeyPatch) -> Launches:
    """Return a mode that counts, with Triton's kernels too while the patch lasts."""
    from triton.runtime.interpreter import GridExecutor

    counted = Launches()
    run_grid = GridExecutor.__call__

    def call(self, *args, **kwargs):
        # What the interpreter itself does with tensors is no launch.
        counted.names.append(self.fn.__name__)
        before = len(counted.names)
        run_grid(self, *args, **kwargs)
        del counted.names[before:]

    monkeypatch.setattr(GridExecutor, "__call__", call)
    return counted
