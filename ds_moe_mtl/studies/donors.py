"""Which gate of a trained model a new task begins with best: held-out loss on a few examples.

No weight of the model is trained: the few examples go through the encoder with each donor's gate,
and a linear probe on what the head would read is cross-validated. Our choice: the paper picks
donors by hand (sec. 5.2).

N sequences, D what a head reads.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ds_moe_mtl.config import UserError
from ds_moe_mtl.data import EncodedSplit, evaluation_batches
from ds_moe_mtl.evaluation.outputs import assemble
from ds_moe_mtl.models import MultiTaskNetwork
from ds_moe_mtl.models.folder import load_folder
from ds_moe_mtl.models.losses import network_inputs
from ds_moe_mtl.models.token_level.direct_calls import routed_ffns
from ds_moe_mtl.models.token_level.moe_layer import Gate
from ds_moe_mtl.models.transfer import OWN, RANDOM, donors
from ds_moe_mtl.tasks import TOKEN_KINDS, TaskSpec

EXAMPLES = 256
"""At most so many training examples are probed; our choice, seconds a donor on a CPU core."""

FOLDS = 5
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)
"""Inverse strengths of the probe's penalty; each donor is judged by its best one."""


def donor_losses(folder: Path, spec: TaskSpec, split: EncodedSplit, seed: int) -> dict[str, float]:
    """Return the held-out loss of each donor's gate, and of newly drawn ones, best first.

    folder: of an mt_tag model, which runs on a GPU where there is one. Cross-entropy over
    log(classes), or squared error over the labels' variance: 1 is what a constant reaches. Raises
    UserError for a model without gates by task, for too few examples to hold some out, and for a
    task whose answer is more than one class or score.
    """
    if spec.kind in ("multilabel", *TOKEN_KINDS):
        raise UserError(
            f"start.gate: auto probes one class or score, and {spec.name!r} is of kind "
            f"{spec.kind}; allowed: a task whose gate is taken, or random"
        )
    try:
        network, description = load_folder(folder)
    except ValueError as error:
        raise UserError(str(error)) from error
    network.to("cuda" if torch.cuda.is_available() else "cpu")
    gates = dict(zip(donors(description), description["gate_of_task"], strict=False))
    if not gates:
        raise UserError(f"start.gate: {folder} is a {description['kind']} model, without gates")
    for word in (OWN, RANDOM):  # start.gate means something else by it than a task of that name
        gates.pop(word, None)
    folds = _folds(spec, split, seed)
    losses = {
        name: held_out_loss(spec, _features(network, spec, split, gate), split, folds)
        for name, gate in gates.items()
    }
    _draw_gates(network, seed)
    losses[RANDOM] = held_out_loss(spec, _features(network, spec, split, 0), split, folds)
    return dict(sorted(losses.items(), key=lambda item: item[1]))


def held_out_loss(
    spec: TaskSpec, x_ND: np.ndarray, split: EncodedSplit, folds: Sequence[np.ndarray]
) -> float:
    """Return the mean loss of a linear probe on the rows it was not fitted to."""
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.preprocessing import StandardScaler

    labels_N = split.labels
    best = np.inf
    for strength in STRENGTHS:
        total = 0.0
        for held_out in folds:
            fitted = np.ones(len(labels_N), dtype=bool)
            fitted[held_out] = False
            scaler = StandardScaler().fit(x_ND[fitted])
            seen, unseen = scaler.transform(x_ND[fitted]), scaler.transform(x_ND[held_out])
            if spec.kind == "regression":
                probe = Ridge(alpha=1 / strength).fit(seen, labels_N[fitted])
                error = (probe.predict(unseen) - labels_N[held_out]) ** 2
                total += float(error.sum()) / max(float(labels_N.var()), 1e-12)
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # not converged: its loss says so
                probe = LogisticRegression(C=strength, max_iter=200)
                probe.fit(seen, labels_N[fitted].astype(int))
            log_prob = probe.predict_log_proba(unseen)
            column = np.searchsorted(probe.classes_, labels_N[held_out].astype(int))
            own = log_prob[np.arange(len(unseen)), column]
            total -= float(own.sum()) / np.log(spec.num_outputs)
        best = min(best, total / len(labels_N))
    return float(best)


def _folds(spec: TaskSpec, split: EncodedSplit, seed: int) -> list[np.ndarray]:
    """Return the rows of each fold; an example's sequences stay together."""
    from sklearn.model_selection import KFold, StratifiedKFold

    firsts = np.searchsorted(split.questions, np.arange(split.num_examples))
    classes = split.labels[firsts].astype(int)
    by_class = spec.kind in ("classification", "span")
    fewest = np.bincount(classes)[np.unique(classes)].min() if by_class else len(firsts)
    folds = int(min(FOLDS, fewest))
    if folds < 2:
        raise UserError(
            f"start.gate: auto needs two examples of each class of {spec.name!r} at least; "
            f"allowed: a larger data.sample, or a task whose gate is taken"
        )
    kind = StratifiedKFold if by_class else KFold
    parts = kind(folds, shuffle=True, random_state=seed).split(firsts, classes)
    return [np.flatnonzero(np.isin(split.questions, held_out)) for _, held_out in parts]


@torch.no_grad()
def _features(
    network: MultiTaskNetwork, spec: TaskSpec, split: EncodedSplit, gate: int
) -> np.ndarray:
    """Return what the head would read of every sequence, float32 [N, D], in row order."""
    spans, device = spec.kind == "span", next(network.parameters()).device
    pieces = [
        (
            batch.example_ids_B.numpy(),
            network.features(**_gated(batch.to(device)), gate=gate, spans=spans)
            .float()
            .cpu()
            .numpy(),
        )
        for batch in evaluation_batches(split, 0)
    ]
    return assemble(pieces, split, pieces[0][1].shape[1])


def _draw_gates(network: MultiTaskNetwork, seed: int) -> None:
    """Give every layer newly drawn gates."""
    torch.manual_seed(seed)
    for ffn in routed_ffns(network):
        device = ffn.moe.gate.wg.weight.device
        ffn.moe.gate = Gate(ffn.moe.hidden_size, ffn.moe.options).to(device)


def _gated(batch) -> dict:
    """Return the network's inputs but for those that only whole-task routing reads."""
    return {name: value for name, value in network_inputs(batch).items() if name != "questions_B"}
