"""Times of functions in turn, by CUDA events on a card, and what of them is reported."""

import time
from collections.abc import Callable, Mapping
from statistics import median, quantiles

import torch


def alternated(
    functions: Mapping[str, Callable[[], object]], device: torch.device, rounds: int, warm_up: int
) -> dict[str, list[float]]:
    """Return each function's times in ms, one a round; they take turns in every round."""
    for _ in range(warm_up):
        for function in functions.values():
            function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            times[name].append(milliseconds(function, device))
    return times


def milliseconds(function: Callable[[], object], device: torch.device) -> float:
    """Return how long one call takes: the device's work on a card, else by the wall clock."""
    if device.type != "cuda":
        began = time.perf_counter()
        function()
        return 1e3 * (time.perf_counter() - began)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    function()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def middle(times: list[float]) -> tuple[float, float, float]:
    """Return (median, lower quartile, upper quartile)."""
    if len(times) < 2:
        return times[0], times[0], times[0]
    low, _, high = quantiles(times, n=4)
    return median(times), low, high


def spread(low: float, high: float) -> str:
    """Return quartiles as a cell of a table."""
    return f"{low:.4g} to {high:.4g}"
