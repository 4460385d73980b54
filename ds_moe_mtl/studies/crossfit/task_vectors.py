"""Task vectors from data: the text of a task's examples, or the Fisher information of adapters.

K tasks, V numbers per vector. Both describe a task by its training rows alone, so that a task that
was never trained on has one too. Source: Ye, Zha and Ren, "Eliciting and Understanding Cross-Task
Skills with Task-Level Mixture-of-Experts", and its public code, CrossTaskMoE; "task2vec" (Fisher
information of adapters) is that of Vu et al. 2020.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ds_moe_mtl.config.files import whole_file
from ds_moe_mtl.data import EncodedSplit
from ds_moe_mtl.data.batch import collate
from ds_moe_mtl.models import HeadSpec, build_network
from ds_moe_mtl.models.encoder import PackedEncoder
from ds_moe_mtl.models.pretrained import EncoderSource, load_transformer
from ds_moe_mtl.studies.crossfit.adapters import add_adapters
from ds_moe_mtl.studies.crossfit.fewshot import example_loss
from ds_moe_mtl.tasks import TaskSpec

TEXTS = 64  # our choice
ROWS_PER_BATCH = 16
PCA_SIZE = 128  # CrossTaskMoE
FISHER_LR = 3e-5  # CrossTaskMoE, with 2,500 steps of batch 8
FISHER_BATCH = 8
CPU = torch.device("cpu")
Say = Callable[[str], None]


@torch.no_grad()
def text_vectors(
    source: EncoderSource, splits: Sequence[EncodedSplit], device: torch.device = CPU
) -> np.ndarray:
    """Return [K, V]: the mean last hidden state over the tokens of TEXTS examples of a task.

    An example with options is read with the right one. device: does the work.
    """
    encoder = PackedEncoder(load_transformer(source, 0.0, False)).eval().to(device)
    rows = []
    for split in splits:
        total = torch.zeros(encoder.hidden_size, dtype=torch.float64)
        rows_of_task = np.flatnonzero((split.labels > 0) | (split.weights == 1))[:TEXTS]
        tokens = 0
        for start in range(0, len(rows_of_task), ROWS_PER_BATCH):
            chosen = rows_of_task[start : start + ROWS_PER_BATCH]
            batch = collate([(0, int(n)) for n in chosen], [split]).to(device)
            hidden_TD = encoder(
                batch.input_ids_T,
                batch.token_type_ids_T,
                batch.position_ids_T,
                batch.cu_seqlens,
                batch.groups,
                batch.lengths,
            )
            total += hidden_TD.double().sum(dim=0).cpu()
            tokens += batch.num_tokens
        rows.append((total / tokens).numpy())
    return np.stack(rows).astype(np.float32)


def fisher_vectors(
    source: EncoderSource,
    heads: Sequence[HeadSpec],
    splits: Sequence[EncodedSplit],
    steps: int,
    seed: int,
    say: Say,
    device: torch.device = CPU,
) -> np.ndarray:
    """Return [K, V]: mean squared gradients of adapters trained on each task alone, then PCA.

    The encoder stays as it is; two adapters of width 8 in every layer and the head are trained
    for `steps` steps, then the squared gradient of each example's loss is averaged. PCA over the
    tasks leaves at most PCA_SIZE numbers, and never more than there are tasks. device: does the
    work.
    """
    rows = []
    for head, split in zip(heads, splits, strict=True):
        torch.manual_seed(seed)
        network = build_network(load_transformer(source, 0.0, False), "mt_dense", [head], 0.0)
        network.requires_grad_(False)
        adapters = add_adapters(network.encoder.transformer)
        network.heads.requires_grad_(True)
        network.to(device)
        _train(network, [*adapters, *network.heads.parameters()], split, steps, seed)
        rows.append(_fisher(network, adapters, split))
        say(f"fisher: {head.name}, {len(rows)} of {len(splits)}")
    return _principal(np.stack(rows))


def save_vectors(path: Path, specs: Sequence[TaskSpec], vectors_KV: np.ndarray) -> None:
    """Write an .npz with arrays names [K] and vectors [K, V]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = np.array([spec.name for spec in specs])
    with whole_file(path) as part, part.open("wb") as file:  # a path would get .npz
        np.savez(file, names=names, vectors=vectors_KV.astype(np.float32))


def _train(
    network: nn.Module, parameters: list[nn.Parameter], split: EncodedSplit, steps: int, seed: int
) -> None:
    optimizer = torch.optim.AdamW(parameters, lr=FISHER_LR)
    order = np.random.default_rng(seed)
    for _ in range(steps):
        chosen = order.choice(split.num_examples, min(FISHER_BATCH, split.num_examples), False)
        example_loss(network, split, chosen).backward()
        optimizer.step()
        optimizer.zero_grad()


def _fisher(network: nn.Module, adapters: list[nn.Parameter], split: EncodedSplit) -> np.ndarray:
    """Return the mean over examples of the squared gradient of each example's loss, flat."""
    total = [torch.zeros_like(parameter) for parameter in adapters]
    for example in range(split.num_examples):
        gradients = torch.autograd.grad(example_loss(network, split, [example]), adapters)
        for sum_, gradient in zip(total, gradients, strict=True):
            sum_ += gradient.square()
    return torch.cat([part.flatten() for part in total]).cpu().numpy() / split.num_examples


def _principal(rows_KV: np.ndarray) -> np.ndarray:
    from sklearn.decomposition import PCA

    size = min(PCA_SIZE, *rows_KV.shape)
    # Squared gradients span orders of magnitude; without the scale PCA would see the largest alone.
    scaled = rows_KV / np.maximum(np.linalg.norm(rows_KV, axis=1, keepdims=True), 1e-30)
    return PCA(size, random_state=0).fit_transform(scaled)
