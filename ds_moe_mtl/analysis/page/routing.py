"""What one run's experts do: its tasks' routes, how alike they are, what each expert is worth.

K tasks, L layers with experts, E experts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ds_moe_mtl.analysis.page.ablation import ExpertLosses
from ds_moe_mtl.analysis.page.gates import task_gates
from ds_moe_mtl.analysis.page.heat import Heat, heat
from ds_moe_mtl.analysis.page.similarity import (
    Association,
    Similarity,
    associations,
    gate_similarity,
    route_similarity,
)
from ds_moe_mtl.analysis.page.stored import Part, StoredRun
from ds_moe_mtl.analysis.routes import collect_routes
from ds_moe_mtl.analysis.task_routes import model_routes
from ds_moe_mtl.config import UserError
from ds_moe_mtl.config.files import read_json
from ds_moe_mtl.evaluation import MultiTaskModel
from ds_moe_mtl.models.multitask import SPARSE_KINDS

ROWS = 200
"""Dev examples of a task that routes are counted on, as `ds-moe-mtl routes` does."""


@dataclass(frozen=True)
class RouteShares:
    """Each task's share of an expert in a layer; layers: their numbers, from 0. of: in words."""

    tasks: tuple[str, ...]
    layers: tuple[int, ...]
    shares_KLE: np.ndarray
    of: str


@dataclass(frozen=True)
class Routing:
    """Everything of one run that its experts tell. why_not: by part of the page, in a line."""

    routes: RouteShares | None
    by_routes: Similarity | None
    by_gates: Similarity | None
    features: tuple[Association, ...]
    experts: ExpertLosses | None
    layers: tuple[int, ...]
    why_not: Mapping[str, str]

    def to_dict(self) -> dict:
        """The numbers as plain JSON values."""
        return {
            "routes": self.routes
            and {
                "layers": list(self.routes.layers),
                "shares": dict(
                    zip(self.routes.tasks, self.routes.shares_KLE.round(4).tolist(), strict=True)
                ),
            },
            "by_routes": self.by_routes and _distances(self.by_routes),
            "by_gates": self.by_gates and _distances(self.by_gates),
            "features": [vars(one) for one in self.features],
            "experts": self.experts
            and {
                "rows": self.experts.rows,
                "layers": list(self.layers),
                "whole": dict(zip(self.experts.tasks, self.experts.whole, strict=True)),
                "rises": dict(
                    zip(self.experts.tasks, self.experts.rises_KLE.round(5).tolist(), strict=True)
                ),
            },
            "why_not": dict(self.why_not),
        }


def read_routing(
    run: StoredRun,
    features: Callable[[Sequence[str]], Mapping[str, np.ndarray]],
    experts: tuple[ExpertLosses | None, str],
    with_data: bool,
) -> Routing | None:
    """Return what the experts of a run tell, None for a run without experts.

    features: of the tasks it is given. experts: what was measured, or why nothing was.
    """
    if len(run.parts) != 1 or run.kind not in (*SPARSE_KINDS, "task_moe", ""):
        return None
    part = run.parts[0]
    if not run.kind and part.course.loads_SLE is None:
        return None
    why_not: dict[str, str] = {}
    routes = None
    try:
        routes = _routes(run, part, with_data)
    except UserError as error:
        why_not["routes"] = str(error)
    losses, reason = experts
    if losses is None:
        why_not["experts"] = reason
    by_routes = by_gates = None
    found: tuple[Association, ...] = ()
    if routes is not None and len(routes.tasks) > 1:
        by_routes = route_similarity(routes.tasks, routes.shares_KLE)
        values = features(routes.tasks)
        found = tuple(
            associations(values, routes.shares_KLE, by_routes.distances_KK, routes.layers)
        )
    gates_KLX = task_gates(part)
    if gates_KLX is not None and len(gates_KLX) > 1:
        by_gates = gate_similarity(tuple(part.specs), gates_KLX)
    elif run.kind == "mt_switch":
        why_not["gates"] = "All tasks share one gate."
    layers = routes.layers if routes is not None else ()
    if losses is not None:
        layers, _ = part.sparse_layers(losses.rises_KLE.shape[1])
    return Routing(routes, by_routes, by_gates, found, losses, layers, why_not)


def routes_table(routes: RouteShares, order: Sequence[int]) -> Heat:
    """Return tasks down, layers and experts across, the share of tokens in percent."""
    layers, experts = routes.shares_KLE.shape[1:]
    percent = 100 * routes.shares_KLE[list(order)].reshape(len(routes.tasks), -1)
    return heat(
        "task",
        [routes.tasks[task] for task in order],
        [str(expert) for _ in range(layers) for expert in range(experts)],
        percent,
        scale=100,
        form="{:.0f}",
        groups=[(f"layer {number}", experts) for number in routes.layers],
        across="expert",
    )


def experts_unit(losses: ExpertLosses) -> int:
    """Return what a rise is multiplied by on the page: 100, or 1000 where all are small."""
    return 100 if np.abs(losses.rises_KLE).max() >= 0.1 else 1000


def experts_table(losses: ExpertLosses, layers: Sequence[int], order: Sequence[str]) -> Heat:
    """Return tasks down, layers and experts across, the rise of the loss without the expert."""
    tasks = [task for task in order if task in losses.tasks] or list(losses.tasks)
    rows = [losses.tasks.index(task) for task in tasks]
    rises_KX = experts_unit(losses) * losses.rises_KLE[rows].reshape(len(rows), -1)
    rises_KX = rises_KX.round() + 0.0  # no -0
    experts = losses.rises_KLE.shape[2]
    return heat(
        "task",
        tasks,
        [str(expert) for _ in layers for expert in range(experts)],
        rises_KX,
        scale=max(float(np.abs(rises_KX).max()), 1e-9),
        form="{:.0f}",
        groups=[(f"layer {number}", experts) for number in layers],
        across="expert",
    )


def distances_table(similarity: Similarity) -> Heat:
    """Return distances of every two tasks in hundredths, in the order of the tree's leaves."""
    order = list(similarity.order)
    names = [similarity.tasks[task] for task in order]
    values_KK = 100 * similarity.distances_KK[np.ix_(order, order)]
    largest = max(float(values_KK.max()), 1e-9)
    return heat(
        "task",
        names,
        names,
        values_KK,
        largest,
        "{:.0f}",
        shades=largest - values_KK,
        long_columns=True,
    )


def _routes(run: StoredRun, part: Part, with_data: bool) -> RouteShares:
    """Return the routes that the run left, or those that its model and data give now."""
    if run.kind == "task_moe":
        return _task_routes(part)
    stored = read_json(part.folder / "routes.json")
    if stored is None:
        if not with_data:
            raise UserError("The run left no routes.json; `ds-moe-mtl routes RUN` makes it.")
        if part.description is None or part.config is None:
            raise UserError("There is no model yet whose routes could be counted.")
        model = MultiTaskModel.from_pretrained(part.folder)
        data = part.config.data
        stored = collect_routes(model, data.root, data.cache, ROWS).to_json()
    shares_KLE = np.array([stored["shares"][task] for task in stored["tasks"]], dtype=float)
    layers, _ = part.sparse_layers(shares_KLE.shape[1])
    is_merged = stored.get("combine") == "merged"
    of = "weight of each expert in a task's mixture" if is_merged else "share of a task's tokens"
    return RouteShares(tuple(stored["tasks"]), layers, shares_KLE, of)


def _task_routes(part: Part) -> RouteShares:
    stored = read_json(part.folder / "task_routes.json")
    if stored is None:
        if part.description is None:
            raise UserError("There is no model yet whose routes could be read.")
        stored = model_routes(MultiTaskModel.from_pretrained(part.folder, "cpu")).to_json()
    shares_KLE = np.array([stored["routes"][task] for task in stored["tasks"]], dtype=float)
    of = "weight of each expert in a task's route"
    return RouteShares(tuple(stored["tasks"]), tuple(stored["layers"]), shares_KLE, of)


def _distances(similarity: Similarity) -> dict:
    return {
        "tasks": list(similarity.tasks),
        "distances": similarity.distances_KK.round(4).tolist(),
        "order": [similarity.tasks[task] for task in similarity.order],
    }
