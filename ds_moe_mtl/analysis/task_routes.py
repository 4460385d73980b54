"""A task router's routes: how far tasks differ in them, whether they collapsed, and a picture.

K tasks, L routed layers, E experts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ds_moe_mtl.config import UserError
from ds_moe_mtl.config.files import whole_file
from ds_moe_mtl.evaluation import MultiTaskModel

COLLAPSED = 0.05
"""Our choice: below this specialisation a layer's experts do the same for every task."""


@dataclass(frozen=True)
class TaskRoutes:
    """Every task's weights of the experts in each layer; layers: their numbers, from 0."""

    tasks: tuple[str, ...]
    layers: tuple[int, ...]
    routes_KLE: np.ndarray

    @property
    def specialisation_L(self) -> np.ndarray:
        """Mutual information of task and expert in a layer, over log E: 0 to 1.

        0 where all tasks share one distribution, be it one expert or the average of all: the layer
        then "degenerates to a non-MoE transformer" (slides of Ye, Zha and Ren). 1 where each
        expert has tasks of its own, equally many.
        """
        load_LE = self.routes_KLE.mean(axis=0)
        information_L = _entropy(load_LE) - _entropy(self.routes_KLE).mean(axis=0)
        return np.maximum(information_L, 0) / np.log(self.routes_KLE.shape[2])

    @property
    def load_L(self) -> np.ndarray:
        """Entropy of a layer's mean route over log E: 0, one expert takes all; 1, all equally."""
        return _entropy(self.routes_KLE.mean(axis=0)) / np.log(self.routes_KLE.shape[2])

    @property
    def collapsed(self) -> float:
        """Share of the layers that route all tasks alike."""
        return float((self.specialisation_L < COLLAPSED).mean())

    def to_json(self) -> dict:
        """Plain values."""
        return {
            "tasks": list(self.tasks),
            "layers": list(self.layers),
            "specialisation": self.specialisation_L.round(4).tolist(),
            "load": self.load_L.round(4).tolist(),
            "collapsed_layers": self.collapsed,
            "distinct_routes": len({tuple(r.argmax(axis=1)) for r in self.routes_KLE}),
            "routes": {
                task: route.round(4).tolist()
                for task, route in zip(self.tasks, self.routes_KLE, strict=True)
            },
        }


def model_routes(model: MultiTaskModel) -> TaskRoutes:
    """Return the routes of a task_moe model. Raises UserError for another kind."""
    router = model.network.router
    if router is None:
        raise UserError(f"a {model.description['kind']} model has no task router")
    routes_KLE = router.task_routes().detach().float().cpu().numpy().transpose(1, 0, 2)
    return TaskRoutes(tuple(model.specs), tuple(router.options.layers), routes_KLE)


def draw_task_routes(routes: TaskRoutes, groups: Sequence[str], path: Path) -> None:
    """Write a PNG: tasks down (in the order of their groups), layers and experts across."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    order = sorted(range(len(routes.tasks)), key=lambda k: (groups[k], routes.tasks[k]))
    layers, experts = routes.routes_KLE.shape[1:]
    figure, axes = pyplot.subplots(
        1,
        layers,
        figsize=(3.6 + layers * (0.28 * experts + 0.35), 1.4 + 0.155 * len(order)),
        squeeze=False,
        sharey=True,
        layout="constrained",
    )
    for place, axis in enumerate(axes.flat):
        image = axis.imshow(
            routes.routes_KLE[order, place], vmin=0, vmax=1, cmap="viridis", aspect="auto"
        )
        axis.set_title(
            f"layer {routes.layers[place]}\n{routes.specialisation_L[place]:.2f}", fontsize=8
        )
        axis.set_xticks(range(experts), [str(e) for e in range(experts)], fontsize=7)
        names = [f"{groups[k]}: {routes.tasks[k]}" if groups[k] else routes.tasks[k] for k in order]
        axis.set_yticks(range(len(order)), names, fontsize=6)
        edges = [i for i in range(1, len(order)) if groups[order[i]] != groups[order[i - 1]]]
        for edge in edges:
            axis.axhline(edge - 0.5, color="white", linewidth=0.6)
    figure.supxlabel("expert", fontsize=8)
    figure.suptitle("Route of each task; specialisation of the layer", fontsize=9)
    bar = figure.colorbar(image, ax=axes, fraction=0.03)
    bar.set_label("weight of the expert", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    with whole_file(path) as part:
        figure.savefig(part, dpi=130)
    pyplot.close(figure)


def _entropy(p: np.ndarray) -> np.ndarray:
    return -(p * np.log(np.maximum(p, 1e-30))).sum(axis=-1)
