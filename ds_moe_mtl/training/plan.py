"""What a run will train: tasks, encoder, tokenised data; made before any process group starts."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ds_moe_mtl.config import OwnTask, RunConfig, UserError
from ds_moe_mtl.data import EncodedSplit, SuperBatches, describe, encode_task, own_spec
from ds_moe_mtl.data.mixture import ExampleOrder
from ds_moe_mtl.models import RoutingOptions
from ds_moe_mtl.models.pretrained import EncoderSource, find_encoder, trained_source
from ds_moe_mtl.tasks import TaskSpec, expand_tasks, get_task

Say = Callable[[str], None]


@dataclass
class RunPlan:
    """Everything a run needs to start. train and dev are in the order of `specs`."""

    config: RunConfig
    specs: list[TaskSpec]
    source: EncoderSource
    tokenizer: object
    train: list[EncodedSplit]
    dev: list[EncodedSplit]
    total_steps: int

    @property
    def warmup_steps(self) -> int:
        """Steps of rising learning rate; below 1, train.warmup is a share of all steps."""
        warmup = self.config.train.warmup
        return int(warmup if warmup >= 1 else warmup * self.total_steps)

    @property
    def eval_every(self) -> int:
        """Steps between evaluations; 0: only at the end."""
        every = self.config.train.eval_every
        return _steps_per_epoch(self.config, self.train, self.specs) if every == "epoch" else every

    def super_batches(self, rank: int = 0, world_size: int = 1) -> SuperBatches:
        """Return the training batches of one rank."""
        train = self.config.train
        return SuperBatches(
            self.train,
            self.specs,
            self.config.mixture,
            train.batch_size,
            self.config.run.seed,
            rank,
            world_size,
            train.accumulation,
            self.total_steps,
        )

    @property
    def contaminated(self) -> list[str]:
        """Tasks of this run that the encoder's weights have seen, or may have seen, before."""
        return [spec.name for spec in self.specs if spec.name in self.source.seen_tasks]


def make_plan(config: RunConfig, specs: list[TaskSpec], say: Say) -> RunPlan:
    """Return the plan of a run over `specs`; tokenises what is not in the cache yet.

    Raises UserError for whatever the user can mend: encoder, data, labels, lengths.
    """
    from transformers import AutoTokenizer

    try:
        if config.start.model is not None:
            source = trained_source(Path(config.start.model))
        else:
            source = find_encoder(config.model.encoder)
        if source.note:
            say(f"note: {source.note}")
        tokenizer = AutoTokenizer.from_pretrained(source.folder)
    except (ValueError, OSError) as error:
        raise UserError(str(error).strip().splitlines()[0]) from error
    sample = (config.data.sample, config.data.sample_seed) if config.data.sample else None
    train, dev = [], []
    for spec in specs:
        splits = [
            encode_task(
                spec,
                split,
                tokenizer,
                config.data.root,
                config.data.cache,
                config.train.max_length,
                limit,
                config.run.seed,
                drawn,
            )
            for split, limit, drawn in (
                ("train", config.train.limit_examples, sample),
                ("dev", config.train.limit_dev, None),
            )
        ]
        train.append(splits[0])
        dev.append(splits[1])
        say(f"data: {describe(spec, *splits)}")
    steps = _total_steps(config, train, specs)
    return RunPlan(config, specs, source, tokenizer, train, dev, steps)


def task_specs(config: RunConfig) -> list[TaskSpec]:
    """Return the rows of config.tasks in order, groups replaced by their members."""
    specs: dict[str, TaskSpec] = {}
    for entry in config.tasks:
        if isinstance(entry, OwnTask):
            specs[entry.name] = own_spec(entry)
        else:
            specs.update((name, get_task(name)) for name in expand_tasks([entry]))
    return list(specs.values())


def single_plans(plan: RunPlan) -> list[RunPlan]:
    """Return one plan a task, each under run.dir/<task>, for model.kind single."""
    plans = []
    for i, (spec, entry) in enumerate(zip(plan.specs, _entries(plan), strict=True)):
        config = plan.config.model_copy(
            update={
                "run": plan.config.run.model_copy(
                    update={"dir": str(Path(plan.config.run.dir) / spec.name)}
                ),
                "tasks": (entry,),
            }
        )
        train, dev = [plan.train[i]], [plan.dev[i]]
        steps = _total_steps(config, train, [spec])
        plans.append(
            replace(plan, config=config, specs=[spec], train=train, dev=dev, total_steps=steps)
        )
    return plans


def _entries(plan: RunPlan) -> list[str | OwnTask]:
    own = {entry.name: entry for entry in plan.config.tasks if isinstance(entry, OwnTask)}
    return [own.get(spec.name, spec.name) for spec in plan.specs]


def routing_options(config: RunConfig, num_tasks: int) -> RoutingOptions:
    """Return the MoE layers' options for a run over so many tasks."""
    moe = config.moe
    return RoutingOptions(
        num_experts=moe.num_experts,
        num_gates=num_tasks if config.model.kind == "mt_tag" else 1,
        gate_scale=moe.gate_scale,
        dispatch=moe.dispatch,
        capacity_factor=moe.capacity_factor,
        load_balance_loss=moe.load_balance_loss,
        router_z_loss=moe.router_z_loss,
        jitter=moe.jitter,
        impl=moe.impl,
        gate_embedding=moe.gate_embedding,
    )


def _total_steps(config: RunConfig, train: list[EncodedSplit], specs: list[TaskSpec]) -> int:
    if config.train.steps is not None:
        return config.train.steps
    return max(1, round(config.train.epochs * _steps_per_epoch(config, train, specs)))


def _steps_per_epoch(config: RunConfig, train: list[EncodedSplit], specs: list[TaskSpec]) -> int:
    counts = [split.num_examples for split in train]
    order = ExampleOrder(config.mixture, specs, counts, config.train.batch_size, config.run.seed)
    return order.steps_per_epoch
