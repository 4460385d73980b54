"""Which expert each task's tokens take, layer by layer: counts, and a picture of them.

K tasks, L layers, E experts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ds_moe_mtl.config.files import whole_file
from ds_moe_mtl.data import encode_task
from ds_moe_mtl.evaluation import MultiTaskModel
from ds_moe_mtl.models import RoutingOptions
from ds_moe_mtl.models.description import encoder_depth
from ds_moe_mtl.models.token_level.sparse_layers import sparse_layers


@dataclass(frozen=True)
class Routes:
    """Tokens by task, layer and expert.

    merged: experts are merged; counts are then the tokens' shares of the task's mixture, so that
    `shares_KLE` are the mixtures themselves. layers: the numbers, from 0, of the layers with
    experts; None: all.
    """

    tasks: tuple[str, ...]
    counts_KLE: np.ndarray
    merged: bool = False
    layers: tuple[int, ...] | None = None

    @property
    def shares_KLE(self) -> np.ndarray:
        """Each task's share of tokens an expert takes in a layer; sums to 1 over experts."""
        return self.counts_KLE / self.counts_KLE.sum(axis=2, keepdims=True)

    def to_json(self) -> dict:
        """Plain values: {"tasks", "shares": {task: [layer][expert]}, "tokens": {task: ..}}.

        Of merged experts with "combine": "merged": shares are the mixtures' weights. Where not all
        layers have experts, "layers" says which ones have, from 0.
        """
        return {
            **({"combine": "merged"} if self.merged else {}),
            **({"layers": list(self.layers)} if self.layers is not None else {}),
            "tasks": list(self.tasks),
            "shares": {
                task: share.round(4).tolist()
                for task, share in zip(self.tasks, self.shares_KLE, strict=True)
            },
            "tokens": {
                task: round(float(counts[0].sum()))
                for task, counts in zip(self.tasks, self.counts_KLE, strict=True)
            },
        }


def collect_routes(
    model: MultiTaskModel,
    root: str | None,
    cache: str | None = None,
    limit: int = 200,
    tasks: Sequence[str] | None = None,
) -> Routes:
    """Return the routes of `limit` dev examples a task. Raises UserError for a dense model."""
    names = tuple(tasks or model.specs)
    counts = [
        model.route_counts(
            name,
            encode_task(model.task(name), "dev", model.tokenizer, root, cache, limit=limit),
        )
        for name in names
    ]
    options = RoutingOptions(**model.description["routing"])
    depth = encoder_depth(model.description)
    layers = tuple(sparse_layers(options.layers, depth))
    return Routes(
        names,
        np.stack(counts),
        options.combine == "merged",
        None if len(layers) == depth else layers,
    )


def draw_routes(routes: Routes, path: Path) -> None:
    """Write a PNG: one panel a layer, tasks down, experts across, the share of tokens in a cell."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shares_KLE = routes.shares_KLE
    tasks, layers, experts = shares_KLE.shape
    columns = min(layers, 6)
    rows = -(-layers // columns)
    figure, axes = pyplot.subplots(
        rows,
        columns,
        figsize=(
            max(5.6, 1.2 + columns * (0.5 * experts + 0.35)),
            rows * (0.36 * tasks + 0.9) + 0.5,
        ),
        squeeze=False,
        sharex=True,
        sharey=True,
        layout="constrained",
    )
    for layer, axis in enumerate(axes.flat):
        if layer >= layers:
            axis.axis("off")
            continue
        percent_KE = 100 * shares_KLE[:, layer]
        image = axis.imshow(percent_KE, vmin=0, vmax=100, cmap="viridis", aspect="auto")
        number = layer if routes.layers is None else routes.layers[layer]
        axis.set_title(f"layer {number}", fontsize=9)
        axis.set_xticks(range(experts), [str(expert) for expert in range(experts)], fontsize=8)
        axis.set_yticks(range(tasks), routes.tasks, fontsize=8)
        if experts <= 8:
            for task in range(tasks):
                for expert in range(experts):
                    percent = percent_KE[task, expert]
                    axis.text(
                        expert,
                        task,
                        f"{percent:.0f}",
                        ha="center",
                        va="center",
                        fontsize=7,
                        color="black" if percent > 60 else "white",
                    )
    figure.supxlabel("expert", fontsize=9)
    if routes.merged:
        title, label = "Weight of each expert in a task's mixture, in percent", "% of the weights"
    else:
        title = "Share of each task's tokens an expert takes, in percent"
        label = "% of the task's tokens"
    figure.suptitle(title, fontsize=10)
    figure.colorbar(image, ax=axes, fraction=0.02, label=label)
    with whole_file(path) as part:
        figure.savefig(part, dpi=130)
    pyplot.close(figure)
