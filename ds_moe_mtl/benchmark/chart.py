"""The contest as lines of a table and as a picture."""

from collections.abc import Callable
from pathlib import Path

from ds_moe_mtl.config.files import whole_file

MIB = 2**20
COLOURS = {
    "data": "#8c8c8c",
    "forward": "#4c78a8",
    "backward": "#f58518",
    "optimizer": "#54a24b",
}


def show(found: dict, say: Callable[[str], None]) -> None:
    """Say one contest's tables."""
    about = "ranks", "device", "threads", "torch", "precision", "encoder", "clock", "rounds"
    say(", ".join(f"{key} {found[key]}" for key in (*about, "attention")))
    say(
        f"{found['batch_size']} examples a step, {found['tokens_a_rank']:,.0f} real tokens a rank; "
        f"a product of the FFN's shape: {found['product_gflops']:,.1f} GFLOPs/s; {_peak(found)}"
    )
    for name, reason in found["left_out"].items():
        say(f"{name}: left out, {reason}")
    titles = ("model", "forward + backward"), ("step", "whole step")
    for table, title in titles:
        if table not in found:
            continue
        say(
            f"\n{title:<20}{'ms':>9}{'quartiles':>16}{'/ dense':>9}{'ex/s':>8}{'tok/s':>9}"
            f"{'MFU':>6}{'/ product':>10}{'MiB':>7}  parts, ms"
        )
        for name, row in found[table].items():
            say(_line(name, row))
    for warning in found["warnings"]:
        say(f"warning: {warning}")


def _peak(found: dict) -> str:
    if found["peak_gflops"] is not None:
        return f"the card's peak: {found['peak_gflops']:,.0f}"
    return f"no MFU: no published peak is known of {found['device']}"


def _line(name: str, row: dict) -> str:
    low, high = row["quartiles_ms"]
    parts = "  ".join(
        f"{key[:-3]} {value:.0f}"
        for key, value in row.items()
        if key.endswith("_ms") and key != "quartiles_ms"
    )
    peak = f"{row['peak_bytes'] / MIB:.0f}" if "peak_bytes" in row else ""
    mfu = "-" if row["mfu"] is None else f"{row['mfu']:.2f}"
    return (
        f"{name:<20}{row['ms']:>9.1f}{f'{low:.0f} to {high:.0f}':>16}{row['ratio']:>9.3f}"
        f"{row['examples_per_s']:>8.0f}{row['tokens_per_s']:>9,.0f}{mfu:>6}"
        f"{row['utilisation']:>10.2f}{peak:>7}  {parts}"
    )


def draw(contests: list[dict], path: Path) -> None:
    """Write the whole steps as stacked bars, one panel a number of ranks."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        1, len(contests), figsize=(5.5 * len(contests), 3.6), squeeze=False, layout="constrained"
    )
    for axis, found in zip(axes[0], contests, strict=True):
        rows = found["step"]
        names = list(reversed(rows))
        left = [0.0] * len(names)
        for part, colour in COLOURS.items():
            widths = [rows[name][f"{part}_ms"] for name in names]
            axis.barh(names, widths, left=left, color=colour, label=part)
            left = [a + b for a, b in zip(left, widths, strict=True)]
        whole = [rows[name]["ms"] for name in names]
        low, high = zip(*(rows[name]["quartiles_ms"] for name in names), strict=True)
        spread = [
            [ms - end for ms, end in zip(whole, low, strict=True)],
            [end - ms for ms, end in zip(whole, high, strict=True)],
        ]
        axis.errorbar(
            whole, range(len(names)), xerr=spread, fmt="o", color="black", markersize=3, capsize=3,
            linewidth=1, label="whole step, quartiles",
        )  # fmt: skip
        left = [max(ends) for ends in zip(left, high, strict=True)]
        for place, (name, end) in enumerate(zip(names, left, strict=True)):
            axis.text(end, place, f"  {rows[name]['ratio']:.2f}x", va="center", fontsize=8)
        axis.set_xlim(0, 1.18 * max(left))
        ranks = "1 rank" if found["ranks"] == 1 else f"{found['ranks']} ranks"
        axis.set_title(f"{ranks}, {found['precision']}, {found['batch_size']} examples", fontsize=9)
        axis.set_xlabel("ms a step (behind the bar: time / mt_dense)", fontsize=8)
        axis.tick_params(labelsize=8)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=7, frameon=False)
    with whole_file(path) as part:
        figure.savefig(part, dpi=150)
    pyplot.close(figure)
