"""What a run is, as typed and frozen sections: one section of the YAML, one class.

Every default of a run lives here, those of a row of `tasks` in task_rows, and nowhere else. What
needs other keys of the same section is checked in that section; what needs several sections is
checked in RunConfig.
"""

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic import model_validator as _model_validator

from ds_moe_mtl.config.elastic import elastic_conflict
from ds_moe_mtl.config.levers import check_levers
from ds_moe_mtl.config.recorded import graphs_conflict
from ds_moe_mtl.config.section import (
    Count,
    CountOrZero,
    NotNegative,
    Positive,
    Section,
    Seed,
    Text,
    as_columns,
    as_tuple,
)
from ds_moe_mtl.config.task_rows import KnownTask, OwnTask, TaskEntry, distinct_tasks

Tracker = Literal["tensorboard", "wandb", "trackio", "mlflow"]
HookName = Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]


class RunSection(Section):
    """Where the run writes, its seed, and whether it continues what lies there."""

    dir: Text
    seed: Seed = 0
    resume: Text = "auto"  # auto | never | the folder of a checkpoint
    extend: bool = False  # true: a complete run goes on to more steps, at another rate perhaps
    elastic: bool = False  # true: it goes on with the ranks that there are, at an ep_size that fits


class DataSection(Section):
    """Where the examples come from and where their tokens are cached."""

    root: Text | None = None  # a local folder | null: the Hub | "embedded": the shipped suite
    cache: Text | None = None  # null: <XDG cache>/ds_moe_mtl
    # The share of each task's published training examples that is used, drawn class by class.
    sample: Annotated[float, Field(gt=0, lt=1)] | None = None
    sample_seed: Seed = 0  # of that draw alone: seeds of a run share their sample


class MixtureSection(Section):
    """How often each task is drawn and how its examples meet in a super-batch."""

    sampling: Literal["natural", "uniform", "temperature", "uniform_then_natural"] = "natural"
    # Rate proportional to size ** (1 / temperature); far below 1 the power of a size overflows.
    temperature: Annotated[float, Field(ge=0.1)] = 2.0
    # The share of the steps that are uniform in uniform_then_natural. The paper proposes the
    # schedule without a number (appendix A.4); 0.1 is our choice, the length of the warm-up.
    uniform_fraction: Annotated[float, Field(ge=0, le=1)] = 0.1
    sizes: Literal["published", "loaded"] = "loaded"  # what "natural" is proportional to
    batching: Literal["per_example", "sub_batches", "homogeneous"] = "per_example"
    sub_batches: Count = 4  # task-pure batches in a super-batch, whatever the number of ranks


class ModelSection(Section):
    """Which of the compared systems is trained, from which encoder."""

    kind: Literal["single", "mt_dense", "mt_switch", "mt_tag", "task_moe"] = "mt_tag"
    encoder: Text = "minilm"  # minilm | a Hub id | a folder
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1  # paper, section 4.4
    pooler: bool = False  # false: the paper's linear head on [CLS]


class StartSection(Section):
    """Stage two: a trained model whose weights the run starts from, instead of an encoder's."""

    model: Text | None = None  # a model folder or a finished run's; it gives the encoder
    # Of mt_tag: own | random | the task whose gate the tasks here begin with; or one of these a
    # task, own for those that are not named.
    gate: Text | dict[Text, Text] = "own"
    head: Literal["auto", "keep", "new"] = "auto"  # auto: kept where the model has the task
    keep_tasks: bool = False  # true: the model's other tasks stay in it, without training
    train: Literal["all", "new"] = "all"  # new: gates and heads of tasks that the model lacks

    @_model_validator(mode="after")
    def _needs_a_model(self) -> "StartSection":
        for key in ("gate", "head", "keep_tasks", "train"):
            value = getattr(self, key)
            if self.model is None and value != type(self).model_fields[key].default:
                raise ValueError(
                    f"start.{key} = {value} without start.model; allowed: start.model=FOLDER, "
                    f"which has what start.{key} is about"
                )
        return self


class MoeSection(Section):
    """The sparse layer: experts, gates, and how tokens reach them."""

    num_experts: Count = 4  # paper, section 4.4
    gate_scale: Literal["paper", "preserve"] = "preserve"
    dispatch: Literal["dropless", "capacity"] = "dropless"
    ep_size: Count = 1  # ranks that share one set of experts
    exchange: Literal["flat", "hierarchical"] = "flat"  # of rows between them
    capacity_factor: Positive = 1.25  # read by dispatch: capacity only
    load_balance_loss: NotNegative = 0.0  # weights of the losses; 0: off, as in the paper
    router_z_loss: NotNegative = 0.0
    jitter: Annotated[float, Field(ge=0, lt=1)] = 0.0  # width of the multiplicative input noise
    expert_noise: NotNegative = 0.0  # standard deviation added to the copied experts
    expert_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0  # between an expert's two layers
    gate_embedding: CountOrZero = 0  # width of task vectors that generate the gates; 0: free gates
    # Share of the way to their mean that a layer's experts go in a step; follows train.lr's course.
    expert_pull: Annotated[float, Field(ge=0, lt=1)] = 0.0
    gate_momentum: bool = True  # false: gates of absent tasks do not move (appendix A.4)
    combine: Literal["top1", "merged"] = "top1"  # merged: a task's FFN is a mixture of experts
    shared_share: Annotated[float, Field(ge=0, lt=1)] = 0.0  # of the neurons: they see every token
    gate_lr: Positive | None = None  # of the gates; follows train.lr's course; null: train.lr
    gate_init: Literal["small", "spread"] = "small"  # small: paper, section 4.4
    route_by: Literal["token", "sequence"] = "token"
    tied_steps: CountOrZero = 0  # steps in which experts are one, before they part
    layers: (
        Annotated[tuple[CountOrZero, ...], Field(min_length=1), BeforeValidator(as_tuple)]
        | Literal["all", "last_half", "every_other"]
    ) = "all"  # that have experts; numbers from 0
    impl: Literal["auto", "torch", "triton", "cuda"] = "auto"

    @_model_validator(mode="after")
    def _experts_divide(self) -> "MoeSection":
        if self.num_experts % self.ep_size:
            raise ValueError(
                f"moe.num_experts = {self.num_experts} is not divisible by "
                f"moe.ep_size = {self.ep_size}; allowed: an ep_size that divides num_experts"
            )
        if self.exchange == "hierarchical" and self.ep_size < 4:
            raise ValueError(
                f"moe.exchange = hierarchical with moe.ep_size = {self.ep_size}: rows are gathered "
                "where several hosts have several ranks each; allowed: flat, or an ep_size from 4 "
                "on"
            )
        if not isinstance(self.layers, str) and len(set(self.layers)) != len(self.layers):
            raise ValueError("moe.layers names a layer twice; allowed: each layer once")
        check_levers(self, "moe.")
        return self


class RouterSection(Section):
    """Task-level experts (model.kind task_moe): whole layers, one route a (task, layer).

    Numbers: public code of Ye, Zha and Ren (CrossTaskMoE), where nothing else is said.
    """

    experts: Annotated[int, Field(ge=2)] = 3
    layers: Annotated[tuple[CountOrZero, ...], BeforeValidator(as_tuple)] | None = None  # from 0
    route: Literal["learned", "average", "random_task", "random_instance"] = "learned"
    net: Literal["linear", "mlp", "lstm", "transformer"] = "mlp"
    hidden: Annotated[int, Field(ge=4, multiple_of=4)] = 64
    selection: Literal["softmax", "gumbel", "straight_through"] = "straight_through"
    temperature: Positive = 2.0
    temperature_min: Positive = 0.1
    temperature_decay: NotNegative = 3e-4  # temperature = max(start * exp(-decay * step), min)
    vectors: Text = "random"  # random | a file that `ds-moe-mtl crossfit vectors` wrote
    vector_size: Count = 128  # of random vectors
    freeze_vectors: bool = False
    lr: Positive = 1e-3  # of the router, with train.lr's warm-up and decay
    vectors_lr: Positive = 1e-2
    clip: NotNegative | None = None  # of router and vectors alone; null: together with the model
    expert_noise: NotNegative = 1e-8  # standard deviation added to the copied layers
    routes_from: Text | None = None  # stage 2: a run or model folder whose routes are taken, frozen

    @_model_validator(mode="after")
    def _temperature_falls(self) -> "RouterSection":
        if self.temperature_min > self.temperature:
            raise ValueError(
                f"router.temperature_min = {self.temperature_min:g} is above "
                f"router.temperature = {self.temperature:g}; allowed: at most as high"
            )
        if self.layers is not None and len(set(self.layers)) != len(self.layers):
            raise ValueError("router.layers names a layer twice; allowed: each layer once")
        if self.layers == ():
            raise ValueError("router.layers is empty; allowed: null (all layers), or some of them")
        if self.routes_from is not None and self.route != "learned":
            raise ValueError(
                f"router.routes_from with router.route = {self.route}; allowed: route learned"
            )
        return self


class TrainSection(Section):
    """How long, how fast and in which precision the run trains, and what it keeps."""

    steps: Count | None = None  # exactly one of steps and epochs
    epochs: Positive | None = None
    batch_size: Annotated[int, Field(ge=1, le=1_000_000)] = (
        128  # examples a step over all ranks; paper, appendix A.3.2
    )
    accumulation: Count = 1  # micro-batches a step on each rank
    lr: Positive = 1e-4  # in the paper's grid, appendix A.3.2
    warmup: NotNegative = 0.1  # below 1: share of the steps; from 1: steps
    weight_decay: NotNegative = 0.0
    betas: Annotated[
        tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]],
        BeforeValidator(as_tuple),
    ] = (0.9, 0.999)  # paper, appendix A.3.2, as eps
    eps: Positive = 1e-8
    clip: NotNegative = 1.0  # largest norm of the gradient; 0: no clipping
    loss_scaling: bool = True  # classification losses over log(classes); paper, section 3.3
    max_length: Annotated[int, Field(ge=8)] | None = None  # tokens; null: each task's own
    limit_examples: Count | None = None  # training examples a task
    limit_dev: Count | None = None  # dev examples a task
    # Steps; epoch: once a pass; 0: at the end; null: epoch where a task is a user's own, else 0.
    eval_every: CountOrZero | Literal["epoch"] | None = None
    select: Literal["last", "dev_score", "dev_loss"] = "last"  # which evaluated model is kept
    patience: CountOrZero = 0  # evaluations without a better one that end the run; 0: none
    # The share of the steps after which weights are averaged; null: the last ones are the run's.
    average_from: Annotated[float, Field(ge=0, lt=1)] | None = None
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0  # of generated answers
    log_every: Count = 10  # steps
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    # The encoder's layers: torch's own kernels, ours, or ours where verified on that kind of card.
    encoder_kernels: Literal["auto", "torch", "triton"] = "auto"
    update_kernels: Literal["auto", "torch", "triton"] = "auto"  # the optimizer's step, likewise
    save_every: CountOrZero = 0  # steps; 0: only at the end or when stopped
    keep_checkpoints: CountOrZero = 1  # 0: one while the run lasts, none of a complete run
    max_skipped: CountOrZero = 100  # steps in a row whose loss or gradient is not finite
    hang_timeout: Positive = 1800.0  # seconds without progress after which all ranks end
    threads: Annotated[int, Field(ge=1, le=1024)] | None = (
        None  # CPU threads a rank; null: torch's own choice
    )
    activation_checkpointing: bool = False  # true: layers are computed again in the backward pass
    profile: CountOrZero = 0  # steps to trace with torch.profiler; 0: none
    fill_tokens: Count = 1  # a micro-batch's tokens are filled up to a multiple of it
    cuda_graphs: bool = False  # true: the encoder's passes are recorded once a shape

    @_model_validator(mode="after")
    def _one_length_and_whole_warmup(self) -> "TrainSection":
        if self.steps is None and self.epochs is None:
            raise ValueError("train.steps and train.epochs are both unset; set exactly one of them")
        if self.steps is not None and self.epochs is not None:
            raise ValueError(
                f"train.steps = {self.steps} and train.epochs = {self.epochs:g} are both set; "
                "set exactly one of them (the other to null)"
            )
        if self.warmup >= 1 and self.warmup != int(self.warmup):
            raise ValueError(
                f"train.warmup = {self.warmup:g}; allowed: a share of the steps below 1, "
                "or a whole number of steps"
            )
        if self.steps is not None and self.warmup > self.steps:
            raise ValueError(
                f"train.warmup = {self.warmup:g} is longer than train.steps = {self.steps}"
            )
        if self.select != "last" and self.eval_every == 0:
            raise ValueError(
                f"train.select = {self.select} with train.eval_every = 0; allowed: a number of "
                "steps or epoch"
            )
        if self.patience and self.select == "last":
            raise ValueError(
                f"train.patience = {self.patience} with train.select = last; "
                "allowed: train.select = dev_score or dev_loss"
            )
        if self.average_from is not None and self.select != "last":
            raise ValueError(
                f"train.average_from = {self.average_from:g} with train.select = {self.select}; "
                "allowed: train.select = last (the average is what is kept)"
            )
        if self.batch_size < self.accumulation:
            raise ValueError(
                f"train.batch_size = {self.batch_size} is smaller than "
                f"train.accumulation = {self.accumulation}; allowed: at least one example each"
            )
        return self


class RunConfig(Section):
    """One run, complete: what the YAML and its overrides say, with every default filled."""

    run: RunSection
    data: DataSection = DataSection()
    tasks: Annotated[
        tuple[TaskEntry, ...],
        Field(min_length=1),
        BeforeValidator(as_tuple),
        AfterValidator(distinct_tasks),
    ]
    mixture: MixtureSection = MixtureSection()
    model: ModelSection = ModelSection()
    start: StartSection = StartSection()
    moe: MoeSection = MoeSection()
    train: TrainSection
    router: RouterSection = RouterSection()
    deepspeed: Text = "ds_configs/deepspeed/zero1.json"
    track: Annotated[tuple[Tracker, ...], BeforeValidator(as_columns)] = ("tensorboard",)
    # Classes or functions of a user's own, as mypackage.module:Hook, called with each run.
    hooks: Annotated[tuple[HookName, ...], BeforeValidator(as_columns)] = ()

    @property
    def eval_every(self) -> int | Literal["epoch"]:
        """Steps between evaluations; epoch: once a pass; 0: only at the end."""
        if self.train.eval_every is not None:
            return self.train.eval_every
        return "epoch" if any(isinstance(task, OwnTask) for task in self.tasks) else 0

    @property
    def task_rows(self) -> tuple[str | OwnTask | KnownTask, ...]:
        """The tasks, each row of several label columns as its rows of one."""
        return tuple(
            row for task in self.tasks for row in ((task,) if isinstance(task, str) else task.rows)
        )

    @property
    def clips_apart(self) -> bool:
        """Whether the task router's gradient has a norm and a bound of its own."""
        return self.model.kind == "task_moe" and self.router.clip is not None

    @_model_validator(mode="after")
    def _something_is_evaluated_to_select(self) -> "RunConfig":
        if self.train.select != "last" and not self.eval_every:
            raise ValueError(
                f"train.select = {self.train.select} without train.eval_every; allowed: a number "
                "of steps or epoch"
            )
        return self

    @_model_validator(mode="after")
    def _other_ranks_train_the_same(self) -> "RunConfig":
        conflict = elastic_conflict(self)
        if conflict is not None:
            raise ValueError(conflict)
        return self

    @_model_validator(mode="after")
    def _tied_experts_are_copies(self) -> "RunConfig":
        if self.moe.tied_steps and self.start.model is not None:
            raise ValueError(
                f"moe.tied_steps = {self.moe.tied_steps} with start.model = {self.start.model}, "
                "whose experts have parted; allowed: 0"
            )
        return self

    @_model_validator(mode="after")
    def _recorded_passes_decide_nothing(self) -> "RunConfig":
        conflict = graphs_conflict(self)
        if conflict is not None:
            raise ValueError(conflict)
        if self.model.kind == "task_moe" and self.train.fill_tokens > 1:
            raise ValueError(
                f"train.fill_tokens = {self.train.fill_tokens} with model.kind = task_moe; "
                "allowed: 1 (every sequence has a route)"
            )
        return self

    @_model_validator(mode="after")
    def _task_experts_are_whole(self) -> "RunConfig":
        if self.model.kind == "task_moe" and self.moe.ep_size != 1:
            raise ValueError(
                f"moe.ep_size = {self.moe.ep_size} with model.kind = task_moe; allowed: 1 (its "
                "experts are whole layers on every rank)"
            )
        if self.model.kind == "task_moe" and self.train.activation_checkpointing:
            raise ValueError(
                "train.activation_checkpointing = true with model.kind = task_moe; allowed: false"
            )
        if self.run.extend and self.run.resume == "never":
            raise ValueError("run.extend = true with run.resume = never; allowed: auto")
        if self.run.extend and (self.model.kind == "single" or self.train.average_from is not None):
            key = "model.kind = single" if self.model.kind == "single" else "train.average_from"
            raise ValueError(f"run.extend = true with {key}; allowed: false")
        if self.start.train == "new" and self.moe.ep_size > 1:
            raise ValueError(
                f"moe.ep_size = {self.moe.ep_size} with start.train = new, where no expert is "
                "trained; allowed: 1"
            )
        if self.start.train == "new" and self.moe.expert_pull:
            raise ValueError(
                f"moe.expert_pull = {self.moe.expert_pull} with start.train = new, where no expert "
                "moves; allowed: 0"
            )
        if self.start.keep_tasks and self.model.kind == "single":
            raise ValueError(
                "start.keep_tasks with model.kind = single, a model a task; allowed: false"
            )
        if self.model.kind == "task_moe" and self.start.model is not None:
            raise ValueError(
                f"start.model = {self.start.model} with model.kind = task_moe; allowed: null "
                "(router.routes_from takes routes, ds-moe-mtl crossfit tune a whole model)"
            )
        return self
