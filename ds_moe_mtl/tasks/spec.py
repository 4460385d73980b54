"""A task is a row: what is read, how it is put to the encoder, how it is scored."""

import dataclasses
from dataclasses import dataclass

KINDS = (
    *("classification", "regression", "ranking", "span", "options", "text"),
    *("multilabel", "tags", "answer"),
)
TOKEN_KINDS = ("tags", "answer")
"""Kinds whose head reads tokens, not [CLS]: outputs a unit, a word or a token of the context."""

# Sec. 4.2 of "Sparsely Activated MoE are Robust Multi-Task Learners": small tasks have at most
# 10k training examples.
SMALL_TASK_EXAMPLES = 10_000


@dataclass(frozen=True)
class TaskSpec:
    """One task: its columns, labels, metric, length and where its splits are found.

    kind: "classification" (one of `labels`), "regression" (a number), "ranking" (which of the
    `choices` columns; each is encoded by itself, label 1 = the right one), "span"
    (classification of [CLS] together with one word in each of two texts), "options" (which item
    of the list in column choices[0] the answer `label` is; one score an item, from a head that
    all such tasks share), "text" (the answer is generated), "multilabel" (any number of `labels`),
    "tags" (one of `labels` for each word of a list), "answer" (a part of the second text, which
    the first one asks for).
    """

    name: str
    kind: str
    text: tuple[str, ...]  # one or two text columns
    label: str = "label"
    labels: tuple[str, ...] = ()  # class names in the order of their numbers
    metric: str = "accuracy"
    max_length: int = 128  # tokens, special ones included
    published_size: int = 0  # training examples of the published split; 0 = unknown
    published_dev_size: int = 0  # examples of the published dev splits; 0 = unknown
    hub: tuple[str, str] | None = None  # data set and configuration
    folder: str = ""  # below a local data root
    train_split: str = "train"
    dev_splits: tuple[str, ...] = ("validation",)
    joined: str = ""  # column whose text follows the first text, in the same segment
    phrases: tuple[tuple[str, str], ...] = ()  # how a value of `joined` is put into words
    choices: tuple[str, ...] = ()  # ranking: the columns of the candidates
    spans: tuple[str, ...] = ()  # span: start1, end1, start2, end2 (characters, end exclusive)
    stand_ins: tuple[tuple[str, str], ...] = ()  # split -> local file used where it is missing
    generated: bool = False  # a task of the embedded suite
    train_file: str = ""  # a user's own data
    dev_file: str = ""
    dev_fraction: float = 0.1  # cut from train_file where there is no dev_file
    test_file: str = ""  # scored once, with the finished model
    dev_by: str = "label"  # how dev rows are cut: every class alike, or by the "text" alone
    label_columns: tuple[str, ...] = ()  # multilabel: a column of yes or no for each label
    separator: str = ","  # multilabel: what stands between labels that are one text
    answer_start: str = ""  # answer: the column with its first character in the context
    longest_answer: int = 30  # answer: tokens of the longest that is given
    prefix: str = ""  # stands before the first text
    metrics: tuple[str, ...] = ()  # all that are told, `metric` first; empty: `metric` alone
    class_weights: tuple[float, ...] = ()  # of the loss, in the order of labels; empty: all 1
    balanced: bool = False  # class_weights are to follow from the training rows
    loss_weight: float = 1.0
    sampling_weight: float = 1.0
    threshold: float | None = None  # multilabel: of every label; None: chosen on the dev rows
    thresholds: tuple[float, ...] = ()  # the labels' own, once chosen

    @property
    def num_outputs(self) -> int:
        """Numbers the task's head gives: its classes, or 1 for a score; for a unit of TOKEN_KINDS.

        An answer's two are the scores of a token as its first and as its last.
        """
        if self.kind == "answer":
            return 2
        return 1 if self.kind in ("regression", "options", "text") else len(self.labels)

    @property
    def all_metrics(self) -> tuple[str, ...]:
        """Every metric that is told, the one that selects first."""
        return self.metrics or (self.metric,)

    @property
    def label_thresholds(self) -> tuple[float, ...]:
        """Multilabel: the probability from which each label is given; 0.5 until they are chosen."""
        if self.threshold is not None:
            return (self.threshold,) * len(self.labels)
        return self.thresholds or (0.5,) * len(self.labels)

    @property
    def is_own(self) -> bool:
        """True for a user's own files: their label values are names, never class numbers."""
        return bool(self.train_file)

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column that is read, the label last."""
        joined = (self.joined,) if self.joined else ()
        inputs = (*self.text, *joined, *self.choices, *self.spans)
        return (*inputs, *self.target_columns)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The columns that an example is made of where nobody knows what is right."""
        if self.kind == "text":
            return self.text
        return self.columns[: -len(self.target_columns)]

    @property
    def target_columns(self) -> tuple[str, ...]:
        """The columns that say what is right."""
        if self.label_columns:
            return self.label_columns
        return (self.answer_start, self.label) if self.answer_start else (self.label,)

    def splits(self, which: str) -> tuple[str, ...]:
        """Names of the splits that make up "train", "dev" or "test"."""
        if which == "test":
            return ("test",)
        return (self.train_split,) if which == "train" else self.dev_splits

    def to_dict(self) -> dict:
        """The row as plain JSON values; `from_dict` gives the same row back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "TaskSpec":
        """The row that `to_dict` wrote, also after a trip through JSON, and before there were
        as many values in it."""
        return cls(**{key: _tuples(value) for key, value in values.items()})


def is_small(spec: TaskSpec) -> bool:
    """True for at most 10k PUBLISHED training examples, whatever subset is loaded."""
    return spec.published_size <= SMALL_TASK_EXAMPLES


def _tuples(value):
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value
