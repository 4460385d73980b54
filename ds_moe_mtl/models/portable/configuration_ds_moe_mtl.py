"""Configuration of a multi-task encoder for transformers; this file travels with the weights.

It needs transformers alone. The keys are those of a ds_moe_mtl model folder, and beside them the
task in use and what transformers says of one task: its labels and its type of problem.
"""

from transformers import AutoConfig, PreTrainedConfig

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
    routing: options of the sparse layers, None without; gate_of_task: each task's gate.
    expert_places: the encoder's modules, by path, in whose place experts stand; emptied_places:
    those whose work experts do besides. ffn: of a sparse layer, None without: the neurons of an
    expert ("inner") and of the part that sees every token ("shared"), "activation" and "bias".
    first_position: id of a sequence's first place, None in a folder of before; token_types: that
    the encoder tells apart, 0 where it takes none; dropout: before the heads.
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
        expert_places=(),
        emptied_places=(),
        ffn=None,
        first_position=None,
        token_types=0,
        dropout=0.0,
        task=None,
        **kwargs,
    ):
        self.encoder = dict(encoder or {})
        self.heads = list(heads)
        self.tasks = list(tasks)
        self.routing = routing
        self.gate_of_task = list(gate_of_task)
        self.pooler = pooler
        self.expert_places = list(expert_places)
        self.emptied_places = list(emptied_places)
        self.ffn = ffn
        self.first_position = first_position
        self.token_types = token_types
        self.dropout = dropout
        super().__init__(**kwargs)
        self.task = task if task is not None or not self.tasks else self.tasks[0]["name"]

    def encoder_config(self):
        """Return transformers' configuration of the encoder."""
        values = dict(self.encoder)
        return AutoConfig.for_model(values.pop("model_type"), **values)

    @property
    def hidden_size(self):
        """Width of the hidden states; None of a configuration without an encoder."""
        return self.encoder_config().hidden_size if self.encoder else None

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
