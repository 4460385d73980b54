"""Configuration of a multi-task encoder for transformers; this file travels with the weights.

It needs transformers alone. The keys are those of a ds_moe_mtl model folder, and beside them the
task in use and what transformers says of one task: its labels and its type of problem.
"""

from transformers import PreTrainedConfig

_LABELS = {"regression": ["score"], "options": ["score"], "answer": ["first", "last"]}
"""Labels of the kinds of tasks that have none of their own."""

_PROBLEMS = {
    "regression": "regression",
    "options": "regression",
    "multilabel": "multi_label_classification",
    "answer": None,
    "tags": None,
}
"""transformers' problem_type by kind; single_label_classification for the others."""


class DsMoeMtlConfig(PreTrainedConfig):
    """What a model of many tasks is. Setting `task` sets id2label and problem_type too.

    encoder: configuration of the transformers encoder; heads and tasks: one row a task, in order;
    routing: options of the sparse layers, None without; sparse_layers: their numbers from 0;
    shared_neurons: of their FFN, those that see every token; gate_of_task: each task's gate.
    """

    model_type = "ds_moe_mtl"

    def __init__(
        self,
        encoder=None,
        heads=(),
        tasks=(),
        routing=None,
        gate_of_task=(),
        pooler=False,
        sparse_layers=(),
        shared_neurons=0,
        task=None,
        **kwargs,
    ):
        self.encoder = dict(encoder or {})
        self.heads = list(heads)
        self.tasks = list(tasks)
        self.routing = routing
        self.gate_of_task = list(gate_of_task)
        self.pooler = pooler
        self.sparse_layers = list(sparse_layers)
        self.shared_neurons = shared_neurons
        super().__init__(**kwargs)
        self.task = task if task is not None or not self.tasks else self.tasks[0]["name"]

    @property
    def hidden_size(self):
        """Width of the hidden states."""
        return self.encoder.get("hidden_size")

    @property
    def task_names(self):
        """Names of the tasks, in order."""
        return [row["name"] for row in self.tasks]

    def task_row(self, name):
        """Return a task's row. Raises ValueError for one that the model does not have."""
        for row in self.tasks:
            if row["name"] == name:
                return row
        raise ValueError(f"the model has no task {name!r}; it has: {', '.join(self.task_names)}")

    def __setattr__(self, key, value):
        if key == "task" and value is not None:
            row = self.task_row(value)
            labels = _LABELS.get(row["kind"]) or row["labels"]
            self.id2label = dict(enumerate(labels))
            self.label2id = {label: place for place, label in enumerate(labels)}
            self.problem_type = _PROBLEMS.get(row["kind"], "single_label_classification")
        super().__setattr__(key, value)
