"""One task as transformers' own dense classifier, which needs nothing of this package.

Exact, to rounding, for a dense model, for merged experts, and where every token of the task's dev
rows goes to one expert in each layer under gate_scale preserve. Otherwise each layer's experts are
merged by the task's use of them, and the metric before and after is told.

L sparse layers, E experts.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ds_moe_mtl.config import UserError
from ds_moe_mtl.config.files import new_folder
from ds_moe_mtl.data import EncodedSplit, evaluation_batches
from ds_moe_mtl.evaluation import MultiTaskModel
from ds_moe_mtl.export.agreement import (
    Run,
    compare,
    outputs_of,
    padded,
    tell,
    write_about,
)
from ds_moe_mtl.export.source import ExportSource
from ds_moe_mtl.models import routed_ffns
from ds_moe_mtl.models.dense_export import dense_copy, merged_shares
from ds_moe_mtl.models.losses import network_inputs
from ds_moe_mtl.models.plain_classifier import plain_classifier, plain_outputs, plain_token_model
from ds_moe_mtl.models.portable.folder import cutting_tokenizer
from ds_moe_mtl.tasks import TOKEN_KINDS

Say = Callable[[str], None]

_PROBLEMS = {
    "classification": "single_label_classification",
    "ranking": "single_label_classification",
    "multilabel": "multi_label_classification",
    "regression": "regression",
    "options": "regression",
}
"""Kinds that become a sequence classifier, and transformers' word for their outputs. Of ranking
and options it scores one text with one choice."""


@dataclass(frozen=True)
class DenseTask:
    """A task as a plain model. how: what was done to its experts; exact: nothing was lost."""

    model: nn.Module
    how: str
    exact: bool


def export_dense(source: ExportSource, task: str, output: Path, merge: bool, say: Say) -> None:
    """Write the task's folder, and export.json beside it.

    merge: without dev rows, merge the experts of a routed layer in equal shares. Raises UserError
    where the folder is taken, the task cannot be made dense, or an exact export does not agree.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()
    spec = source.model.task(task)
    with new_folder(output) as folder:
        dense = dense_task(source, task, merge)
        say(f"{task}: {dense.how}")
        tokenizer = cutting_tokenizer(source.model.tokenizer, spec.max_length)
        dense.model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        about = {"to": "dense", "source": source.name, "task": task, "how": dense.how}
        about["exact"] = dense.exact
        split = source.dev(task)
        if split is None:
            say(f"{task}: not compared, no dev rows ({source.no_data[task]})")
        else:
            run = classifier_run(dense.model, tokenizer)
            found = compare(
                spec, split, source.outputs(task), outputs_of(run, split, spec.num_outputs)
            )
            about["agreement"] = tell(spec, found, say, merged=not dense.exact)
        write_about(folder, about)


def classifier_run(model: nn.Module, tokenizer) -> Run:
    """Return what runs a plain classifier on a batch of ours."""
    types = "token_type_ids" in tokenizer.model_input_names
    return lambda batch: plain_outputs(model(**padded(batch, tokenizer.pad_token_id, types)))


def dense_task(source: ExportSource, task: str, merge: bool = False) -> DenseTask:
    """Return a task of the source's model as a plain classifier of its encoder's architecture.

    Raises UserError, one line, for a kind of task or of model that has none.
    """
    model, spec = source.model, source.model.task(task)
    routing = model.description["routing"]
    if model.description.get("family") == "bart" or model.description["kind"] == "task_moe":
        raise UserError(
            f"--to dense: a {model.description['kind']} model; allowed: single, mt_dense, "
            f"mt_switch and mt_tag of an encoder"
        )
    if spec.kind not in (*_PROBLEMS, *TOKEN_KINDS):
        raise UserError(
            f"--to dense: task {task!r} is {spec.kind}; allowed: "
            f"{', '.join((*_PROBLEMS, *TOKEN_KINDS))} (--to huggingface carries span too)"
        )
    network, exact, scales = model.network, True, None
    if routing is None:
        how, shares = "the model is dense", []
    elif routing["combine"] == "merged":
        how, shares = "its experts are merged by the task", merged_shares(network, task)
    elif routing["num_experts"] == 1 and routing["gate_scale"] == "preserve":
        how = "each layer has one expert"
        shares = [torch.ones(1)] * len(routed_ffns(network))
    else:
        how, exact, shares, scales = _by_use(source, task, merge)
    encoder = dense_copy(network, shares, scales)
    head = network.heads.head(network.heads.specs[list(model.specs).index(task)].key)
    labels = dict(enumerate(spec.labels or ("score",)))
    try:
        if spec.kind in TOKEN_KINDS:
            classifier = plain_token_model(encoder, head, labels if spec.labels else None)
        else:
            classifier = plain_classifier(encoder, head, labels, _PROBLEMS[spec.kind])
    except ValueError as error:
        raise UserError(f"--to dense: {error}") from error
    return DenseTask(classifier, how, exact)


def _by_use(source: ExportSource, task: str, merge: bool):
    """Return (how, exact, shares, scales) of routed experts by where the task's dev tokens go."""
    model, split = source.model, source.dev(task)
    paper = model.description["routing"]["gate_scale"] == "paper"
    experts = model.description["routing"]["num_experts"]
    if split is None:
        if not merge:
            raise UserError(
                f"--to dense: {task!r} is routed by token; without its dev rows nobody knows to "
                f"which experts ({source.no_data[task]}); allowed: --data-root, or --merge, "
                f"which merges all experts in equal shares"
            )
        layers = len(routed_ffns(model.network))
        shares = [torch.full((experts,), 1 / experts) for _ in range(layers)]
        scales = [torch.full((experts,), 1 / experts)] * layers if paper else None
        return "its experts are merged in equal shares, by --merge", False, shares, scales
    tokens_LE, values_LE = task_use(model, task, split)
    shares_LE = tokens_LE / tokens_LE.sum(1, keepdim=True)
    scales = list((values_LE / tokens_LE.clamp(min=1)).float()) if paper else None
    one = bool(((tokens_LE > 0).sum(1) == 1).all())
    how = "every token of its dev rows takes the same expert of a layer"
    if not one:
        most = 100 * float(shares_LE.max(1).values.mean())
        how = (
            f"its experts are merged by its use of them (a layer's most used takes {most:.0f}% of "
            f"its dev tokens, the mean over layers)"
        )
    elif paper:
        how += ", times the mean gate value"
    return how, one and not paper, list(shares_LE.float()), scales


@torch.no_grad()
def task_use(
    model: MultiTaskModel, task: str, split: EncodedSplit
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the tokens of a split that each expert gets, and the sum of their gate values.

    Both float64 [L, E]; of top-1 routing.
    """
    experts = model.description["routing"]["num_experts"]
    total: tuple[torch.Tensor, torch.Tensor] | None = None
    for batch in evaluation_batches(split, list(model.specs).index(task)):
        routes = model.network(**network_inputs(batch.to(model.device)), keep_routes=True).routes
        found = []
        for values_of in (lambda route: torch.ones_like(route.prob_T), lambda route: route.prob_T):
            rows = []
            for route in routes:
                real_T = route.expert_T >= 0
                sums_E = torch.zeros(experts, dtype=torch.float64)
                values_T = values_of(route)[real_T].double().cpu()
                rows.append(sums_E.index_add(0, route.expert_T[real_T].long().cpu(), values_T))
            found.append(torch.stack(rows))
        total = found if total is None else [a + b for a, b in zip(total, found, strict=True)]
    return total[0], total[1]
