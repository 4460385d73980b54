"""The report of a study of task-level experts: tables, gain chart, routes."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean

import torch
from torch import nn

from ds_moe_mtl.config.files import write_json, write_text
from ds_moe_mtl.models.description import read_description
from ds_moe_mtl.models.families import family_of
from ds_moe_mtl.models.folder import described_transformer
from ds_moe_mtl.planner.routed_flops import TokenFlops, token_flops
from ds_moe_mtl.studies.crossfit.relative_gain import (
    RelativeGains,
    draw_gains,
    mean_and_spread,
    relative_gains,
)

DIRECT = "direct"


def write_report(layout, draw_routes: Callable[[Path, Path], dict]) -> str:
    """Write report.md, report.json, gains.png (and routes where learned); return the text.

    layout: a finished study's training.study.Layout. draw_routes(run, folder) draws a learned
    model's routes into a folder and returns their numbers.
    """
    seeds = range(layout.seeds)
    base = [tuned_scores(layout.tuned(DIRECT, seed)) for seed in seeds]
    systems = {}
    for system in layout.systems:
        upstream = [_upstream(layout.run(system, seed)) for seed in seeds]
        tuned = [tuned_scores(layout.tuned(system, seed)) for seed in seeds]
        gains = [relative_gains(scores, own) for scores, own in zip(tuned, base, strict=True)]
        systems[system] = {
            "upstream": mean_and_spread(upstream),
            "unseen": mean_and_spread([fmean(scores.values()) for scores in tuned]),
            "arg_by_seed": mean_and_spread([100 * gain.average for gain in gains]),
            "gains": relative_gains(mean_scores(tuned), mean_scores(base)),
            "flops": _flops(layout.run(system, 0)),
        }
    routes = None
    if "learned" in layout.systems:
        routes = [
            draw_routes(layout.run("learned", seed), layout.run("learned", seed)) for seed in seeds
        ]
    gains = {system: row["gains"] for system, row in systems.items()}
    draw_gains(gains, layout.folder / "gains.png")
    text = _text(systems, base, routes, layout.seeds)
    write_text(layout.folder / "report.md", text + "\n")
    write_json(layout.folder / "report.json", _plain(systems, mean_scores(base), routes))
    return text


def tuned_scores(path: Path) -> dict[str, float]:
    """Return each task's test score of a file that `crossfit tune` wrote."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {row["task"]: row["value"] for row in rows}


def mean_scores(runs: list[Mapping[str, float]]) -> dict[str, float]:
    """Return each task's mean over runs that all have it."""
    return {task: fmean(run[task] for run in runs) for task in runs[0]}


def _upstream(run: Path) -> float:
    return json.loads((run / "results.json").read_text())["all_tasks"]


def _layers(description: dict) -> tuple[int, int]:
    """Return (the encoder's layers, the weights of the linear maps in one of them)."""
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        encoder = described_transformer(description)
    layers = family_of(encoder).layers(encoder)
    maps = (module for module in layers[0].modules() if isinstance(module, nn.Linear))
    return len(layers), sum(linear.weight.numel() for linear in maps)


def _flops(run: Path) -> tuple[TokenFlops, TokenFlops]:
    """Return (in training, in use) of a run's model, counted for one token."""
    description = read_description(run / "model")
    router = description.get("router")
    shape = _layers(description)
    if router is None:
        return token_flops(*shape), token_flops(*shape)
    routed, experts = len(router["layers"]), router["experts"]
    random = router["route"].startswith("random")
    hard = router["route"] == "learned" and router["selection"] == "straight_through"
    in_training = 1 if random or (hard and router["frozen"]) else experts
    in_use = 1 if random or hard else experts
    return token_flops(*shape, routed, in_training), token_flops(*shape, routed, in_use)


def _text(systems: dict, base: list[Mapping[str, float]], routes, seeds: int) -> str:
    direct, spread = mean_and_spread([fmean(scores.values()) for scores in base])
    lines = [
        f"{seeds} seeds, mean ± standard deviation; scores in percent. ARG: average relative gain "
        f"over direct fine-tuning, of the tasks' means over seeds; in brackets the mean of the "
        f"seeds' own ARGs.",
        "",
        "| system | upstream, dev | unseen, test | ARG | tasks below zero | MFLOPs a token: "
        "forward, forward + backward in training |",
        "|---|---|---|---|---|---|",
        f"| direct fine-tuning | - | {direct:.1f} ± {spread:.1f} | - | - | - |",
    ]
    for system, row in systems.items():
        gains: RelativeGains = row["gains"]
        in_training, in_use = row["flops"]
        lines.append(
            f"| {system} | {_pair(row['upstream'])} | {_pair(row['unseen'])} | "
            f"{100 * gains.average:+.1f}% ({_pair(row['arg_by_seed'])}) | "
            f"{len(gains.below_zero)} of {len(gains.by_task)} | "
            f"{in_use.forward / 1e6:.1f}, {in_training.training / 1e6:.1f} |"
        )
    excluded = sorted({task for row in systems.values() for task in row["gains"].excluded})
    lines += ["", f"Left out, base under 1%: {len(excluded)} ({', '.join(excluded) or 'none'})."]
    if routes is not None:
        collapsed = ", ".join(f"{100 * numbers['collapsed_layers']:.0f}%" for numbers in routes)
        levels = "; ".join(
            ", ".join(f"{value:.2f}" for value in numbers["specialisation"]) for numbers in routes
        )
        lines.append(f"Learned routes by seed: specialisation {levels}; collapsed {collapsed}.")
    return "\n".join(lines)


def _pair(values: tuple[float, float]) -> str:
    return f"{values[0]:.1f} ± {values[1]:.1f}"


def _plain(systems: dict, base: Mapping[str, float], routes) -> dict:
    rows = {
        system: {
            **{key: row[key] for key in ("upstream", "unseen", "arg_by_seed")},
            "arg": 100 * row["gains"].average,
            "gain_by_task": dict(row["gains"].by_task),
            "excluded": list(row["gains"].excluded),
            "below_zero": list(row["gains"].below_zero),
        }
        for system, row in systems.items()
    }
    return {"direct": dict(base), "systems": rows, "routes": routes}
