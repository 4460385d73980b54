"""What a plan advises: on how many GPUs, and over how many of them the experts."""

from ds_moe_mtl.config import UserError
from ds_moe_mtl.config.levers import conflict

GIB = 2**30
ROOM = 0.9
"""Share of a GPU's memory that a plan may fill: the allocator's fragments and the context."""

GAIN = 0.98
"""Spreading experts is advised where it takes at most this share of the time: our choice, since
the cost model is no better than that."""


def advised(rows: list[dict], stage: int) -> dict | None:
    """Return the row to run, of the run's own ZeRO stage if one fits there; None: nothing fits.

    It is the least ep_size that fits, or the fastest by the cost model where that gains enough.
    """
    fitting = [row for row in rows if row["fits"] is not False]
    own = [row for row in fitting if row["zero_stage"] == stage] or fitting
    if not own:
        return None
    least = min(own, key=lambda row: (row["ep_size"], row["cost_flat"]["total"]))
    fastest = min(own, key=lambda row: row["cost_flat"]["total"])
    return fastest if _total(fastest) < GAIN * _total(least) else least


def advice(paper, rows: list[dict], chosen: dict | None, memory: float | None) -> str:
    """Return a sentence on expert parallelism, and one before it where one GPU is no slower.

    paper: a planning.RunOnPaper; rows: its plan's; chosen: what `advised` says of them; memory:
    bytes of a GPU, None where it is not known.
    """
    on_host = _ON_HOST if paper.offloads else ""
    return _one_gpu(paper, chosen, memory) + _experts(paper, rows, chosen, memory) + on_host


def ways_out(paper, rows: list[dict], memory: float | None) -> str:
    """Return what would make a run fit that fits nowhere: only what saves enough; "" if it fits."""
    if memory is None or any(row["fits"] for row in rows):
        return ""
    least = min(rows, key=lambda row: row["peak"])
    ways = ["more GPUs"]
    if least["peak"] - least["activations"] <= ROOM * memory:
        ways.append("train.accumulation")
        if not paper.workload.config.train.activation_checkpointing:
            ways.append("train.activation_checkpointing=true")
    if not paper.offloads:
        ways.append("offload_optimizer in the DeepSpeed JSON")
    return "take " + ", or ".join(ways)


def _total(row: dict) -> float:
    return row["cost_flat"]["total"]


def _one_gpu(paper, chosen: dict | None, memory: float | None) -> str:
    gpus = paper.machine.gpus
    if gpus == 1 or chosen is None:
        return ""
    try:
        alone = paper.on_one_gpu()
    except UserError:  # a batch that one rank cannot have
        return ""
    if memory is not None and alone.peak(paper.stage, 1).total > ROOM * memory:
        return ""
    seconds, cost = alone.cost(paper.stage, 1).total, chosen["cost_flat"]
    if seconds > cost["total"]:
        return ""
    fits = "" if memory is not None else ", if it fits there"
    return (
        f"Use one GPU{fits}: by the cost model a step takes {1e3 * seconds:.2f} ms on one and "
        f"{1e3 * cost['total']:.2f} on {gpus} (compute {1e3 * cost['compute']:.2f}, reduction "
        f"{1e3 * cost['reduction']:.2f}).\n"
    )


def _experts(paper, rows: list[dict], chosen: dict | None, memory: float | None) -> str:
    moe, gpus = paper.workload.config.moe, paper.machine.gpus
    if not paper.sparse:
        return "Expert parallelism: the model has no experts."
    forbidden = conflict(moe.model_copy(update={"ep_size": 2}), "moe.")
    spread = [row for row in rows if row["ep_size"] > 1 and row["zero_stage"] == paper.stage]
    if not spread and forbidden:
        return f"Expert parallelism: none possible; {forbidden.partition('; allowed')[0]}."
    if not spread and paper.stage == 0 and len(paper.ep_sizes()) > 1:
        return (
            "Expert parallelism: none at ZeRO 0, where clipping would be inexact; take ZeRO 1 or 2."
        )
    if not spread:
        return (
            f"Expert parallelism: none possible; no ep_size above 1 divides both "
            f"{moe.num_experts} experts and {gpus} ranks."
        )
    alone = next(row for row in rows if (row["zero_stage"], row["ep_size"]) == (paper.stage, 1))
    if chosen is None:
        least = spread[-1]
        return (
            f"Expert parallelism is not enough: ep_size {least['ep_size']} still needs "
            f"{least['peak'] / GIB:.2f} GiB a rank of {memory / GIB:.1f}; "
            f"{ways_out(paper, rows, memory)}."
        )
    if alone["fits"] is False:
        return _needed(alone, chosen, memory)
    return _faster(alone, chosen, spread, memory)


def _needed(alone: dict, chosen: dict, memory: float) -> str:
    means = "Expert parallelism helps" if chosen["ep_size"] > 1 else "ZeRO helps"
    return (
        f"{means}: ZeRO {alone['zero_stage']} with ep_size 1 needs {alone['peak'] / GIB:.2f} GiB a "
        f"rank, above {100 * ROOM:.0f}% of {memory / GIB:.1f} GiB; ZeRO {chosen['zero_stage']} "
        f"with ep_size {chosen['ep_size']} needs {chosen['peak'] / GIB:.2f}."
    )


def _faster(alone: dict, chosen: dict, spread: list[dict], memory: float | None) -> str:
    """Return whether the chosen row, or else the fastest that is spread, is worth it."""
    helps = chosen["ep_size"] > 1
    best = chosen if helps else min(spread, key=_total)
    saved = (alone["peak"] - best["peak"]) / GIB
    times = f"{1e3 * _total(best):.1f} ms a step against {1e3 * _total(alone):.1f}"
    if helps:
        parts = ("compute", "reduction", "all_to_all", "optimizer")
        gains = {part: alone["cost_flat"][part] - best["cost_flat"][part] for part in parts}
        most = max(gains, key=gains.get)
        return (
            f"Expert parallelism helps by the cost model: ep_size {best['ep_size']} takes {times}, "
            f"most of it by {_BECAUSE[most]}, and saves {saved:.2f} GiB a rank."
        )
    fits = "everything fits without it" if memory is not None else "unless memory is short"
    return (
        f"Expert parallelism does not help here, {fits}: ep_size {best['ep_size']} would save "
        f"{saved:.2f} of {alone['peak'] / GIB:.2f} GiB a rank and send "
        f"{best['sent_bytes'] / 2**20:,.1f} MiB a rank and step ({times} by the cost model)."
    )


_ON_HOST = (
    "\nThe optimizer is on the host: its update there, and what goes there and back, are not in "
    "the step times."
)

_BECAUSE = {
    "compute": "reading fewer experts' weights",
    "reduction": "sending the experts' gradients round fewer ranks",
    "all_to_all": "exchanges",
    "optimizer": "updating fewer weights",
}
