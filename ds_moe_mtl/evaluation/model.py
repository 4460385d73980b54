"""A trained model in use: load the folder, predict, score; no DeepSpeed, no process group."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ds_moe_mtl.config import UserError
from ds_moe_mtl.data import EncodedSplit, encode_columns, encode_task, evaluation_batches
from ds_moe_mtl.evaluation.outputs import assemble, batch_outputs, decoded, task_result
from ds_moe_mtl.models import MultiTaskNetwork
from ds_moe_mtl.models.description import model_folder
from ds_moe_mtl.models.folder import load_folder
from ds_moe_mtl.models.losses import network_inputs
from ds_moe_mtl.models.pretrained import load_tokenizer
from ds_moe_mtl.tasks import TaskSpec

TOKENS_PER_BATCH = 8192
Texts = str | Sequence[str]


class MultiTaskModel:
    """A model folder in memory: one encoder, many tasks."""

    def __init__(
        self, network: MultiTaskNetwork, tokenizer, specs: Sequence[TaskSpec], description: dict
    ) -> None:
        self.network = network
        self.tokenizer = tokenizer
        self.specs = {spec.name: spec for spec in specs}
        self.description = description

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str | None = None) -> "MultiTaskModel":
        """Return the model of a model folder (or of a finished run's folder) in float32.

        device: "cpu", "cuda"; None takes a GPU where there is one. Raises UserError for a folder
        that is no model.
        """
        folder = model_folder(Path(folder))
        try:
            network, description = load_folder(folder)
            tokenizer = load_tokenizer(folder)
        except (ValueError, OSError) as error:
            raise UserError(str(error).strip().splitlines()[0]) from error
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        specs = [TaskSpec.from_dict(task) for task in description["tasks"]]
        return cls(network.to(device), tokenizer, specs, description)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.network.parameters()).device

    def task(self, name: str) -> TaskSpec:
        """Return a task's row. Raises UserError for one that the model does not have."""
        if name not in self.specs:
            raise UserError(f"the model has no task {name!r}; it has: {', '.join(self.specs)}")
        return self.specs[name]

    def predict(self, task: str, examples: Sequence[Texts], max_length: int | None = None) -> list:
        """Return a label name (or a score, for a regression) for each example, in order.

        examples: a text each, or a tuple with one value for each of the task's input columns
        (`inputs(task)`: text pairs; a word-sense example adds its word positions). For a ranking
        task the answer is the name of the chosen column; for one with options, whose examples
        are (text, list of options), the chosen option; for one that generates, a text. Raises
        UserError for examples of another shape.
        """
        spec = self.task(task)
        if not examples:
            return []
        split = self._encode(spec, examples, max_length)
        outputs_NC = self.outputs(spec.name, split)
        if spec.kind == "text":
            return decoded(outputs_NC, self.tokenizer)
        if spec.kind == "options":
            return _best_options(examples, outputs_NC[:, 0], split.questions)
        if spec.kind == "regression":
            return [float(value) for value in outputs_NC[:, 0]]
        if spec.kind == "ranking":
            truth_QC = outputs_NC[:, 1].reshape(-1, len(spec.choices))
            return [spec.choices[i] for i in truth_QC.argmax(axis=1)]
        return [spec.labels[i] for i in outputs_NC.argmax(axis=1)]

    def inputs(self, task: str) -> tuple[str, ...]:
        """Return the names of the values that an example of a task is made of."""
        spec = self.task(task)
        return spec.text if spec.kind == "text" else spec.columns[:-1]

    def evaluate(
        self, task: str, root: str | None, cache: str | None = None, limit: int | None = None
    ) -> dict:
        """Return {"metric", "value" in percent, "examples"} on the task's dev split."""
        spec = self.task(task)
        split = encode_task(spec, "dev", self.tokenizer, root, cache, limit=limit)
        return task_result(spec, self.outputs(task, split), split, self.tokenizer)

    def outputs(self, task: str, split: EncodedSplit) -> np.ndarray:
        """Return the head's outputs [N, C] for every sequence of a split, in row order."""
        spec = self.task(task)
        batches = evaluation_batches(split, self._index(task), TOKENS_PER_BATCH)
        pieces = [
            batch_outputs(self.network, batch, spec.num_outputs, self.device) for batch in batches
        ]
        return assemble(pieces, split, spec.num_outputs)

    @torch.no_grad()
    def route_counts(self, task: str, split: EncodedSplit) -> np.ndarray:
        """Return tokens of a split by layer and expert [layers, experts]; needs MoE.

        int64; of merged experts float64: the tokens' shares of each expert.
        """
        total = 0
        for batch in evaluation_batches(split, self._index(task), TOKENS_PER_BATCH):
            counts = self.network(**network_inputs(batch.to(self.device))).counts
            if not counts:
                raise UserError(f"a {self.description['kind']} model has no experts to route to")
            counts_LE = torch.stack(counts)
            wide = torch.float64 if counts_LE.is_floating_point() else torch.int64
            total = total + counts_LE.to(wide).cpu().numpy()
        return total

    def _index(self, task: str) -> int:
        return list(self.specs).index(task)

    def _encode(
        self, spec: TaskSpec, examples: Sequence[Texts], max_length: int | None
    ) -> EncodedSplit:
        names = self.inputs(spec.name)
        rows = [(example,) if isinstance(example, str) else tuple(example) for example in examples]
        for number, row in enumerate(rows):
            if len(row) != len(names):
                raise UserError(
                    f"{spec.name}: example {number} has {len(row)} values; "
                    f"needed: {', '.join(names)}"
                )
        columns = {name: [row[i] for row in rows] for i, name in enumerate(names)}
        return encode_columns(spec, columns, self.tokenizer, max_length, "the examples given")


def _best_options(
    examples: Sequence[Texts], scores_N: np.ndarray, questions_N: np.ndarray
) -> list[str]:
    """Return each example's option with the best score."""
    return [
        example[1][int(scores_N[questions_N == number].argmax())]
        for number, example in enumerate(examples)
    ]
