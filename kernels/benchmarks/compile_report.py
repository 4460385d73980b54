"""Compile every Triton kernel of a layer for sm_90 without a GPU and print what each one takes.

    python kernels/benchmarks/compile_report.py --hidden 768 --experts 4 --tokens 32768
    python kernels/benchmarks/compile_report.py --activation geglu --inner 1152 --no-biases
    python kernels/benchmarks/compile_report.py --part encoder --hidden 768
    python kernels/benchmarks/compile_report.py --part update

The launches are those that `top1_moe_ffn`, or encoder_kernels' attention and residual norm, and
their backward passes make for these shapes, or those of one `adam_update`: they are recorded
instead of run, so the table cannot drift from the code.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

TYPES = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.uint8: "*u8",
    torch.int8: "*i8",
    torch.float64: "*fp64",
}
OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")


class Launch(NamedTuple):
    """A recorded launch: the kernel, its arguments by name, and how it is run."""

    kernel: JITFunction
    arguments: dict
    options: dict


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Collect the launches made inside the block, in order, without running them.

    Tensors are only allocated, never written, so large shapes cost nothing.
    """
    launches = []

    def record(kernel, *args, grid, warmup, **kwargs):
        options = {name: kwargs.pop(name) for name in OPTIONS if name in kwargs}
        names = [name for name in kernel.arg_names if name not in kwargs]
        launches.append(Launch(kernel, dict(zip(names, args, strict=True)) | kwargs, options))

    run, JITFunction.run = JITFunction.run, record
    try:
        yield launches
    finally:
        JITFunction.run = run


def leaf(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    """Return an unwritten tensor that wants a gradient."""
    return torch.empty(shape, dtype=dtype, requires_grad=True)


class Shape(NamedTuple):
    """A sparse layer: sizes, and the experts' activation and whether they have biases."""

    tokens: int
    hidden: int
    inner: int
    experts: int
    gates: int
    activation: str
    biases: bool


def record_step(shape: Shape, dtype) -> list[Launch]:
    """Return the launches of a sparse layer's forward and backward pass."""
    from moe_kernels import ACTIVATIONS
    from moe_kernels.ffn.function import flat_weights
    from moe_kernels.fused import TritonTop1
    from moe_kernels.routing.launch import launch_route

    tokens, hidden, inner, experts, gates, activation, biases = shape
    rows = ACTIVATIONS[activation].halves * inner
    shapes = ((rows, hidden), (rows,), (hidden, inner), (hidden,))
    weights = flat_weights(
        *(
            [leaf(*size, dtype=dtype) for _ in range(experts)] if biases or len(size) == 2 else None
            for size in shapes
        )
    )
    ids, mask = torch.empty(tokens, dtype=torch.int64), torch.empty(tokens, dtype=torch.bool)
    x, gate = leaf(tokens, hidden, dtype=dtype), leaf(gates * experts, hidden, dtype=dtype)
    with recorded() as launches:
        y, *_ = TritonTop1.apply(x, gate, ids, mask, False, activation, launch_route, *weights)
        leaves = [tensor for tensor in (x, gate, *weights) if tensor is not None]
        torch.autograd.grad(y, leaves, torch.empty_like(y))
    return launches


def record_encoder(hidden: int, head: int, dtype) -> list[Launch]:
    """Return the launches of an encoder layer's attention and residual norm, with dropout, forward
    and backward: sequences of every block."""
    from encoder_kernels.attention import plan_of
    from encoder_kernels.attention.function import Attention
    from encoder_kernels.residual_norm.function import ResidualNorm

    plan = plan_of((128, 64, 32, 16), torch.device("cpu"))
    seed = torch.empty((), dtype=torch.int64)
    inputs = [leaf(plan.tokens, hidden // head, head, dtype=dtype) for _ in range(3)]
    rows = [leaf(plan.tokens, hidden, dtype=dtype) for _ in range(2)]
    norm = [leaf(hidden, dtype=dtype) for _ in range(2)]
    with recorded() as launches:
        out = Attention.apply(*inputs, seed, plan, head**-0.5, 0.1)
        torch.autograd.grad(out, inputs, torch.empty_like(out))
        y = ResidualNorm.apply(*rows, *norm, seed, 1e-12, 0.1)
        torch.autograd.grad(y, [*rows, *norm], torch.empty_like(y))
    return launches


def record_update(hidden: int, dtype) -> list[Launch]:
    """Return the launches of an update of two groups, one of whose tensors is of an odd size."""
    from update_kernels import AdamOptions, Partition
    from update_kernels.launch import launch_update

    options = AdamOptions(1e-4, 0.9, 0.999, 1e-8, 0.01, True)
    gradients = [[torch.empty(size, dtype=dtype)] for size in (4 * hidden * hidden, hidden + 1)]
    partitions = []
    for (gradient,) in gradients:
        weights, average, square = (torch.empty(gradient.numel()) for _ in range(3))
        stored = torch.empty_like(gradient)
        partitions.append(Partition(weights, average, square, torch.empty(()), stored))
    with recorded() as launches:
        launch_update(gradients, partitions, [options] * 2, 1.0, 1.0, None)
    return launches


def compile_launch(launch: Launch, arch: int = 90) -> dict:
    """Return a kernel's registers, spilled bytes and shared memory, and its fast instructions."""
    signature, constants, attributes = {}, {}, {}
    for i, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        if parameter.is_constexpr:
            signature[parameter.name], constants[(i,)] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name] = TYPES[value.dtype]
            attributes[(i,)] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[parameter.name] = "fp32"
        else:
            signature[parameter.name] = "i32"
            if value % 16 == 0 and not parameter.do_not_specialize:
                attributes[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(launch.kernel, signature, constants, attributes)
    target = GPUTarget("cuda", arch, 32)
    compiled = triton.compile(source, target=target, options=launch.options)
    ptx = compiled.asm["ptx"]
    return {
        "kernel": launch.kernel.__name__,
        "block": _tile(launch.arguments),
        "warps": compiled.metadata.num_warps,
        "stages": compiled.metadata.num_stages,
        **_resources(compiled.asm["cubin"]),
        "shared_bytes": compiled.metadata.shared,
        "wgmma": ptx.count("wgmma.mma_async"),
        "after_products": _instructions_after_products(compiled.asm["cubin"]),
        "copies_16_bytes": len(re.findall(r"cp\.async\.cg\.shared\.global.*0x10", ptx)),
        "loads_16_bytes": len(re.findall(r"ld\.global\S*\.v(?:4\.b32|2\.b64)", ptx)),
    }


def _resources(cubin: bytes) -> dict:
    usage = re.search(r"REG:(\d+) STACK:(\d+)", _dump(cubin, "-res-usage"))
    return {"registers": int(usage[1]), "spilled_bytes": int(usage[2])}


def _instructions_after_products(cubin: bytes) -> int:
    """Return how many instructions of a thread stand behind the last one of Hopper's matrix units:
    the epilogue of a product, whose loops are unrolled. 0 for a kernel without such."""
    lines = [
        line for line in _dump(cubin, "-sass").splitlines() if re.search(r"/\*\w{4,}\*/.*;", line)
    ]
    products = [number for number, line in enumerate(lines) if "HGMMA" in line]
    return len(lines) - 1 - products[-1] if products else 0


def _dump(cubin: bytes, what: str) -> str:
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [tool, what, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _tile(arguments: dict) -> str:
    """Return the tile of a product or of a head; "" for a kernel that has neither."""
    for names in (("BLOCK_M", "BLOCK_N", "BLOCK_K"), ("BLOCK", "BLOCK_D"), ("BLOCK_M", "BLOCK_D")):
        if all(name in arguments for name in names):
            return "x".join(str(arguments[name]) for name in names)
    return ""


def compile_report(launches: Iterable[Launch]) -> list[dict]:
    """Return a row for every different kernel of the launches."""
    rows = {}
    for launch in launches:
        constants = tuple(v for v in launch.arguments.values() if not torch.is_tensor(v))
        key = (launch.kernel.__name__, constants)
        if key not in rows:
            rows[key] = compile_launch(launch)
    return list(rows.values())


def main() -> None:
    """Print the table, or a JSON line a kernel."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--part", choices=("top1", "encoder", "update"), default="top1")
    parser.add_argument("--tokens", type=int, default=32768)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--inner", type=int, help="default: 4 x hidden")
    parser.add_argument("--activation", default="gelu", help="one of moe_kernels.ACTIVATIONS")
    parser.add_argument("--no-biases", action="store_true", help="experts without biases")
    parser.add_argument("--experts", type=int, default=4)
    parser.add_argument("--gates", type=int, default=8)
    parser.add_argument("--head", type=int, default=64, help="size of an attention head")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    options = parser.parse_args()
    dtype = getattr(torch, options.dtype)
    if options.part == "encoder":
        launches = record_encoder(options.hidden, options.head, dtype)
    elif options.part == "update":
        launches = record_update(options.hidden, dtype)
    else:
        shape = Shape(
            options.tokens,
            options.hidden,
            options.inner or 4 * options.hidden,
            options.experts,
            options.gates,
            options.activation,
            not options.no_biases,
        )
        launches = record_step(shape, dtype)
    rows = compile_report(launches)
    if options.json:
        print("\n".join(json.dumps(row) for row in rows))
        return
    widths = {name: max(len(name), *(len(str(row[name])) for row in rows)) for name in rows[0]}
    print("  ".join(name.ljust(width) for name, width in widths.items()))
    for row in rows:
        print("  ".join(str(row[name]).ljust(width) for name, width in widths.items()))


if __name__ == "__main__":
    main()
