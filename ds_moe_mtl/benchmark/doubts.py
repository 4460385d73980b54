"""What in a contest's figures cannot be right, or was measured on a machine at work: warnings."""

from collections.abc import Iterator

SPREAD = 0.25
"""Distance of the quartiles over the median from which on a median says little: our choice."""

LEAST_RATIO = 0.9
"""Models of equal FLOPs beside experts, gates and gathering: none can be this much faster."""

DISAGREEMENT = 0.1
"""Between the median of a round's ratios and the ratio of the medians: our choice."""

APART = 0.25
"""Between the whole and the sum of parts that were timed in a pass of their own: our choice."""

SLACK = 0.5
"""Load that a start of a command leaves behind."""

DENSE = "mt_dense"
NOT_COMPARABLE = ("stock_capacity", "trainer")
"""The one drops tokens, the other draws batches of its own."""

TITLES = {"model": "forward + backward", "step": "whole step"}


def doubts(found: dict) -> list[str]:
    """Return a sentence for every figure of a contest that is to be doubted."""
    return [*_load(found), *_tables(found), *_contained(found)]


def _load(found: dict) -> Iterator[str]:
    load = found["load_at_start"]
    needed = found["ranks"] * found["threads"]
    if load is not None and load + needed > found["cores"] + SLACK:
        yield (
            f"the machine was at work: a load of {load:.1f} at the start and {needed} threads of "
            f"ours on {found['cores']} cores"
        )


def _tables(found: dict) -> Iterator[str]:
    for table, title in TITLES.items():
        rows = found.get(table, {})
        for name, row in rows.items():
            for text in _row(name, row, rows[DENSE]):
                yield f"{title}, {name}: {text}"


def _row(name: str, row: dict, dense: dict) -> Iterator[str]:
    low, high = row["quartiles_ms"]
    if high - low > SPREAD * row["ms"]:
        yield f"quartiles {low:.1f} to {high:.1f} ms around {row['ms']:.1f}: too wide to compare"
    for key, what in (("mfu", "the card's peak"), ("utilisation", "the product in this run")):
        if row[key] is not None and row[key] > 1:
            yield f"{row[key]:.2f} of {what}: faster than possible, so something was disturbed"
    if row["ratio"] < LEAST_RATIO and name not in NOT_COMPARABLE:
        yield f"{row['ratio']:.2f} of dense, which computes no more: something was disturbed"
    medians = row["ms"] / dense["ms"]
    if abs(medians - row["ratio"]) > DISAGREEMENT * row["ratio"]:
        yield f"{row['ratio']:.2f} of dense within rounds, but {medians:.2f} by the medians"
    parts = sum(row[key] for key in row if key.endswith("_ms") and key in _PARTS)
    if row["parts_apart"] and abs(parts - row["ms"]) > APART * row["ms"]:
        yield f"the parts, timed apart, sum to {parts:.1f} ms, the whole to {row['ms']:.1f}"


_PARTS = ("data_ms", "forward_ms", "backward_ms", "optimizer_ms")


def _contained(found: dict) -> Iterator[str]:
    """Yield where a whole step is shorter than the forward and backward passes in it."""
    for name, row in found["step"].items():
        inside = found.get("model", {}).get(name)
        if inside is not None and row["ms"] < LEAST_RATIO * inside["ms"]:
            yield (
                f"{name}: a whole step of {row['ms']:.1f} ms, though forward + backward alone take "
                f"{inside['ms']:.1f}"
            )
