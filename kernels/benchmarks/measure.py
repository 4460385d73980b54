"""Times, peak memory and the device's own limits, measured the same way for every contestant."""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

BYTES_A_TOKEN_OF_ROUTING = 50
"""By counting, 4 experts: expert, probability, order, logits and their gradients."""


class Clock:
    """Times a function on a device: CUDA events, wall-clock time, or the thread's CPU time."""

    def __init__(self, device: str, kind: str = "wall"):
        self.device = device
        self._now = time.thread_time if kind == "cpu" else time.perf_counter

    def ms(self, function: Callable[[], object]) -> float:
        """Return how long one call takes, in milliseconds."""
        if self.device == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            function()
            end.record()
            end.synchronize()
            return begin.elapsed_time(end)
        start = self._now()
        function()
        return (self._now() - start) * 1e3


def time_all(functions: dict[str, Callable[[], object]], clock: Clock, rounds: int):
    """Return every function's times [ms], one a round, the functions taking turns in each round.

    Ratios are taken within a round, so that what slows the machine down slows both sides.
    """
    for function in functions.values():
        for _ in range(3 if clock.device == "cuda" else 1):
            function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            times[name].append(clock.ms(function))
    return times


def summary(times: list[float], base: list[float]) -> dict[str, float]:
    """Return median, interquartile range and minimum [ms], the median ratio to `base` by round, and
    the ratio of the minima, which other work on the machine disturbs least.
    """
    ratios = [own / other for own, other in zip(times, base, strict=True)]
    return {
        "ms": statistics.median(times),
        "iqr_ms": _iqr(times),
        "min_ms": min(times),
        "ratio": statistics.median(ratios),
        "ratio_iqr": _iqr(ratios),
        "ratio_min": min(times) / min(base),
    }


def peak_bytes(function: Callable[[], object]) -> int | None:
    """Return the most GPU memory a call holds beyond what was held before; None on a CPU."""
    if not torch.cuda.is_available():
        return None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    function()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def device_limits(device: str, dtype: torch.dtype, clock: Clock) -> dict[str, float]:
    """Return the bytes/s of a large copy and the FLOP/s of a large product on this device."""
    size, side = (1 << 28, 8192) if device == "cuda" else (1 << 24, 1024)
    source = torch.randn(size // 4, device=device)
    target = torch.empty_like(source)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    rounds = 20 if device == "cuda" else 5
    times = time_all(
        {"copy": lambda: target.copy_(source), "product": lambda: a @ b}, clock, rounds
    )
    copy, product = (statistics.median(times[name]) / 1e3 for name in ("copy", "product"))
    return {"bytes_per_s": 2 * size / copy, "flop_per_s": 2 * side**3 / product}


def bound_ratio(tokens: int, hidden: int, width: int, mode: str, dense_ms: float, limits) -> float:
    """Return the least ratio to dense that counting allows.

    The gates read x once forward and once backward, 2 x 2 T d bytes in 16 bit, and routing moves 50
    bytes a token: all else a top-1 layer does, dense does too.
    """
    passes = 2 if mode == "step" else 1
    extra = passes * width * tokens * hidden + BYTES_A_TOKEN_OF_ROUTING * tokens * passes / 2
    return 1 + extra / limits["bytes_per_s"] / (dense_ms / 1e3)


def flops(tokens: int, weights: int, mode: str) -> float:
    """Return the multiplications and additions of products with so many weights."""
    return (3 if mode == "step" else 1) * 2 * tokens * weights


def as_step(forward: Callable[[], Tensor], leaves: list[Tensor], grad_TD: Tensor):
    """Return a function that runs forward and backward; gradients are made anew each time."""

    def step() -> None:
        for leaf in leaves:
            leaf.grad = None
        forward().backward(grad_TD)

    return step


def as_graph(function: Callable[[], object]) -> Callable[[], None]:
    """Return a function that replays a CUDA graph of `function`; RuntimeError if it syncs."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay


def _iqr(values: list[float]) -> float:
    if len(values) < 4:
        return max(values) - min(values)
    low, _, high = statistics.quantiles(values, n=4)
    return high - low
