"""Block sizes of the Triton kernels, chosen from the shapes: no autotuning.

A tuner would time kernels inside the first training step, may choose differently on every rank and
run (results then differ in the last bits), and cannot run while a CUDA graph is captured. The
choices are those that an H100 ran fastest with (benchmarks/tune_blocks.py, d 384, 768 and 1024, 32k
tokens); every kernel is compiled for sm_90 in the tests (registers, spills, shared memory).
"""

from typing import NamedTuple

import torch

MULTIPROCESSORS = 132


class Blocks(NamedTuple):
    """A product's tile: BLOCK_M x BLOCK_N results, BLOCK_K deep, and how it is run."""

    m: int
    n: int
    k: int
    warps: int
    stages: int

    def options(self) -> dict[str, int]:
        """Return the keywords of a kernel launch."""
        return {
            "BLOCK_M": self.m,
            "BLOCK_N": self.n,
            "BLOCK_K": self.k,
            "num_warps": self.warps,
            "num_stages": self.stages,
        }


def cdiv(number: int, size: int) -> int:
    """Return how many blocks of a size a number takes; Triton's own costs 2 us a call."""
    return -(-number // size)


def power_of_2(number: int) -> int:
    """Return the least power of two that is not less than a number from 1 on."""
    return 1 << (number - 1).bit_length()


def up_blocks(dtype: torch.dtype, rows: int, inner: int) -> Blocks:
    """Return the tile of h = x W1^T and its GELU: [rows, inner], hidden deep."""
    return _narrow(dtype, rows, inner)


def down_blocks(dtype: torch.dtype, rows: int, hidden: int) -> Blocks:
    """Return the tile of y = a W2^T: [rows, hidden], inner deep."""
    return _wide(dtype, rows, hidden)


def down_grad_blocks(dtype: torch.dtype, rows: int, inner: int) -> Blocks:
    """Return the tile of dy W2 and what GELU's derivative makes of it: [rows, inner]."""
    return _narrow(dtype, rows, inner)


def up_grad_blocks(dtype: torch.dtype, rows: int, hidden: int) -> Blocks:
    """Return the tile of dx = dh W1 and routing's term: [rows, hidden], inner deep."""
    return _wide(dtype, rows, hidden)


def weight_grad_blocks(dtype: torch.dtype, inner: int, hidden: int, experts: int) -> Blocks:
    """Return the tile of all experts' weight gradients: m of inner, n of hidden, k rows deep."""
    if dtype == torch.float32:
        return _FLOAT32
    tiles = 2 * experts * (inner // 128) * (hidden // 256)
    if hidden % 256 or tiles < 2 * MULTIPROCESSORS:
        return Blocks(128, 128, 64, 8, 3)
    return Blocks(128, 256, 64, 8, 3)


# Exact float32 products run on the plain cores, where registers are the limit. For tests.
_FLOAT32 = Blocks(64, 64, 32, 4, 2)


def _narrow(dtype: torch.dtype, rows: int, columns: int) -> Blocks:
    """Return the tile of a grouped product whose epilogue does much beside storing.

    128 registers a thread and three stages of 32 KiB leave a multiprocessor room for two programs,
    one of which multiplies while the other computes GELU and stores.
    """
    return _few_rows(dtype, rows, columns) or Blocks(128, 128, 64, 8, 3)


def _wide(dtype: torch.dtype, rows: int, columns: int) -> Blocks:
    """Return the tile of a grouped product whose epilogue only stores: it reads a quarter less."""
    few = _few_rows(dtype, rows, columns)
    if few is not None:
        return few
    if columns % 256 or (rows // 128) * (columns // 256) < MULTIPROCESSORS:
        return Blocks(128, 128, 64, 4, 3)
    return Blocks(128, 256, 64, 8, 3)


def _few_rows(dtype: torch.dtype, rows: int, columns: int) -> Blocks | None:
    """Return the tile for float32, and for few rows: more programs, less waste at experts' ends."""
    if dtype == torch.float32:
        return _FLOAT32
    return Blocks(64, 64 if columns <= 64 else 128, 64, 4, 4) if rows <= 2048 else None


def route_block(num_tokens: int) -> int:
    """Return how many tokens a routing program takes: enough programs before few re-reads."""
    return 32 if num_tokens < 128 * MULTIPROCESSORS else 64


def gate_chunk(num_gates: int, padded_experts: int) -> int:
    """Return how many columns of gates are computed at once.

    Up to 128 columns all gates go in one product over x; beyond, a block of tokens only takes the
    chunks its own gates are in, and small chunks hold fewer gates that are not asked for.
    """
    columns = padded_experts
    while columns < num_gates * padded_experts and columns < 128:
        columns *= 2
    if columns < num_gates * padded_experts:
        columns = max(32, padded_experts)
    return max(16, columns)
