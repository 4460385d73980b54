"""What a run will train: tasks, encoder, tokenised data; made before any process group starts."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from ds_moe_mtl.config import OwnTask, RunConfig, UserError
from ds_moe_mtl.config.levers import tell_idle
from ds_moe_mtl.data import EncodedSplit, SuperBatches, describe, encode_task, own_spec
from ds_moe_mtl.data.mixture import ExampleOrder
from ds_moe_mtl.models import RoutingOptions
from ds_moe_mtl.models.pretrained import (
    EncoderSource,
    find_encoder,
    generates,
    source_limits,
    trained_source,
)
from ds_moe_mtl.models.tokenizer import load_tokenizer
from ds_moe_mtl.tasks import TaskSpec, expand_tasks, get_task
from ds_moe_mtl.tasks.text2text import as_text
from ds_moe_mtl.training.run_folder import task_folder

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
        every = self.config.eval_every
        return _steps_per_epoch(self.config, self.train, self.specs) if every == "epoch" else every

    def super_batches(
        self, rank: int = 0, world_size: int = 1, padded: bool = True, gpu: int | None = None
    ) -> SuperBatches:
        """Return the training batches of one rank; padded and gpu as in SuperBatches."""
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
            padded,
            gpu,
        )

    @property
    def generates(self) -> bool:
        """Whether the model writes its answers instead of choosing them."""
        return any(spec.kind == "text" for spec in self.specs)

    @cached_property
    def contents(self) -> dict[str, dict]:
        """Each task's {"train", "dev": hashes of its rows as tokens, "classes": in order,
        "examples": of train}.
        """
        return {
            spec.name: {
                "train": train.content_hash(),
                "dev": dev.content_hash(),
                "classes": list(spec.labels),
                "examples": train.num_examples,
            }
            for spec, train, dev in zip(self.specs, self.train, self.dev, strict=True)
        }

    @property
    def contaminated(self) -> list[str]:
        """Tasks of this run that the encoder's weights have seen, or may have seen, before."""
        return [spec.name for spec in self.specs if spec.name in self.source.seen_tasks]


def make_plan(config: RunConfig, specs: list[TaskSpec], say: Say) -> RunPlan:
    """Return the plan of a run over `specs`; tokenises what is not in the cache yet.

    Raises UserError for whatever the user can mend: encoder, data, labels, lengths.
    """
    try:
        if config.start.model is not None:
            source = trained_source(Path(config.start.model))
        else:
            source = find_encoder(config.model.encoder)
        if source.note:
            say(f"note: {source.note}")
        specs = _fitting(specs, config.start.model is None and generates(source), config)
        tokenizer = load_tokenizer(source.folder, source_limits(source))
    except (ValueError, OSError) as error:
        raise UserError(str(error).strip().splitlines()[0]) from error
    _check_lengths(config, specs, tokenizer.model_max_length, say)
    if config.train.max_length is not None:  # the model's rows: it predicts as it was trained
        specs = [replace(spec, max_length=config.train.max_length) for spec in specs]
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
    tell_idle(config, steps, say)
    plan = RunPlan(config, specs, source, tokenizer, train, dev, steps)
    if plan.contaminated:
        say(f"note: the encoder has seen, or may have seen, data of {', '.join(plan.contaminated)}")
    return plan


def _check_lengths(config: RunConfig, specs: list[TaskSpec], longest: int, say: Say) -> None:
    """Say where a task's own default is cut to the encoder's positions.

    Raises UserError for a length that was asked for and is more than they are.
    """
    asked = {task.name: task.max_length for task in config.tasks if isinstance(task, OwnTask)}
    if config.train.max_length is not None:
        asked = dict.fromkeys((spec.name for spec in specs), config.train.max_length)
    key = "max_length" if config.train.max_length is None else "train.max_length"
    for name, length in asked.items():
        if length is not None and length > longest:
            raise UserError(
                f"tasks: {name!r}: {key} = {length} tokens; the encoder takes at most {longest}"
            )
    cut = [spec.name for spec in specs if not asked.get(spec.name) and spec.max_length > longest]
    if cut:
        say(f"note: texts of {', '.join(cut)} are cut at {longest} tokens, the encoder's positions")


def _fitting(specs: list[TaskSpec], generate: bool, config: RunConfig) -> list[TaskSpec]:
    """Return the rows as the model takes them: all as text where it generates.

    Raises UserError for a task or a kind of model that does not go with the encoder.
    """
    if not generate:
        text = [spec.name for spec in specs if spec.kind == "text"]
        if text:
            raise UserError(
                f"tasks: {text[0]!r} has free-form answers, which model.encoder = "
                f"{config.model.encoder} cannot give; allowed: tasks with options, or BART"
            )
        return specs
    if config.model.kind not in ("mt_dense", "task_moe"):
        raise UserError(
            f"model.kind = {config.model.kind} with model.encoder = {config.model.encoder}, which "
            f"generates; allowed: mt_dense, task_moe"
        )
    other = [spec.name for spec in specs if spec.kind not in ("options", "text")]
    if other:
        raise UserError(
            f"tasks: {other[0]!r} is no text-to-text task, but model.encoder = "
            f"{config.model.encoder} generates; allowed: gym tasks, gym_train"
        )
    return [as_text(spec) for spec in specs]


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
                    update={"dir": str(task_folder(Path(plan.config.run.dir), spec.name))}
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
    num_gates = num_tasks if config.model.kind == "mt_tag" else 1
    return RoutingOptions.from_section(config.moe, num_gates)


def _total_steps(config: RunConfig, train: list[EncodedSplit], specs: list[TaskSpec]) -> int:
    if config.train.steps is not None:
        return config.train.steps
    return max(1, round(config.train.epochs * _steps_per_epoch(config, train, specs)))


def _steps_per_epoch(config: RunConfig, train: list[EncodedSplit], specs: list[TaskSpec]) -> int:
    counts = [split.num_examples for split in train]
    order = ExampleOrder(config.mixture, specs, counts, config.train.batch_size, config.run.seed)
    return order.steps_per_epoch
