"""Time each product's kernel with every candidate of block sizes on this GPU.

    python kernels/benchmarks/tune_blocks.py --hidden 384 768 1024 --tokens 16384 32768 131072

What block_sizes.py holds was read off its tables: nothing is tuned while a model trains. Kernels
are compiled by --jobs processes first. Prints the fastest candidates of every kernel and shape, and
the whole step with the fastest of each against the dense FFN; --out writes JSON lines.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from contestants import dense, make_problem, ours
from measure import Clock, as_graph, as_step, summary, time_all
from triton.runtime.jit import JITFunction

from moe_kernels import block_sizes
from moe_kernels.block_sizes import Blocks

CHOICES = {
    "up_kernel": "up_blocks",
    "down_kernel": "down_blocks",
    "down_grad_kernel": "down_grad_blocks",
    "up_grad_kernel": "up_grad_blocks",
    "weight_grad_kernel": "weight_grad_blocks",
}
CANDIDATES = [
    Blocks(64, 128, 64, 4, 3),
    Blocks(128, 128, 64, 4, 3),
    Blocks(128, 128, 64, 8, 3),
    Blocks(128, 128, 64, 8, 4),
    Blocks(128, 256, 64, 8, 3),
    Blocks(128, 256, 64, 8, 4),
    Blocks(256, 128, 64, 8, 4),
]
AHEAD = 4_000_000
"""Cycles that the GPU sleeps before a step, so that its launches wait in the queue."""


def main() -> int:
    options = parse()
    if options.compile is not None:
        compile_part(options)
        return 0
    parts = [
        subprocess.Popen([sys.executable, *sys.argv, "--compile", str(part)])
        for part in range(options.jobs)
    ]
    if any([part.wait() for part in parts]):
        print("some candidates could not be compiled")
    rows = []
    for hidden, tokens, experts in shapes(options):
        rows += tune(hidden, tokens, experts, getattr(torch, options.dtype), options.rounds)
    if options.out:
        Path(options.out).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return 0


def shapes(options):
    """Return the (hidden, tokens, experts) that are tuned."""
    return itertools.product(options.hidden, options.tokens, options.experts)


def choose(blocks: dict[str, Blocks]) -> None:
    """Let every kernel that `blocks` names take those block sizes."""
    for kernel, chosen in blocks.items():
        setattr(block_sizes, CHOICES[kernel], lambda *_, chosen=chosen: chosen)


def compile_part(options) -> None:
    """Compile this process's share of all candidates, into Triton's cache."""
    run = JITFunction.run
    wanted = list(itertools.product(options.hidden, options.experts, CANDIDATES))

    def only_compile(kernel, *args, grid, warmup, **kwargs):
        if kernel.__name__ in CHOICES:
            run(kernel, *args, grid=grid, warmup=True, **kwargs)

    JITFunction.run = only_compile
    for hidden, experts, blocks in wanted[options.compile :: options.jobs]:
        choose(dict.fromkeys(CHOICES, blocks))
        problem = make_problem(4096, hidden, experts, 8, getattr(torch, options.dtype), "cuda")
        try:
            as_step(ours(problem, "triton"), problem.leaves(), problem.grad_TD)()
        except Exception as error:  # a candidate that does not fit is no candidate
            print(f"{blocks}: {str(error).strip().splitlines()[-1][:100]}")


def tune(hidden: int, tokens: int, experts: int, dtype, rounds: int) -> list[dict]:
    """Return a row for every kernel and candidate at a shape, and print the fastest."""
    problem = make_problem(tokens, hidden, experts, 8, dtype, "cuda")
    step = as_step(ours(problem, "triton"), problem.leaves(), problem.grad_TD)
    times: dict[str, dict[Blocks, float]] = defaultdict(dict)
    for blocks in CANDIDATES:
        choose(dict.fromkeys(CHOICES, blocks))
        try:
            for kernel, ms in kernel_times(step, rounds).items():
                if kernel in CHOICES:
                    times[kernel][blocks] = ms
        except Exception as error:  # too much shared memory
            print(f"  {blocks}: {str(error).strip().splitlines()[-1][:100]}")
    print(f"\nd={hidden} T={tokens} E={experts} {dtype}: ms (TFLOP/s), fastest first")
    flop = 2 * tokens * hidden * 4 * hidden
    rows, best = [], {}
    for kernel, found in times.items():
        products = 2 if kernel == "weight_grad_kernel" else 1
        ranked = sorted(found.items(), key=lambda item: item[1])
        best[kernel] = ranked[0][0]
        shown = [
            f"{'x'.join(map(str, b))} {ms:.3f} ({products * flop / ms / 1e9:.0f})"
            for b, ms in ranked[:5]
        ]
        print(f"  {kernel:20}" + "  ".join(shown))
        shape = {"d": hidden, "T": tokens, "E": experts, "dtype": str(dtype), "kernel": kernel}
        rows += [shape | {"blocks": list(b), "ms": ms} for b, ms in ranked]
    choose(best)
    others = {k: v for k, v in kernel_times(step, rounds).items() if k not in CHOICES}
    print("  others: " + "  ".join(f"{name} {ms:.3f}" for name, ms in others.items()))
    base = as_step(dense(problem), problem.leaves(), problem.grad_TD)
    run = {"dense": base, "ours": step}
    run |= {f"{name}, graph": as_graph(function) for name, function in run.items()}
    found = time_all(run, Clock("cuda"), 2 * rounds)
    for name in run:
        values = summary(found[name], found["dense"])
        print(f"  step, {name:14} {values['ms']:.3f} ms  {values['ratio']:.3f} of dense")
        rows.append({"d": hidden, "T": tokens, "E": experts, "step": name, **values})
    return rows


def kernel_times(step, rounds: int) -> dict[str, float]:
    """Return the median ms of each Triton kernel of a step, launched ahead of the GPU."""
    run, spans = JITFunction.run, defaultdict(list)

    def timed(kernel, *args, grid, warmup, **kwargs):
        events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        events[0].record()
        result = run(kernel, *args, grid=grid, warmup=warmup, **kwargs)
        events[1].record()
        spans[kernel.__name__].append(events)
        return result

    step()
    JITFunction.run = timed
    try:
        for _ in range(rounds):
            torch.cuda._sleep(AHEAD)
            step()
            torch.cuda.synchronize()
    finally:
        JITFunction.run = run
    return {
        name: statistics.median(begin.elapsed_time(end) for begin, end in found)
        for name, found in spans.items()
    }


def parse():
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--hidden", type=int, nargs="+", default=[384, 768, 1024])
    parser.add_argument("--tokens", type=int, nargs="+", default=[16384, 32768])
    parser.add_argument("--experts", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--dtype", choices=("float16", "bfloat16"), default="bfloat16")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--jobs", type=int, default=8, help="processes that compile")
    parser.add_argument("--compile", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out", help="file for JSON lines")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("no GPU driver is active")
    return options


if __name__ == "__main__":
    sys.exit(main())
