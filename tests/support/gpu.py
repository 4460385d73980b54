"""What the tests on a GPU share: whether there is one, and processes that see it.

DS_MOE_MTL_GPU_REHEARSAL=1 runs them on a CPU, as far as that goes: it finds slips in the tests
themselves, before they meet a GPU.
"""

import importlib.util
import os

import pytest
import torch

REHEARSAL = os.environ.get("DS_MOE_MTL_GPU_REHEARSAL") == "1"
HERE = torch.cuda.is_available()
DEVICE = torch.device("cuda" if HERE else "cpu")
VISIBLE = {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]}
"""Of a started process: it sees one GPU."""

needs_gpu = pytest.mark.skipif(not (HERE or REHEARSAL), reason="needs a GPU, and torch sees none")
needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="needs deepspeed, which is not installed"
)


def error(found: torch.Tensor, exact: torch.Tensor) -> float:
    """Return the largest difference from a float64 result."""
    return float((found.double() - exact).abs().max())


def assert_as_good(ours, theirs, exact, what: str) -> None:
    """Assert that our error against float64 is at most twice theirs, which have our precision.

    One unit in the last place of the largest value is granted besides: theirs may be lucky.
    """
    ulp = torch.finfo(ours.dtype).eps * float(exact.abs().max())
    mine, allowed = error(ours, exact), 2 * error(theirs, exact) + ulp
    print(f"{what}: error {mine:.2e}, allowed {allowed:.2e}")
    assert mine <= allowed, f"{what}: error {mine:.2e} against float64, allowed {allowed:.2e}"
