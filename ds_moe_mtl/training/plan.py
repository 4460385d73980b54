"""What a run will train: tasks, encoder, tokenised data; made before any process group starts."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from ds_moe_mtl.config import KnownTask, OwnTask, RunConfig, UserError
from ds_moe_mtl.config.levers import tell_idle
from ds_moe_mtl.data import EncodedSplit, SuperBatches, checked_tasks, describe, encode_task
from ds_moe_mtl.data.check import TaskFaults
from ds_moe_mtl.data.mixture import ExampleOrder
from ds_moe_mtl.models import RoutingOptions
from ds_moe_mtl.models.description import model_folder, read_description
from ds_moe_mtl.models.pretrained import (
    EncoderSource,
    find_encoder,
    generates,
    source_limits,
    trained_source,
)
from ds_moe_mtl.models.task_fit import balanced, check_lengths, fitting_rows
from ds_moe_mtl.models.tokenizer import load_tokenizer
from ds_moe_mtl.tasks import TaskSpec
from ds_moe_mtl.training.run_folder import task_folder

Say = Callable[[str], None]


@dataclass
class RunPlan:
    """Everything a run needs to start. train, dev and test are in the order of `specs`.

    test: scored once, with the finished model; None for a task without such rows. kept: tasks that
    the network has beside them, after them, and that are not trained.
    """

    config: RunConfig
    specs: list[TaskSpec]
    source: EncoderSource
    tokenizer: object
    train: list[EncodedSplit]
    dev: list[EncodedSplit]
    test: list[EncodedSplit | None]
    total_steps: int
    kept: tuple[TaskSpec, ...] = ()

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
    source, tokenizer, specs = fitted(config, specs, say)
    found, faults = [], TaskFaults()
    for spec in specs:
        try:
            found.append(encoded_splits(config, spec, tokenizer))
        except UserError as error:
            if config.data.root is None and not spec.is_own:
                raise  # where the Hub fails once, it fails for all
            faults.add(spec.name, [str(error)])
        else:
            say(f"data: {describe(spec, *found[-1])}")
    faults.check()
    train, dev, test = (list(column) for column in zip(*found, strict=True))
    specs = [balanced(spec, split) for spec, split in zip(specs, train, strict=True)]
    steps = _total_steps(config, train, specs)
    tell_idle(config, steps, say)
    kept = kept_tasks(config, specs)
    plan = RunPlan(config, specs, source, tokenizer, train, dev, test, steps, kept)
    if plan.contaminated:
        say(f"note: the encoder has seen, or may have seen, data of {', '.join(plan.contaminated)}")
    return plan


def fitted(
    config: RunConfig, specs: list[TaskSpec], say: Say
) -> tuple[EncoderSource, object, list[TaskSpec]]:
    """Return a run's encoder, its tokenizer, and the rows as they go with it; no weights."""
    try:
        if config.start.model is not None:
            source = trained_source(Path(config.start.model))
        else:
            source = find_encoder(config.model.encoder)
        if source.note:
            say(f"note: {source.note}")
        specs = fitting_rows(specs, config.start.model is None and generates(source), config)
        tokenizer = load_tokenizer(source.folder, source_limits(source))
    except (ValueError, OSError) as error:
        raise UserError(str(error).strip().splitlines()[0]) from error
    check_lengths(config, specs, tokenizer.model_max_length, say)
    if config.train.max_length is not None:  # the model's rows: it predicts as it was trained
        specs = [replace(spec, max_length=config.train.max_length) for spec in specs]
    return source, tokenizer, specs


def encoded_splits(config: RunConfig, spec: TaskSpec, tokenizer) -> list[EncodedSplit | None]:
    """Return a task's train, dev and test rows as a run reads them; None where it has no test."""
    train, data = config.train, config.data
    where = (tokenizer, data.root, data.cache, train.max_length)
    sample = (data.sample, data.sample_seed) if data.sample else None
    return [
        encode_task(spec, "train", *where, train.limit_examples, config.run.seed, sample),
        encode_task(spec, "dev", *where, train.limit_dev, config.run.seed),
        encode_task(spec, "test", *where) if spec.test_file else None,
    ]


def kept_tasks(config: RunConfig, specs: list[TaskSpec]) -> tuple[TaskSpec, ...]:
    """Return the tasks of start.model that stay in the model and are not of this run."""
    if not config.start.keep_tasks:
        return ()
    here = {spec.name for spec in specs}
    rows = read_description(model_folder(Path(config.start.model)))["tasks"]
    return tuple(TaskSpec.from_dict(row) for row in rows if row["name"] not in here)


def task_specs(config: RunConfig) -> list[TaskSpec]:
    """Return the rows of config.tasks in order, groups replaced by their members.

    A task that is in a group and has an entry of its own has what that entry says. Raises
    UserError, a line a task, for what is wrong with their data (data.check).
    """
    return [task.spec for task in checked_tasks(config.task_rows, config.data.root)]


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
        train, dev, test = ([splits[i]] for splits in (plan.train, plan.dev, plan.test))
        steps = _total_steps(config, train, [spec])
        parts = {"specs": [spec], "train": train, "dev": dev, "test": test}
        plans.append(replace(plan, config=config, total_steps=steps, **parts))
    return plans


def _entries(plan: RunPlan) -> list[str | OwnTask | KnownTask]:
    rows = [entry for entry in plan.config.task_rows if not isinstance(entry, str)]
    own = {entry.name: entry for entry in rows}
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
