"""Few-shot tuning: one unseen task from an upstream model, in plain PyTorch on one process.

A run takes seconds to minutes on 16 examples, so no engine is started. Settings of the public
code (CrossTaskMoE): 1,000 steps, lr {1, 2, 5}e-5 x batch {2, 4, 8}, 100 steps of warm-up, clip
0.1, weight decay 0.01; the best by dev performance is scored on the test rows.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ds_moe_mtl.config import UserError
from ds_moe_mtl.data import EncodedSplit, evaluation_batches
from ds_moe_mtl.data.batch import collate
from ds_moe_mtl.evaluation.outputs import assemble, batch_outputs, task_result
from ds_moe_mtl.models import HeadSpec, MultiTaskNetwork
from ds_moe_mtl.models.description import model_folder, read_description
from ds_moe_mtl.models.folder import load_folder
from ds_moe_mtl.models.heads import TaskHeads
from ds_moe_mtl.models.losses import network_inputs
from ds_moe_mtl.models.task_level.stored_routes import load_vectors
from ds_moe_mtl.models.task_level.task_router import TaskRouter
from ds_moe_mtl.tasks import TaskSpec
from ds_moe_mtl.training.schedule import learning_rate

ROUTES = ("nearest", "vector", "learned")
Say = Callable[[str], None]


@dataclass(frozen=True)
class Tuning:
    """How one task is tuned; every pair of a rate and a batch size is tried, the best by dev."""

    steps: int = 1000
    rates: tuple[float, ...] = (1e-5, 2e-5, 5e-5)
    batch_sizes: tuple[int, ...] = (2, 4, 8)
    warmup: float = 0.1  # share of the steps
    clip: float = 0.1
    weight_decay: float = 0.01
    routes: str = "vector"  # of a learned router: nearest seen task, the task's vector, or learned
    router_rate: float = 1e-2  # of the task vector where routes are learned
    precision: str = "fp32"


def tune_task(
    network: MultiTaskNetwork,
    spec: TaskSpec,
    splits: tuple[EncodedSplit, EncodedSplit, EncodedSplit],
    tuning: Tuning,
    seed: int,
) -> dict:
    """Return {"value" on test, "dev", "rate", "batch_size", ...} of the best setting on dev.

    network: adapted to the task (`for_new_task`), left as it was; its device does the work.
    splits: train, dev, test.
    """
    best = None
    for rate, size in product(tuning.rates, tuning.batch_sizes):
        tuned = copy.deepcopy(network)
        train_steps(tuned, splits[0], tuning, rate, size, seed)
        dev = evaluate_split(tuned, spec, splits[1])
        if best is None or dev["value"] > best[0]["value"]:
            best = (dev, rate, size, tuned)
    dev, rate, size, tuned = best
    test = evaluate_split(tuned, spec, splits[2])
    return {**test, "dev": dev["value"], "rate": rate, "batch_size": size, "seed": seed}


def train_steps(
    network: MultiTaskNetwork,
    split: EncodedSplit,
    tuning: Tuning,
    rate: float,
    batch_size: int,
    seed: int,
) -> None:
    """Train the network in place. In bf16 the optimizer works on a float32 copy."""
    torch.manual_seed(seed)
    order = np.random.default_rng(seed)
    network.to(torch.bfloat16 if tuning.precision == "bf16" else torch.float32)
    network.train()
    rest = [p for n, p in network.named_parameters() if p.requires_grad and n != "router.vectors"]
    groups = [(rest, rate)]
    if network.router is not None and network.router.options.route == "learned":
        vectors = network.router.vectors
        groups += [([vectors], tuning.router_rate)] if vectors.requires_grad else []
    masters = [[p.detach().clone().float() for p in parameters] for parameters, _ in groups]
    optimizer = torch.optim.AdamW(
        [{"params": copies} for copies in masters],
        lr=rate,
        weight_decay=tuning.weight_decay,
        fused=True,
    )
    pool: list[int] = []
    for step in range(tuning.steps):
        while len(pool) < batch_size:
            pool += order.permutation(split.num_examples).tolist()
        chosen, pool = pool[:batch_size], pool[batch_size:]
        example_loss(network, split, chosen).backward()
        share = learning_rate(step, tuning.steps, round(tuning.warmup * tuning.steps), 1.0)
        pairs = list(zip(groups, masters, optimizer.param_groups, strict=True))
        for (parameters, peak), copies, group in pairs:
            group["lr"] = share * peak
            for parameter, master in zip(parameters, copies, strict=True):
                master.grad = None if parameter.grad is None else parameter.grad.float()
                parameter.grad = None
            if tuning.clip:  # the task vector is clipped apart, as in training
                nn.utils.clip_grad_norm_(copies, tuning.clip)
        optimizer.step()
        with torch.no_grad():
            for (parameters, _), copies, _ in pairs:
                for parameter, master in zip(parameters, copies, strict=True):
                    parameter.copy_(master)
    network.eval()


def example_loss(
    network: MultiTaskNetwork, split: EncodedSplit, examples: Sequence[int]
) -> torch.Tensor:
    """Return the mean loss of these examples of task 0."""
    firsts = np.searchsorted(split.questions, np.arange(split.num_examples + 1))
    rows = [(0, n) for e in examples for n in range(firsts[e], firsts[e + 1])]
    batch = collate(rows, [split]).to(network_device(network))
    losses_B = network.losses(network(**network_inputs(batch)), batch)
    return (losses_B * batch.weights_B).sum() / len(examples)


def evaluate_split(network: MultiTaskNetwork, spec: TaskSpec, split: EncodedSplit) -> dict:
    """Return {"metric", "value" in percent, "examples"} of task 0 on a split."""
    network.eval()
    device = network_device(network)
    pieces = [
        batch_outputs(network, batch, spec.num_outputs, device)
        for batch in evaluation_batches(split, 0)
    ]
    return task_result(spec, assemble(pieces, split, spec.num_outputs), split)


def for_new_task(
    network: MultiTaskNetwork, head: HeadSpec, router: TaskRouter | None
) -> MultiTaskNetwork:
    """Return the network with one task in place of those it was trained on, in place.

    A head that the task shares with upstream tasks is kept; else it starts anew.
    """
    heads = TaskHeads(network.encoder.hidden_size, [head], network.heads.dropout.p)
    kept = network.heads.head(head.key)
    if kept is not None:
        heads.linears[0].load_state_dict(kept.state_dict())
    device = network_device(network)
    network.heads, network.router = heads, router
    network.gate_of_task = network.gate_of_task.new_zeros(1)
    network.num_outputs = torch.tensor([head.outputs])
    network.scores_options = torch.tensor([bool(head.shared)])
    network.forms, network.class_weights = network.forms.new_zeros(1), None
    return network.to(device)


def network_device(network: nn.Module) -> torch.device:
    """Return where a network's weights are."""
    return next(network.parameters()).device


def router_for(
    router: TaskRouter | None,
    seen: list[str],
    name: str,
    routes: str,
    vectors: str | None,
    seed: int,
) -> TaskRouter | None:
    """Return the router of one unseen task made from an upstream model's; None stays None.

    Random and average routes go on as such. Learned ones come from the nearest seen task by task
    vectors (cosine), from the task's own vector through the router, or (learned) from a vector
    that starts at the task's own and is tuned. Raises UserError where vectors are needed and the
    upstream model has random ones.
    """
    if router is None:
        return None
    options = router.options
    if options.route != "learned":
        return TaskRouter(replace(options, seed=seed), 1)
    if routes not in ROUTES:
        raise UserError(f"--routes: {routes!r}; allowed: {', '.join(ROUTES)}")
    if vectors is None or vectors == "random":
        raise UserError(
            "--routes: the upstream model has random task vectors, which an unseen task has none "
            "of; allowed: an upstream run with router.vectors=<file of crossfit vectors>"
        )
    try:
        own = load_vectors(vectors, [name], reference=seen)
    except ValueError as error:
        raise UserError(str(error)) from error
    if routes == "nearest":
        known = router.vectors.detach().float()
        nearest = torch.cosine_similarity(known, own).argmax()
        own = known[nearest][None]
    learns = routes == "learned"
    made = TaskRouter(replace(options, freeze_vectors=not learns, frozen=not learns), 1, own)
    made.net.load_state_dict(router.net.state_dict())
    made.net.requires_grad_(False)
    made.set_step(int(router.step))
    return made


def upstream_network(folder: Path) -> tuple[MultiTaskNetwork, dict]:
    """Return (network, description) of a run's or a model's folder. Raises UserError for none."""
    try:
        return load_folder(model_folder(folder))
    except ValueError as error:
        raise UserError(str(error)) from error


def read_model(folder: Path) -> dict:
    """Return a model folder's description. Raises UserError, one line, for what is none."""
    try:
        return read_description(folder)
    except ValueError as error:
        raise UserError(str(error)) from error
