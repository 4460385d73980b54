"""The CUDA C++ routing and permutation: built once a machine, then called with addresses.

T tokens, R rows in expert order, D hidden size, G gates, E experts.
"""

from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from moe_kernels.routing.types import Routed

# The order of moe_routing.h's Type.
TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
HERE = Path(__file__).parent
SOURCES = [str(HERE / "binding.cpp"), str(HERE / "moe_routing.cu")]


def why_not_buildable() -> str | None:
    """Return why the extension cannot be built on this machine, or None."""
    from torch.utils.cpp_extension import CUDA_HOME

    return "nvcc was not found (set CUDA_HOME)" if CUDA_HOME is None else None


@lru_cache(maxsize=1)
def extension():
    """Return the compiled module; the first call on a machine takes about a minute.

    Raises RuntimeError with the compiler's words if it does not build.
    """
    from torch.utils.cpp_extension import load

    return load("moe_routing_cuda", SOURCES, extra_cuda_cflags=["-O3"], extra_cflags=["-O3"])


def launch_route(x_TD, gate_weight, gate_ids_T, mask_T, num_experts: int) -> Routed:
    """Return the routing of every token: three launches."""
    module, (num_tokens, hidden) = extension(), x_TD.shape
    new = x_TD.new_empty
    expert_T, order_T = new(num_tokens, dtype=torch.int32), new(num_tokens, dtype=torch.int32)
    prob_T = new(num_tokens, dtype=torch.float32)
    logits_TE = new((num_tokens, num_experts), dtype=torch.float32)
    blocks = -(-num_tokens // module.block_tokens)
    block_counts = new((blocks, num_experts + 1), dtype=torch.int32)
    counts_E1 = new(num_experts + 1, dtype=torch.int32)
    ids_T = None if gate_ids_T is None else gate_ids_T.long()
    with torch.cuda.device_of(x_TD):
        stream = torch.cuda.current_stream().cuda_stream
        _check(module.choose(
            TYPES[x_TD.dtype], TYPES[gate_weight.dtype], x_TD.data_ptr(), gate_weight.data_ptr(),
            _address(ids_T), _address(mask_T), expert_T.data_ptr(), prob_T.data_ptr(),
            logits_TE.data_ptr(), block_counts.data_ptr(), num_tokens, hidden,
            gate_weight.shape[0] // num_experts, num_experts, stream,
        ))  # fmt: skip
        _check(module.order(
            expert_T.data_ptr(), block_counts.data_ptr(), counts_E1.data_ptr(), order_T.data_ptr(),
            num_tokens, num_experts, stream,
        ))  # fmt: skip
    return Routed(expert_T, prob_T, logits_TE, counts_E1, order_T)


def launch_gather(
    x_TD: Tensor,
    order_T: Tensor,
    num_rows: int,
    scale_T: Tensor | None = None,
    other_RD: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Return (scale x in expert order, <x, other> a token if other is given: 0 if not routed)."""
    y_RD = x_TD.new_empty(num_rows, x_TD.shape[1])
    order_T, scale_T = order_T.int(), None if scale_T is None else scale_T.float().contiguous()
    dots_T = None
    if other_RD is not None:
        dots_T = x_TD.new_zeros(x_TD.shape[0], dtype=torch.float32)
    with torch.cuda.device_of(x_TD):
        _check(extension().gather(
            TYPES[x_TD.dtype], x_TD.data_ptr(), order_T.data_ptr(), _address(scale_T),
            y_RD.data_ptr(), _address(other_RD), _address(dots_T), num_rows, x_TD.shape[1],
            torch.cuda.current_stream().cuda_stream,
        ))  # fmt: skip
    return y_RD, dots_T


def launch_scatter(y_RD: Tensor, order_T: Tensor, scale_T: Tensor | None = None) -> Tensor:
    """Return x_TD: scale y back in token order, and zeros in the rows that are not routed."""
    num_tokens, hidden = order_T.shape[0], y_RD.shape[1]
    x_TD = y_RD.new_empty(num_tokens, hidden)
    order_T, scale_T = order_T.int(), None if scale_T is None else scale_T.float().contiguous()
    with torch.cuda.device_of(y_RD):
        _check(extension().scatter(
            TYPES[y_RD.dtype], y_RD.data_ptr(), order_T.data_ptr(), _address(scale_T),
            x_TD.data_ptr(), y_RD.shape[0], num_tokens, hidden,
            torch.cuda.current_stream().cuda_stream,
        ))  # fmt: skip
    return x_TD


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _check(code: int) -> None:
    if code != 0:
        raise RuntimeError(f"a CUDA routing kernel could not be launched: CUDA error {code}")
