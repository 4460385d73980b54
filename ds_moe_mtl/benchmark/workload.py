"""What is measured or planned: a run's data, and its encoder, or one of the same shape."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch

from ds_moe_mtl.config import RunConfig, UserError
from ds_moe_mtl.models import MultiTaskNetwork
from ds_moe_mtl.models.token_level.shared_slice import shared_neurons
from ds_moe_mtl.models.token_level.sparse_layers import sparse_layers
from ds_moe_mtl.planner.compute import tiled
from ds_moe_mtl.planner.levers import Levers
from ds_moe_mtl.planner.memory import Tokens
from ds_moe_mtl.planner.shape import SIZES, Shape, random_transformer, shape_of
from ds_moe_mtl.training.network import network_around, new_network
from ds_moe_mtl.training.plan import RunPlan, make_plan, task_specs

KNOWN_SHAPES = {
    "google-bert/bert-base-uncased": "bert_base",
    "bert-base-uncased": "bert_base",
    "google-bert/bert-large-uncased": "bert_large",
    "bert-large-uncased": "bert_large",
}
"""Encoders whose shape is known without their files; their vocabulary is MiniLM's too."""

BATCHES_LOOKED_AT = 32


@dataclass
class Workload:
    """A run's plan with its encoder's shape. random: the encoder's weights are drawn."""

    plan: RunPlan
    shape: Shape
    random: bool

    @property
    def config(self) -> RunConfig:
        return self.plan.config

    def of_kind(self, kind: str, ep_size: int = 1) -> "Workload":
        """Return the same workload for another model."""
        model = self.config.model.model_copy(update={"kind": kind})
        moe = self.config.moe.model_copy(update={"ep_size": ep_size})
        config = self.config.model_copy(update={"model": model, "moe": moe})
        return replace(self, plan=replace(self.plan, config=config))

    def with_layers(self, layers: int, sparse: int = 0) -> "Workload":
        """Return the same workload with fewer layers, of random weights; `sparse` have experts."""
        named = {"layers": tuple(range(sparse))} if sparse else {}
        moe = self.config.moe.model_copy(update=named)
        plan = replace(self.plan, config=self.config.model_copy(update={"moe": moe}))
        shape = self.shape._replace(layers=layers)
        return replace(self, plan=plan, shape=shape, random=True)

    def transformer(self):
        """Return the encoder with random weights."""
        torch.manual_seed(self.config.run.seed)
        model = self.config.model
        return random_transformer(self.shape, model.dropout, model.pooler)

    def network(self) -> MultiTaskNetwork:
        """Return the network, in float32."""
        if self.random:
            return network_around(self.transformer(), self.plan)
        return new_network(self.plan)[0]


@dataclass
class BatchSizes:
    """What a rank's micro-batches bring: the mean, and the fullest. examples: a step, all ranks."""

    mean: Tokens
    most: Tokens
    sequences: float
    squared: float  # the sum of squared lengths, the mean of a micro-batch
    places: float  # the same of lengths filled up to flash attention's tiles
    micro_batches: int
    tasks: float  # that meet in a micro-batch, the mean

    def unpadded(self) -> "BatchSizes":
        """Return the sizes where attention has no pads."""
        mean, most = (tokens._replace(padded=tokens.real) for tokens in (self.mean, self.most))
        return replace(self, mean=mean, most=most)

    @property
    def attended(self) -> float:
        """Keys that a token meets in attention, in the mean."""
        return self.squared / max(self.mean.real, 1.0)


def find_workload(
    config: RunConfig, shape_name: str | None, say: Callable[[str], None]
) -> Workload:
    """Return the workload of a run. shape_name: random weights of that shape in its place.

    An encoder that cannot be had, but whose shape is known, is replaced so too, and that is said.
    The tokenizer is then that of the encoder's folder, where it is one, else MiniLM's, which is
    BERT's. Raises UserError for what the user can mend.
    """
    name = KNOWN_SHAPES.get(config.model.encoder)
    if shape_name is None:
        try:
            plan = make_plan(config, task_specs(config), say)
        except UserError as error:
            if name is None or not str(error).startswith("model.encoder"):
                raise
            say(f"note: {config.model.encoder} cannot be had: random weights of its shape")
        else:
            return Workload(plan, _shape_of(plan), random=False)
    shape = SIZES[shape_name or name]
    if not Path(config.model.encoder).is_dir():
        model = config.model.model_copy(update={"encoder": "minilm"})
        config = config.model_copy(update={"model": model})
    plan = make_plan(config, task_specs(config), say)
    if len(plan.tokenizer) > shape.vocabulary:
        raise UserError(
            f"model.encoder: {config.model.encoder} has {len(plan.tokenizer):,} tokens, the shape "
            f"{shape_name} {shape.vocabulary:,}; allowed: an encoder with BERT's tokenizer"
        )
    return Workload(plan, shape, random=True)


def batch_sizes(plan: RunPlan, world_size: int, batches: int = BATCHES_LOOKED_AT) -> BatchSizes:
    """Return the sizes of the first super-batches' micro-batches on rank 0 of world_size ranks."""
    found: list[Tokens] = []
    sequences = squared = places = tasks = 0.0
    with closing(plan.super_batches(0, world_size)) as loader:
        for micro_batches, _ in islice(loader, batches):
            for batch in micro_batches:
                found.append(tokens_of(batch))
                sequences += batch.num_sequences
                squared += float(batch.cu_seqlens.diff().double().square().sum())
                places += tiled(batch.cu_seqlens.diff())
                tasks += len(batch.task_ids_B.unique())
    count = len(found)
    mean = Tokens(*(sum(part) / count for part in zip(*found, strict=True)))
    most = Tokens(*(max(part) for part in zip(*found, strict=True)))
    sums = (part / count for part in (sequences, squared, places))
    return BatchSizes(mean, most, *sums, count // batches, tasks / count)


def levers_of(config: RunConfig, shape: Shape, tasks: float, call_tokens: float) -> Levers:
    """Return what a run's levers change about its sparse layers.

    tasks: that meet in a micro-batch of call_tokens tokens. Raises UserError for levers that the
    shape cannot have.
    """
    moe = config.moe
    try:
        layers = len(sparse_layers(moe.layers, shape.layers))
        shared = shared_neurons(moe.shared_share, shape.intermediate)
    except ValueError as error:
        raise UserError(str(error)) from error
    merged = 0.0
    if moe.combine == "merged":
        merged = tasks if config.model.kind == "mt_tag" else 1.0
    return Levers(layers, shared, merged, max(call_tokens, 1.0))


def tokens_of(batch) -> Tokens:
    """Return a batch's tokens: real, with attention's padding, places of its scores, sequences."""
    padded = [(last - first, batch.lengths[first]) for first, last in batch.groups]
    return Tokens(
        batch.num_tokens,
        sum(count * length for count, length in padded),
        sum(count * length**2 for count, length in padded),
        batch.num_sequences,
    )


def _shape_of(plan: RunPlan) -> Shape:
    from transformers import AutoConfig

    return shape_of(AutoConfig.from_pretrained(plan.source.folder))
