"""Block sizes of the Triton kernels, chosen from the shapes: no autotuning.

A tuner would time kernels inside the first training step, may choose differently on every rank and
run (results then differ in the last bits), and cannot run while a CUDA graph is captured. The
choices are reasoned from an H200's 227 KiB of shared memory a block, 64 K registers and 132
multiprocessors, and checked by compiling every kernel for sm_90 (registers, spills, shared memory:
tests/kernels). They have not been timed on a GPU yet.
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


def up_blocks(dtype: torch.dtype, rows: int, inner: int) -> Blocks:
    """Return the tile of h = x W1^T and its GELU: [rows, inner], hidden deep."""
    return _product_blocks(dtype, rows, inner, heavy=True)


def down_blocks(dtype: torch.dtype, rows: int, hidden: int) -> Blocks:
    """Return the tile of y = a W2^T: [rows, hidden], inner deep."""
    return _product_blocks(dtype, rows, hidden)


def down_grad_blocks(dtype: torch.dtype, rows: int, inner: int) -> Blocks:
    """Return the tile of dy W2 and what GELU's derivative makes of it: [rows, inner]."""
    return _product_blocks(dtype, rows, inner, heavy=True)


def up_grad_blocks(dtype: torch.dtype, rows: int, hidden: int) -> Blocks:
    """Return the tile of dx = dh W1 and routing's term: [rows, hidden], inner deep."""
    return _product_blocks(dtype, rows, hidden, heavy=True)


def weight_grad_blocks(dtype: torch.dtype, inner: int, hidden: int, experts: int) -> Blocks:
    """Return the tile of all experts' weight gradients: m of inner, n of hidden, k rows deep."""
    if dtype == torch.float32:
        return Blocks(64, 64, 32, 4, 2)
    tiles = 2 * experts * (inner // 128) * (hidden // 256)
    if hidden % 256 or tiles < 2 * MULTIPROCESSORS:
        return Blocks(128, 128, 64, 8, 3)
    return Blocks(128, 256, 64, 8, 3)


def _product_blocks(dtype: torch.dtype, rows: int, columns: int, heavy: bool = False) -> Blocks:
    """Return the tile of a grouped product with `rows` rows in all and `columns` columns.

    heavy: the epilogue does more than store (GELU, its derivative, routing's term).
    """
    if dtype == torch.float32:
        # Exact float32 products run on the plain cores, where registers are the limit. For tests.
        return Blocks(64, 64, 32, 4, 2)
    if rows <= 2048:
        # Few rows: small tiles make more programs, and waste less on each expert's last tile.
        return Blocks(64, 64 if columns <= 64 else 128, 64, 4, 4)
    if heavy or columns % 256 or (rows // 128) * (columns // 256) < MULTIPROCESSORS:
        # 64 results a thread leave registers for the epilogue, and three stages of 32 KiB leave
        # room for a second program on the multiprocessor, which computes while the first stores.
        return Blocks(128, 128, 64, 8, 3)
    # One tile of 128 x 256 reads a quarter less per product; 254 registers, no spills.
    return Blocks(128, 256, 64, 8, 3)


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
