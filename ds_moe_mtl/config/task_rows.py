"""What an entry of `tasks` may be: a name, a known task with values changed, a row of own data."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, ValidationError
from pydantic import model_validator as _model_validator

from ds_moe_mtl.config.section import Count, Name, Section, Text, Weight, as_columns, as_tuple

ClassName = str | int | float | bool  # as YAML reads it
_LONGEST_NAME = 100  # of a task: folders and files are called by it
Classes = Annotated[tuple[ClassName, ...], Field(min_length=2), BeforeValidator(as_tuple)]
Metrics = Annotated[tuple[Text, ...], Field(min_length=1), BeforeValidator(as_tuple)]
ClassWeights = Literal["balanced"] | dict[str | int | float, Weight]


def check_metrics(task: "OwnTask | KnownTask") -> None:
    """Raise ValueError for a row that names its metric twice over."""
    if task.metric is not None and task.metrics is not None:
        raise ValueError(
            f"tasks: {task.name!r} has metric and metrics; allowed: one of them (the first of "
            "metrics selects)"
        )


class OwnTask(Section):
    """A user's own data as one row: files (or splits of a set of the Hub), columns, the label."""

    name: Name
    hub: Text | None = None  # a data set of the Hub: train and dev are then its splits
    hub_config: Text | None = None  # its configuration; null: the only one
    train: Text  # csv, tsv, jsonl, parquet, conll or bio
    dev: Text | None = None  # null: a seeded part of train
    dev_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    dev_by: Literal["label", "text"] = "label"  # text: cut by the texts alone, not class by class
    test: Text | None = None  # scored once, at the end, with the model that is kept
    text: Annotated[
        tuple[Text, ...], Field(min_length=1, max_length=2), BeforeValidator(as_columns)
    ]
    # Several columns of yes or no: one task of several labels, or with `separate` a task for each.
    label: Text | Annotated[tuple[Text, ...], Field(min_length=2), BeforeValidator(as_tuple)]
    separate: bool = False
    kind: Literal["classification", "regression", "text", "multilabel", "tags", "answer"] | None = (
        None  # null: by the columns
    )
    labels: Classes | None = None  # their order; others in the data are faults; null: sorted
    separator: Text = ","  # of labels in one text, with kind multilabel
    options: Text | None = None  # column with the list of options that the label is one of
    answer_start: Text | None = None  # column with an answer's first character; kind answer
    longest_answer: Count = 30  # tokens of the longest answer that is given; kind answer
    metric: Text | None = None  # null: the first of its kind's
    metrics: Metrics | None = None  # several; the first selects
    max_length: Annotated[int, Field(ge=8)] | None = None
    prefix: str = ""  # before the first text
    class_weights: ClassWeights | None = None  # of the loss
    loss_weight: Weight = 1.0
    sampling_weight: Weight = 1.0
    # Of the labels' probabilities, kind multilabel; null: one a label, chosen on the dev rows.
    threshold: Annotated[float, Field(gt=0, lt=1)] | None = None

    @_model_validator(mode="after")
    def _name_is_a_files(self) -> "OwnTask":
        if len(self.name) > _LONGEST_NAME:
            raise ValueError(
                f"tasks: the name {self.name[:20]}... has {len(self.name)} characters; "
                f"allowed: at most {_LONGEST_NAME}"
            )
        return self

    @_model_validator(mode="after")
    def _keys_go_together(self) -> "OwnTask":
        several = not isinstance(self.label, str)
        if self.kind is not None and self.options is not None:
            raise ValueError(
                f"tasks: {self.name!r} has kind = {self.kind} and options; allowed: one of them"
            )
        if self.hub_config is not None and self.hub is None:
            raise ValueError(
                f"tasks: {self.name!r} has hub_config = {self.hub_config} and no hub; allowed: both"
            )
        check_metrics(self)
        if self.separate and not several:
            raise ValueError(
                f"tasks: {self.name!r} has separate = true with one label column; allowed: a list "
                "of them, as in label: [food, service]"
            )
        if several and not self.separate and self.labels is not None:
            raise ValueError(
                f"tasks: {self.name!r} has labels beside several label columns, whose order it is; "
                "allowed: label alone"
            )
        if several and not self.separate and self.kind not in (None, "multilabel"):
            raise ValueError(
                f"tasks: {self.name!r} has kind = {self.kind} with several label columns; allowed: "
                "multilabel, or separate: true for a task a column"
            )
        return self

    @property
    def rows(self) -> tuple["OwnTask", ...]:
        """The row itself, or with `separate` one row a label column: <name>_<column>.

        Their dev rows are cut by the texts alone, so that they are the same.
        """
        if not self.separate:
            return (self,)
        return tuple(
            OwnTask.model_validate(
                {
                    **self.model_dump(),
                    "name": f"{self.name}_{column}",
                    "label": column,
                    "separate": False,
                    "dev_by": "text",
                }
            )
            for column in self.label
        )


class KnownTask(Section):
    """A known task, by its name, with some of its row's values changed."""

    name: Name
    metric: Text | None = None
    metrics: Metrics | None = None
    max_length: Annotated[int, Field(ge=8)] | None = None
    prefix: str = ""
    class_weights: ClassWeights | None = None
    loss_weight: Weight = 1.0
    sampling_weight: Weight = 1.0

    @_model_validator(mode="after")
    def _metrics_once(self) -> "KnownTask":
        check_metrics(self)
        return self

    @property
    def rows(self) -> tuple["KnownTask", ...]:
        """The row itself; see OwnTask."""
        return (self,)


def _entry_tag(entry: Any) -> str:
    """Return which kind of entry of `tasks` this is to be read as."""
    if isinstance(entry, dict):
        known = "name" in entry and entry.keys() <= KnownTask.model_fields.keys()
        return "changed" if known else "own"
    return {OwnTask: "own", KnownTask: "changed"}.get(type(entry), "known")


TaskEntry = Annotated[
    Annotated[Name, Tag("known")]
    | Annotated[OwnTask, Tag("own")]
    | Annotated[KnownTask, Tag("changed")],
    Discriminator(_entry_tag),
]


def distinct_tasks(tasks: tuple[TaskEntry, ...]) -> tuple[TaskEntry, ...]:
    """Return the tasks; their names lead to gates, folders and results, so they differ."""
    names = []
    for task in tasks:
        names += [task] if isinstance(task, str) else [row.name for row in _checked_rows(task)]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"tasks names {name!r} twice; allowed: each task once")
    return tasks


def _checked_rows(task: OwnTask | KnownTask) -> tuple[OwnTask | KnownTask, ...]:
    """Return a task's rows. Raises ValueError for a label column that no task can be called by."""
    try:
        return task.rows
    except ValidationError:
        raise ValueError(
            f"tasks: {task.name!r}: a label column is no part of a name; allowed with separate: "
            "columns of letters, digits and _+-"
        ) from None
