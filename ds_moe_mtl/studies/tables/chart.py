"""A table of the paper and ours as a picture: what each model scores on each task."""

from pathlib import Path

from ds_moe_mtl.config.files import whole_file
from ds_moe_mtl.studies.tables.compare import TITLES, Scores, compare, standard_errors
from ds_moe_mtl.studies.tables.schema import Table


def draw_comparison(table: Table, scores: Scores, path: Path) -> None:
    """Write a PNG: the paper's scores on the left, ours on the right; a mark a model and column.

    Marks of a column stand beside each other in the table's order. Bars on ours are one standard
    error of an accuracy on as many dev examples.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = compare(table, scores)
    keys = list(rows[0]["paper"])
    errors = standard_errors(table, scores)
    figure, axes = pyplot.subplots(
        1,
        2,
        figsize=(3.0 + 1.1 * len(keys), 4.2 + 0.16 * len(rows)),
        sharey=True,
        layout="constrained",
    )
    for axis, side in zip(axes, ("paper", "ours"), strict=True):
        for number, row in enumerate(rows):
            offset = 0.7 * ((number + 0.5) / len(rows) - 0.5)
            there = [(at, row[side][key], key) for at, key in enumerate(keys)]
            there = [(at, value, key) for at, value, key in there if value is not None]
            axis.errorbar(
                [at + offset for at, _, _ in there],
                [value for _, value, _ in there],
                yerr=[errors.get(key, 0.0) if side == "ours" else 0.0 for _, _, key in there],
                fmt="o",
                markersize=5,
                elinewidth=1,
                color=f"C{number}",
                label=row["name"],
            )
        for at in range(1, len(keys)):
            axis.axvline(at - 0.5, color="0.9", linewidth=0.8, zorder=0)
        axis.set_xticks(range(len(keys)), [TITLES.get(key, key) for key in keys], rotation=30)
        axis.set_xlim(-0.5, len(keys) - 0.5)
        axis.grid(axis="y", color="0.9")
        axis.set_title(side)
    axes[0].set_ylabel("score, percent")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.suptitle(table.title)
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(rows)))
    with whole_file(path) as part:
        figure.savefig(part, dpi=120)
    pyplot.close(figure)
