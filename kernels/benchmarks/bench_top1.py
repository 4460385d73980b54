"""Check, then time, the top-1 layer against the dense FFN and what else there is.

    python kernels/benchmarks/bench_top1.py                      # the GPU if there is one, else CPU
    python kernels/benchmarks/bench_top1.py --device cuda --out runs/bench_top1
    python kernels/benchmarks/bench_top1.py --device cpu --threads 1 --clock cpu
    python kernels/benchmarks/bench_top1.py --activation geglu --no-biases --hidden 768 --inner 1152

No time is printed unless every implementation agrees with float64. On a GPU the layer and the dense
FFN are timed in CUDA graphs too, and every ratio is taken to both forms of dense: called from
Python (/dense) and in a graph (/graph). Writes JSON lines (--out) and a plot of the ratios to
dense. Exit status 1 if the agreement fails or a goal is missed (--goals).
"""

import argparse
import functools
import itertools
import json
import platform
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from contestants import (
    Form,
    Problem,
    dense,
    grouped_mm,
    make_problem,
    ours,
    plain_loop,
    stock_deepspeed,
)
from measure import (
    Clock,
    as_graph,
    as_step,
    bound_ratio,
    device_limits,
    flops,
    peak_bytes,
    summary,
    time_all,
)

import moe_kernels
from moe_kernels.implementation import interpreting

BASE = "dense"
GRAPH = f"{BASE}, CUDA graph"
"""The dense FFN without its host's launches: what a layer in a graph is to be compared with too."""


def main() -> int:
    """Run what the command line asks for and return the exit status."""
    options = parse()
    if options.threads:
        torch.set_num_threads(options.threads)
    impls = [impl for impl in usable_impls(options.device) if impl in options.impls]
    form = Form(options.activation, options.inner, not options.no_biases)
    cases = itertools.product(options.dtypes, impls)
    if not all([agrees(impl, options.device, dtype, form) for dtype, impl in cases]):
        print("The implementations do not agree with float64: nothing is timed.")
        return 1
    print(json.dumps(environment(options)))
    rows, met = [], True
    shapes = itertools.product(options.hidden, options.tokens, options.experts, options.dtypes)
    for hidden, tokens, experts, dtype in shapes:
        clock = Clock(options.device, options.clock)
        limits = device_limits(options.device, dtype, clock)
        print(f"\nd={hidden} T={tokens} E={experts} G={options.gates} {dtype}, "
              f"{form.activation}, F={form.inner or 4 * hidden}"
              f"{'' if form.biases else ', no biases'}: copy "
              f"{limits['bytes_per_s'] / 1e9:.0f} GB/s, product "
              f"{limits['flop_per_s'] / 1e12:.2f} TFLOP/s")  # fmt: skip
        problem = make_problem(
            tokens, hidden, experts, options.gates, dtype, options.device, form=form
        )
        for mode in options.modes:
            shape = {"d": hidden, "T": tokens, "E": experts, "G": options.gates}
            shape |= {"dtype": str(dtype), "mode": mode, "activation": form.activation}
            shape |= {"F": form.inner or 4 * hidden, "biases": form.biases}
            found = measure_shape(problem, mode, impls, clock, limits, options)
            rows += [shape | row for row in found]
            met &= goal_met(shape, found, options.device)
    if options.out:
        write(rows, environment(options), Path(options.out))
    return 0 if met or not options.goals else 1


def measure_shape(problem: Problem, mode, impls, clock: Clock, limits, options) -> list[dict]:
    """Return a row for every contestant that can run, and print them as a table."""
    forwards = contestants(problem, impls, options)
    leaves = problem.leaves()
    run = {
        name: as_step(forward, leaves, problem.grad_TD) if mode == "step" else no_grad(forward)
        for name, forward in forwards.items()
    }
    if options.device == "cuda":
        for name in [BASE, *(f"ours {impl}" for impl in impls if impl != "torch")]:
            try:
                run[f"{name}, CUDA graph"] = as_graph(run[name])
            except RuntimeError as error:
                print(f"  {name}, CUDA graph: cannot run: {first_line(error)}")
    peaks = {name: peak_bytes(function) for name, function in run.items()}
    times = time_all(run, clock, options.rounds)
    tokens, hidden = problem.x_TD.shape
    dense_ms = summary(times[BASE], times[BASE])["ms"]
    bound = bound_ratio(tokens, hidden, problem.x_TD.element_size(), mode, dense_ms, limits)
    headings = ("ms", "iqr", "/dense", "iqr", "minima", "/graph", "bound", "TFLOP/s", "peak MiB")
    print(f"  {mode:30}" + "".join(f"{heading:>10}" for heading in headings))
    rows = []
    for name in run:
        row = {"name": name, **summary(times[name], times[BASE]), "bound": bound}
        row["tflop_per_s"] = flops(tokens, problem.ffn_weights(), mode) / row["ms"] / 1e9
        row["peak_bytes"] = peaks[name]
        row["ratio_graph"] = graph_ratio(times, name)
        rows.append(row | limits)
        columns = ("ms", "iqr_ms", "ratio", "ratio_iqr", "ratio_min", "ratio_graph", "bound")
        columns = (*columns, "tflop_per_s")
        cells = ["-" if row[column] is None else f"{row[column]:.3f}" for column in columns]
        cells.append("" if peaks[name] is None else f"{peaks[name] / 2**20:.0f}")
        print(f"  {name:30}" + "".join(f"{cell:>10}" for cell in cells))
    return rows


def graph_ratio(times: dict[str, list[float]], name: str) -> float | None:
    """Return the median ratio to the dense FFN in a CUDA graph, where there is one.

    Against the eager FFN a layer in a graph also gains the launches that it saves.
    """
    return summary(times[name], times[GRAPH])["ratio"] if GRAPH in times else None


def contestants(problem: Problem, impls: list[str], options) -> dict:
    """Return the forward functions by name; what cannot run is named with its reason."""
    makers = {BASE: lambda: dense(problem)}
    makers |= {f"ours {impl}": functools.partial(ours, problem, impl) for impl in impls}
    if options.others:
        makers |= {
            "plain loop": lambda: plain_loop(problem),
            "dense, torch.compile": lambda: torch.compile(dense(problem), dynamic=False),
            "ours, torch.compile": lambda: torch.compile(ours(problem, "auto"), dynamic=False),
            "grouped_mm + bias": lambda: grouped_mm(problem),
            "DeepSpeed, capacity 1": lambda: stock_deepspeed(problem, drop_tokens=True),
            "DeepSpeed, no drop": lambda: stock_deepspeed(problem, drop_tokens=False),
        }
    ready = {}
    for name, make in makers.items():
        try:
            forward = make()
            forward().backward(problem.grad_TD)
            ready[name] = forward
        except (ImportError, RuntimeError, ValueError, AssertionError) as error:
            print(f"  {name}: cannot run: {first_line(error)}")
    return ready


def first_line(error: Exception) -> str:
    """Return the first line of what went wrong, or its kind if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]


def usable_impls(device: str) -> list[str]:
    """Return the implementations that run on the device; the others are named with the reason."""
    usable = []
    for impl in ("torch", "triton", "cuda"):
        if impl == "triton" and device == "cpu" and interpreting():
            print("triton: its interpreter (TRITON_INTERPRET=1) is for tests, not for timing")
            continue
        try:
            usable.append(moe_kernels.resolve_impl(impl, device))
        except ValueError as error:
            print(f"{impl}: {error}")
    return usable


def agrees(impl: str, device: str, dtype: torch.dtype, form: Form) -> bool:
    """Return whether results and gradients are within rounding of float64, and say how far off.

    Allowed is twice the error of plain PyTorch in the same type, and one rounding of the largest.
    """
    problem = make_problem(1000, 128, 5, 3, dtype, device, form=form._replace(inner=None))
    exact = Problem(
        *(leaf.detach().double().requires_grad_() for leaf in (problem.x_TD, problem.gate_weight)),
        problem.gate_ids_T,
        [kind and [t.detach().double().requires_grad_() for t in kind] for kind in problem.experts],
        problem.grad_TD.double(),
        problem.activation,
    )
    truth, plain = gradients(exact, plain_loop(exact)), gradients(problem, plain_loop(problem))
    found = gradients(problem, ours(problem, impl))
    worst = 0.0
    for true, reference, own in zip(truth, plain, found, strict=True):
        rounding = torch.finfo(dtype).eps * true.abs().max()
        allowed = 2 * (reference.double() - true).abs().max() + rounding
        worst = max(worst, ((own.double() - true).abs().max() / allowed).nan_to_num(9e9).item())
    print(f"agreement of {impl} in {dtype}: largest error {worst:.2f} of what is allowed")
    return worst <= 1


def gradients(problem: Problem, forward) -> list[torch.Tensor]:
    """Return the result and the gradient of every leaf."""
    y_TD = forward()
    return [y_TD.detach(), *torch.autograd.grad(y_TD, problem.leaves(), problem.grad_TD)]


def no_grad(forward):
    """Return `forward` without a backward pass in mind."""

    def run() -> None:
        with torch.no_grad():
            forward()

    return run


def goal_met(shape: dict, rows: list[dict], device: str) -> bool:
    """Return whether the layer's best implementation meets the goal of its shape, if it has one."""
    goal = goal_of(shape, device)
    if goal is None:
        return True
    ratio = min(row["ratio"] for row in rows if row["name"].startswith("ours "))
    verdict = "met" if ratio <= goal else "MISSED"
    print(f"  goal: at most {goal:.2f} of dense, found {ratio:.3f}: {verdict}")
    return ratio <= goal


def goal_of(shape: dict, device: str) -> float | None:
    """Return the allowed ratio to the eager dense FFN of a step at this shape; None: no goal."""
    if shape["mode"] != "step":
        return None
    if device == "cpu":
        if moe_kernels.ACTIVATIONS[shape["activation"]].gated:
            return 1.06 if shape["dtype"] == "torch.float32" and shape["T"] >= 2048 else None
        goals = {"torch.float32": 1.02, "torch.bfloat16": 1.06}
        return goals.get(shape["dtype"]) if shape["T"] == 8192 else None
    if shape["T"] < 2048 * shape["E"] or shape["E"] > 8 or shape["T"] < 16384:
        return None
    if shape["T"] < 32768:
        return 1.25
    return 1.20 if shape["d"] < 768 else 1.10


def environment(options) -> dict:
    """Return what the figures depend on."""
    cuda = options.device == "cuda"
    return {
        "command": " ".join(sys.argv),
        "device": torch.cuda.get_device_name() if cuda else cpu_name(),
        "threads": torch.get_num_threads(),
        "clock": "cuda events" if cuda else options.clock,
        "rounds": options.rounds,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def cpu_name() -> str:
    """Return the processor's name where Linux tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def write(rows: list[dict], about: dict, folder: Path) -> None:
    """Write results.jsonl and, where matplotlib is installed, ratios.png."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.jsonl").write_text("".join(json.dumps(about | row) + "\n" for row in rows))
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        return
    rows = [row for row in rows if row["mode"] == "step"]
    names = list(dict.fromkeys(row["name"] for row in rows))
    figure, axes = plt.subplots(figsize=(9, 5))
    labels = list(dict.fromkeys(label(row) for row in rows))
    for name in names:
        own = [row for row in rows if row["name"] == name]
        places = [labels.index(label(row)) for row in own]
        axes.plot(places, [row["ratio"] for row in own], "o-", label=name)
    axes.set_xticks(range(len(labels)), labels, rotation=60, ha="right", fontsize=7)
    axes.set_ylabel("forward + backward, ratio to the eager dense FFN")
    axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(folder / "ratios.png", dpi=150)


def label(row: dict) -> str:
    """Return a shape's name on the plot's axis."""
    return f"d{row['d']} T{row['T']} E{row['E']} {row['dtype'].removeprefix('torch.')}"


def parse():
    """Return the options; their defaults depend on the device."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        description=__doc__.splitlines()[0],
        epilog="example: bench_top1.py --device cpu --threads 1",
    )
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cpu", "cuda"), default=default)
    parser.add_argument("--hidden", type=int, nargs="+", help="d")
    parser.add_argument("--inner", type=int, help="inner size F; default: 4 d")
    forms = tuple(moe_kernels.ACTIVATIONS)
    parser.add_argument("--activation", choices=forms, default="gelu", help="of the FFNs")
    parser.add_argument("--no-biases", action="store_true", help="FFNs without biases")
    parser.add_argument("--tokens", type=int, nargs="+")
    parser.add_argument("--experts", type=int, nargs="+")
    parser.add_argument("--gates", type=int, default=8)
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "float16", "bfloat16"))
    impls = ("torch", "triton", "cuda")
    parser.add_argument("--impls", nargs="+", choices=impls, default=impls, help="ours: which")
    parser.add_argument("--modes", nargs="+", choices=("forward", "step"), default=["step"])
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--threads", type=int, help="of torch on a CPU")
    clock = "on a CPU: wall-clock time, or the thread's own (with one thread only)"
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help=clock)
    parser.add_argument("--others", action="store_true", help="also time what is not ours")
    parser.add_argument("--goals", action="store_true", help="fail if a goal is missed")
    parser.add_argument("--out", help="folder for results.jsonl and ratios.png")
    options = parser.parse_args()
    cuda = options.device == "cuda"
    if cuda and not torch.cuda.is_available():
        parser.error("--device cuda: no GPU driver is active")
    options.hidden = options.hidden or ([384, 768, 1024] if cuda else [384])
    options.tokens = options.tokens or ([4096, 16384, 32768, 131072] if cuda else [8192])
    options.experts = options.experts or ([4, 8, 16, 64] if cuda else [4])
    options.rounds = options.rounds or (20 if cuda else 7)
    names = options.dtypes or (["float16", "bfloat16"] if cuda else ["float32", "bfloat16"])
    options.dtypes = [getattr(torch, name) for name in names]
    return options


if __name__ == "__main__":
    sys.exit(main())
