"""What is measured or planned: a run's data, and its encoder, or one of the same shape."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch

from ds_moe_mtl.benchmark.encoder_shape import (
    build,
    known_config,
    shape_of,
    with_layers,
)
from ds_moe_mtl.config import RunConfig, UserError
from ds_moe_mtl.models import MultiTaskNetwork
from ds_moe_mtl.models.pretrained import encoder_config
from ds_moe_mtl.models.token_level.shared_slice import shared_neurons
from ds_moe_mtl.models.token_level.sparse_layers import sparse_layers
from ds_moe_mtl.planner.compute import tiled
from ds_moe_mtl.planner.flops import meetings
from ds_moe_mtl.planner.levers import Levers
from ds_moe_mtl.planner.memory import Tokens
from ds_moe_mtl.planner.shape import KNOWN_ENCODERS, SIZES, Shape, random_transformer
from ds_moe_mtl.training.network import network_around, new_network
from ds_moe_mtl.training.plan import RunPlan, make_plan, task_specs

KNOWN = {
    "google-bert/bert-base-uncased": "bert_base",
    "bert-base-uncased": "bert_base",
    "google-bert/bert-large-uncased": "bert_large",
    "bert-large-uncased": "bert_large",
    "answerdotai/ModernBERT-base": "modernbert_base",
    "answerdotai/ModernBERT-large": "modernbert_large",
    "EuroBERT/EuroBERT-210m": "eurobert_210m",
    "nomic-ai/nomic-bert-2048": "nomic_bert",
    "facebook/xlm-roberta-xl": "xlm_roberta_xl",
}
"""Encoders whose shape is known without their files."""

BATCHES_LOOKED_AT = 32


@dataclass
class Workload:
    """A run's plan with its encoder's shape. random: the encoder's weights are drawn.

    architecture: transformers' configuration of the encoder; None: a BERT of the shape. shape_name:
    of a known shape that stands in an encoder's place.
    """

    plan: RunPlan
    shape: Shape
    random: bool
    architecture: object | None = None
    shape_name: str | None = None

    @property
    def config(self) -> RunConfig:
        return self.plan.config

    @property
    def encoder(self) -> str:
        """The encoder's name; of drawn weights, that of the shape."""
        return self.shape_name or self.plan.source.resolved

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
        local = self.shape.local * layers // self.shape.layers
        shape = self.shape._replace(layers=layers, local=local)
        return replace(self, plan=plan, shape=shape, random=True)

    def transformer(self):
        """Return the encoder with random weights."""
        torch.manual_seed(self.config.run.seed)
        model = self.config.model
        if self.architecture is None:
            return random_transformer(self.shape, model.dropout, model.pooler)
        config = with_layers(self.architecture, self.shape.layers)
        return build(config, model.dropout, model.pooler)

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
    within: float  # the same of layers with a window: pairs of tokens that meet
    places: float  # the same of lengths filled up to flash attention's tiles
    places_within: float  # and of layers with a window
    micro_batches: int
    tasks: float  # that meet in a micro-batch, the mean

    def unpadded(self) -> "BatchSizes":
        """Return the sizes where attention has no pads."""
        mean, most = (
            tokens._replace(padded=tokens.real, seen=tokens.real)
            for tokens in (self.mean, self.most)
        )
        return replace(self, mean=mean, most=most)

    @property
    def attended(self) -> float:
        """Keys that a token meets in attention, in the mean."""
        return self.squared / max(self.mean.real, 1.0)

    @property
    def attended_within(self) -> float:
        """The same in layers with a window."""
        return self.within / max(self.mean.real, 1.0)


def find_workload(
    config: RunConfig, shape_name: str | None, say: Callable[[str], None]
) -> Workload:
    """Return the workload of a run. shape_name: random weights of that shape in its place.

    An encoder that cannot be had, but whose shape is known, is replaced so too, and that is said.
    The tokenizer is then that of the encoder's folder, where it is one, else MiniLM's, which is
    BERT's: other encoders cut the same text into other numbers of tokens. Raises UserError for what
    the user can mend.
    """
    name = KNOWN.get(config.model.encoder)
    if shape_name is None:
        try:
            plan = make_plan(config, task_specs(config), say)
        except UserError as error:
            if name is None or not str(error).startswith("model.encoder"):
                raise
            say(f"note: {config.model.encoder} cannot be had: random weights of its shape")
        else:
            architecture = encoder_config(plan.source)
            return Workload(plan, shape_of(architecture), False, architecture)
    name = shape_name or name
    architecture = known_config(name) if name in KNOWN_ENCODERS else None
    shape = SIZES[name] if architecture is None else shape_of(architecture)
    if not Path(config.model.encoder).is_dir():
        model = config.model.model_copy(update={"encoder": "minilm"})
        config = config.model_copy(update={"model": model})
    plan = make_plan(config, task_specs(config), say)
    if len(plan.tokenizer) > shape.vocabulary:
        raise UserError(
            f"model.encoder: {config.model.encoder} has {len(plan.tokenizer):,} tokens, the shape "
            f"{name} {shape.vocabulary:,}; allowed: an encoder with BERT's tokenizer"
        )
    if architecture is not None and plan.source.name == "minilm":
        say(f"note: texts are cut into tokens by MiniLM's tokenizer, not by that of {name}")
    return Workload(plan, shape, True, architecture, name)


def batch_sizes(
    plan: RunPlan, world_size: int, batches: int = BATCHES_LOOKED_AT, window: int = 0
) -> BatchSizes:
    """Return the sizes of the first super-batches' micro-batches on rank 0 of world_size ranks.

    window: of the encoder's local layers.
    """
    found: list[Tokens] = []
    sequences = tasks = 0.0
    pairs = [0.0] * 4
    with closing(plan.super_batches(0, world_size)) as loader:
        for micro_batches, _ in islice(loader, batches):
            for batch in micro_batches:
                found.append(tokens_of(batch, window))
                sequences += batch.num_sequences
                lengths = batch.cu_seqlens.diff()
                met = [count(lengths, w) for count in (meetings, tiled) for w in (0, window)]
                pairs = [total + more for total, more in zip(pairs, met, strict=True)]
                tasks += len(batch.task_ids_B.unique())
    count = len(found)
    mean = Tokens(*(sum(part) / count for part in zip(*found, strict=True)))
    most = Tokens(*(max(part) for part in zip(*found, strict=True)))
    sums = (part / count for part in (sequences, *pairs))
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


def tokens_of(batch, window: int = 0) -> Tokens:
    """Return a batch's tokens: real, with attention's padding, places of its scores, sequences.

    window: of local layers, whose blocks are those of models.attention.windows.
    """
    padded = [(last - first, batch.lengths[first]) for first, last in batch.groups]
    cut = [(count, *blocks_of(length, window)) for count, length in padded]
    return Tokens(
        batch.num_tokens,
        sum(count * length for count, length in padded),
        sum(count * length**2 for count, length in padded),
        batch.num_sequences,
        sum(count * blocks * queries * keys for count, blocks, queries, keys in cut),
        sum(count * blocks * keys for count, blocks, _, keys in cut),
    )


def blocks_of(length: int, window: int) -> tuple[int, int, int]:
    """Return how local layers cut a sequence: blocks, queries of one, and keys that it sees."""
    if not window or length <= 4 * window:
        return 1, length, length
    return -(-length // window), window, 3 * window
