"""Time an encoder layer's attention, residual norm and projection, ours against torch's own ways.

    python kernels/benchmarks/bench_encoder.py --device cuda --lengths LENGTHS.json
    TRITON_INTERPRET=1 python kernels/benchmarks/bench_encoder.py --toy

LENGTHS.json: a list of the tokens of each sequence of a real batch. Without it lengths are drawn,
960 of mean 35 as in docs/gpu.md's GLUE steps, and the result says "drawn". Each contestant is
checked against float64 before it is timed, without dropout; what cannot run here says why.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import encoder_contestants as contestants
import torch
from measure import Clock, peak_bytes, summary, time_all
from torch import Tensor

from encoder_kernels.attention.reference import attend_reference
from encoder_kernels.projection.reference import project_reference
from encoder_kernels.residual_norm.reference import dropout_residual_norm_reference
from moe_kernels.implementation import interpreting

CHECKED_SEQUENCES = 24
TOY = (9, 5, 2)
DRAWN = 960


def attention_contestants(
    lengths: Sequence[int],
    heads: int = 12,
    size: int = 64,
    dtype: torch.dtype = torch.bfloat16,
    device: str = "cuda",
    dropout: float = 0.1,
    rounds: int = 15,
) -> list[dict]:
    """Return a row of attention for each of padded SDPA, flash, efficient and ours.

    name; skipped: why it did not run, else None; error: against float64 over that of padded SDPA
    (1 is as good); forward_ms, step_ms (forward + backward) with their iqr; ratio: step by round to
    padded SDPA's; peak_bytes of a step. lengths: tokens of each sequence, in any order.
    """
    lengths, device = sorted(lengths, reverse=True), torch.device(device)
    some = lengths[:: max(1, len(lengths) // CHECKED_SEQUENCES)]
    ends = torch.tensor([0, *some], device=device).cumsum(0)
    errors = _errors(
        contestants.attention(some, size, dtype, device, 0.0),
        lambda *x: attend_reference(*x, ends, size**-0.5, 0.0, None),
        [_normal(sum(some), heads, size, dtype=dtype, device=device) for _ in range(3)],
    )
    inputs = [_normal(sum(lengths), heads, size, dtype=dtype, device=device) for _ in range(3)]
    runners = contestants.attention(lengths, size, dtype, device, dropout)
    return _rows(runners, inputs, errors, rounds)


def norm_contestants(
    tokens: int, hidden: int, dtype: torch.dtype, device: str, dropout: float, rounds: int
) -> list[dict]:
    """Return rows, as attention_contestants', of dropout + residual + LayerNorm."""
    device = torch.device(device)
    shapes = ((tokens, hidden), (tokens, hidden), (hidden,), (hidden,))
    inputs = [_normal(*shape, dtype=dtype, device=device) for shape in shapes]
    errors = _errors(
        contestants.residual_norm(device, 0.0),
        lambda *x: dropout_residual_norm_reference(*x, 1e-12, 0.0, None),
        inputs,
    )
    return _rows(contestants.residual_norm(device, dropout), inputs, errors, rounds)


def projection_contestants(
    tokens: int, hidden: int, dtype: torch.dtype, device: str, rounds: int
) -> list[dict]:
    """Return rows, as attention_contestants', of query, key and value: three weights apart in
    memory, and (one product, together) in one piece of it."""
    device, rows = torch.device(device), []
    x = _normal(tokens, hidden, dtype=dtype, device=device)
    weights = _normal(3, hidden, hidden, dtype=dtype, device=device) * hidden**-0.5
    biases = _normal(3, hidden, dtype=dtype, device=device)
    together = [*weights, *biases]
    for name, parameters in (("apart", [p.clone() for p in together]), ("together", together)):
        runners, inputs = contestants.projection(), [x, *parameters]
        errors = _errors(runners, lambda x, *p: project_reference(x, p[:3], p[3:]), inputs)
        found = _rows(runners, inputs, errors, rounds)
        rows += [row | {"name": f"{row['name']}, {name}"} for row in found]
    return rows


def drawn_lengths(count: int, mean: float = 35.0, seed: int = 0) -> list[int]:
    """Return log-normal lengths of about this mean, 4 to 256 tokens."""
    normal = torch.randn(count, generator=torch.Generator().manual_seed(seed))
    drawn = (normal * 0.55 + math.log(mean) - 0.55**2 / 2).exp().round().clamp(4, 256)
    return drawn.int().tolist()


def _normal(*shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    generator = torch.Generator(device).manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, device=device).to(dtype)


def _errors(runners: contestants.Contestants, truth: Callable, inputs: list[Tensor]) -> dict:
    """Return each contestant's root mean square error of result and gradients over the first's."""
    exact = _passes(truth, [x.double() for x in inputs], inputs[0].dtype)
    errors = {}
    for name, function in runners.items():
        if not isinstance(function, str):
            found = _passes(function, inputs, inputs[0].dtype)
            squares = [
                (a.double() - b).square().mean() / b.square().mean().clamp(min=1e-300)
                for a, b in zip(found, exact, strict=True)
            ]
            errors[name] = torch.stack(squares).sum().sqrt().item()
    first = next(iter(errors.values()))
    return {name: error / first if first else error for name, error in errors.items()}


def _passes(function: Callable, inputs: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Return results and gradients; what comes from behind is rounded to a type."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    outs = _results(function(*leaves))
    grads = [grad.to(outs[0].dtype) for grad in _grads(outs, dtype)]
    return [*(out.detach() for out in outs), *torch.autograd.grad(outs, leaves, grads)]


def _results(found: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (found,) if isinstance(found, Tensor) else tuple(found)


def _grads(outs: tuple[Tensor, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Return gradients of results; of several they stand side by side, as attention's do."""
    tokens, *rest = outs[0].shape
    return _normal(tokens, len(outs), *rest, dtype=dtype, device=outs[0].device).unbind(1)


def _step(forward: Callable, leaves: list[Tensor], grads: tuple[Tensor, ...]) -> Callable:
    """Return a function that runs forward and backward; gradients are made anew each time."""

    def step() -> None:
        for leaf in leaves:
            leaf.grad = None
        torch.autograd.backward(_results(forward()), grads)

    return step


def _rows(
    runners: contestants.Contestants, inputs: list[Tensor], errors: dict, rounds: int
) -> list[dict]:
    """Time what runs, taking turns in each round; ratios are to the first contestant."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    running = {name: f for name, f in runners.items() if not isinstance(f, str)}
    base = next(iter(running))
    grads = _grads(_results(running[base](*leaves)), inputs[0].dtype)
    forwards = {name: lambda f=f: f(*leaves) for name, f in running.items()}
    steps = {name: _step(forward, leaves, grads) for name, forward in forwards.items()}
    clock = Clock(inputs[0].device.type)
    times = {
        mode: time_all(functions, clock, rounds)
        for mode, functions in (("forward", forwards), ("step", steps))
    }
    rows = []
    for name, function in runners.items():
        if isinstance(function, str):
            rows.append({"name": name, "skipped": function})
            continue
        row = {"name": name, "skipped": None, "error": errors[name]}
        for mode, by_name in times.items():
            found = summary(by_name[name], by_name[base])
            row |= {f"{mode}_ms": found["ms"], f"{mode}_iqr_ms": found["iqr_ms"]}
        rows.append(row | {"ratio": found["ratio"], "peak_bytes": peak_bytes(steps[name])})
    return rows


def report(options: argparse.Namespace) -> dict:
    """Return all rows by part, and what they were made with."""
    dtype = getattr(torch, options.dtype)
    lengths = list(TOY) if options.toy else drawn_lengths(DRAWN)
    if options.lengths:
        lengths = json.loads(Path(options.lengths).read_text())
    heads, size = (2, 16) if options.toy else (options.hidden // options.head, options.head)
    tokens, hidden, rounds = sum(lengths), heads * size, 2 if options.toy else options.rounds
    shared = {"dtype": dtype, "device": options.device}
    return {
        "run": _about(options, lengths, heads, size),
        "attention": attention_contestants(
            lengths, heads, size, dropout=options.dropout, rounds=rounds, **shared
        ),
        "residual_norm": norm_contestants(
            tokens, hidden, dropout=options.dropout, rounds=rounds, **shared
        ),
        "projection": projection_contestants(tokens, hidden, rounds=rounds, **shared),
    }


def _about(options: argparse.Namespace, lengths: list[int], heads: int, size: int) -> dict:
    return {
        "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
        "interpreter": interpreting(),  # then times of our kernels say nothing
        "torch": torch.__version__,
        "dtype": options.dtype,
        "lengths": options.lengths or "drawn",
        "sequences": len(lengths),
        "tokens": sum(lengths),
        "longest": max(lengths),
        "heads": heads,
        "head": size,
        "dropout": options.dropout,
    }


def main() -> None:
    """Print a JSON line a row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--lengths", help="a JSON list of the tokens of each sequence")
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--head", type=int, default=64)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--toy", action="store_true", help="three sequences, to try the program")
    for part, rows in report(parser.parse_args()).items():
        for row in rows if isinstance(rows, list) else [rows]:
            print(json.dumps({"part": part} | row))


if __name__ == "__main__":
    main()
