"""A trained model in use: load the folder, predict, score; no DeepSpeed, no process group."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from threading import Lock

import numpy as np
import torch

from ds_moe_mtl.config import UserError
from ds_moe_mtl.config.files import new_folder, write_text
from ds_moe_mtl.data import (
    EncodedSplit,
    encode_columns,
    encode_task,
    evaluation_batches,
    mixed_batches,
)
from ds_moe_mtl.evaluation.card import model_card
from ds_moe_mtl.evaluation.examples import columns_of
from ds_moe_mtl.evaluation.hub import found_folder, push
from ds_moe_mtl.evaluation.outputs import assemble, batch_outputs, decoded, task_result
from ds_moe_mtl.evaluation.probable import check_wish, probable_answers
from ds_moe_mtl.evaluation.shapes import predictions_of
from ds_moe_mtl.models import MultiTaskNetwork
from ds_moe_mtl.models.folder import load_folder
from ds_moe_mtl.models.losses import network_inputs
from ds_moe_mtl.models.network import evaluating
from ds_moe_mtl.models.portable.folder import portable_config, save_portable
from ds_moe_mtl.models.pretrained import state_hash
from ds_moe_mtl.models.tokenizer import load_tokenizer
from ds_moe_mtl.tasks import TOKEN_KINDS, TaskSpec
from ds_moe_mtl.tasks.numbers import is_whole

_TOKENIZER = Lock()
"""Held while a tokenizer works: it keeps the length to cut at in itself, for all threads."""


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

        folder: may also be a Hub id ("user/name"). device: "cpu", "cuda"; None takes a GPU where
        there is one. Raises UserError for a folder that is no model.
        """
        if not isinstance(folder, str | Path):
            raise UserError(f"a model is a folder's path, not {folder!r:.40}")
        folder = found_folder(folder)
        try:
            network, description = load_folder(folder)
            tokenizer = load_tokenizer(folder, network.limits)
        except (ValueError, OSError) as error:
            raise UserError(str(error).strip().splitlines()[0]) from error
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            network = network.to(device)
        except (RuntimeError, AssertionError) as error:  # torch's, of a device that is not here
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"device: {device!r}: {reason}; allowed: cpu, cuda") from error
        specs = [TaskSpec.from_dict(task) for task in description["tasks"]]
        return cls(network, tokenizer, specs, description)

    def save_pretrained(
        self, folder: str | Path, task: str | None = None, card: str | None = None
    ) -> None:
        """Write a folder that `from_pretrained` and transformers' AutoModels open.

        task: the one that transformers uses at first, None for the first. card: README.md, None
        for one that the model alone can tell. Raises UserError for a folder with files in it and
        for a model that transformers cannot be given.
        """
        with new_folder(Path(folder), what="") as output:
            try:
                config = portable_config(self.network, self.description, task)
            except ValueError as error:
                raise UserError(str(error)) from error
            with _TOKENIZER:
                save_portable(output, self.network, config, self.tokenizer)
            write_text(output / "README.md", card or model_card(self.description))

    def push_to_hub(
        self,
        name: str,
        card: str | None = None,
        private: bool = True,
        token: str | None = None,
        dry_run: bool = False,
    ) -> list[str]:
        """Send the folder of `save_pretrained` to the Hub's model "user/name"; see hub.push."""
        return push(
            lambda folder: self.save_pretrained(folder, card=card), name, private, token, dry_run
        )

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.network.parameters()).device

    def task(self, name: str) -> TaskSpec:
        """Return a task's row. Raises UserError for one that the model does not have."""
        if not isinstance(name, str) or name not in self.specs:
            raise UserError(f"the model has no task {name!r}; it has: {', '.join(self.specs)}")
        return self.specs[name]

    def predict(
        self,
        task: str,
        examples: Iterable,
        max_length: int | None = None,
        return_probabilities: bool = False,
        top_k: int | None = None,
    ) -> list:
        """Return a label name (or a score, for a regression) for each example, in order.

        examples: a list (or an array, a column of a table, a generator) of texts, or of one tuple
        or dict an example with a value for each of the task's input columns (`inputs(task)`: text
        pairs; a word-sense example adds its word positions); or a table (DataFrame) of those
        columns. For a ranking task the answer is the name of the chosen column; for one with
        options, whose examples are (text, list of options), the chosen option; for one that
        generates, a text. For a task of several labels it is a list of (label, probability); for
        tags, whose examples are lists of words (a text is split at its blanks), a list of (word,
        tag); for an answer in a context its (text, start, end) there, in characters.

        return_probabilities, top_k (the so many most probable classes): instead a dict an example,
        {"label", "probability", "probabilities"} (evaluation.probable). Raises UserError for
        examples of another shape, for probabilities of a task that has none, and for a model whose
        outputs are not finite.
        """
        spec = self.task(task)
        check_wish(spec, return_probabilities, top_k)
        columns = columns_of(spec, self.inputs(task), examples)
        if not columns[spec.text[0]]:
            return []
        split = self._encoded(spec, columns, max_length)
        outputs = self.outputs(spec.name, split)
        return self._answers(spec, outputs, split, columns, return_probabilities, top_k)

    def predict_many(
        self,
        pairs: Iterable[tuple[str, object]],
        max_length: int | None = None,
        return_probabilities: bool = False,
        top_k: int | None = None,
    ) -> list:
        """Return an answer for each (task, example), in order, as `predict` gives it.

        The tasks' sequences share packed batches. Raises UserError as predict does.
        """
        places: dict[str, list[int]] = {}
        examples: dict[str, list] = {}
        for number, pair in enumerate(pairs):
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                raise UserError(f"example {number} is {pair!r:.60}; allowed: (task, example)")
            name = self.task(pair[0]).name
            places.setdefault(name, []).append(number)
            examples.setdefault(name, []).append(pair[1])
        columns, splits = {}, {}
        for name, given in examples.items():
            spec = self.task(name)
            check_wish(spec, return_probabilities, top_k)
            columns[name] = columns_of(spec, self.inputs(name), given, places[name])
            splits[name] = self._encoded(spec, columns[name], max_length)
        answers: list = [None] * sum(map(len, places.values()))
        for name, outputs in self.outputs_together(splits).items():
            split = splits[name]
            given = self._answers(
                self.task(name), outputs, split, columns[name], return_probabilities, top_k
            )
            for place, value in zip(places[name], given, strict=True):
                answers[place] = value
        return answers

    def _encoded(
        self, spec: TaskSpec, columns: dict[str, list], max_length: int | None
    ) -> EncodedSplit:
        if max_length is not None and (
            isinstance(max_length, str) or not is_whole(max_length) or max_length < 1
        ):
            raise UserError(f"max_length: {max_length!r}; allowed: a whole number above 0, or None")
        with _TOKENIZER:
            return encode_columns(
                spec, columns, self.tokenizer, max_length, "the examples given", blank=True
            )

    def _answers(
        self,
        spec: TaskSpec,
        outputs: np.ndarray,
        split: EncodedSplit,
        columns: dict[str, list],
        return_probabilities: bool,
        top_k: int | None,
    ) -> list:
        if spec.kind == "text":
            with _TOKENIZER:
                return decoded(outputs, self.tokenizer)
        if not np.isfinite(outputs).all():
            raise UserError(f"the model's outputs for {spec.name} are not finite: it has diverged")
        if return_probabilities or top_k:
            return probable_answers(spec, outputs, split, columns, top_k)
        return predictions_of(spec, outputs, split, columns)

    def inputs(self, task: str) -> tuple[str, ...]:
        """Return the names of the values that an example of a task is made of."""
        return self.task(task).inputs

    def evaluate(
        self, task: str, root: str | None, cache: str | None = None, limit: int | None = None
    ) -> dict:
        """Return {"metric", "value" in percent, "examples"} on the task's dev split."""
        spec = self.task(task)
        with _TOKENIZER:
            split = encode_task(spec, "dev", self.tokenizer, root, cache, limit=limit)
        outputs_NC = self.outputs(task, split)
        with _TOKENIZER:
            return task_result(spec, outputs_NC, split, self.tokenizer)

    def outputs(self, task: str, split: EncodedSplit) -> np.ndarray:
        """Return the head's outputs [N, C] for every sequence of a split, in row order."""
        spec = self.task(task)
        batches = evaluation_batches(split, self._index(task))
        with evaluating(self.network):
            pieces = [
                batch_outputs(self.network, batch, spec.num_outputs, self.device)
                for batch in batches
            ]
        return assemble(pieces, split, spec.num_outputs)

    @torch.no_grad()
    def outputs_together(self, splits: Mapping[str, EncodedSplit]) -> dict[str, np.ndarray]:
        """Return `outputs` of several tasks' splits, whose sequences share batches."""
        if any(self.task(name).kind == "text" for name in splits):
            return {name: self.outputs(name, split) for name, split in splits.items()}
        names = {self._index(name): name for name in splits}
        pieces: dict[str, list] = {name: [] for name in splits}
        for batch in mixed_batches({index: splits[name] for index, name in names.items()}):
            with evaluating(self.network):
                outputs = self.network(**network_inputs(batch.to(self.device)))
            for index in batch.task_ids_B.unique().tolist():
                spec = self.specs[names[index]]
                mine_B = batch.task_ids_B == index
                logits, rows = outputs.logits_BC, batch.example_ids_B
                if spec.kind in TOKEN_KINDS:
                    mine_B = mine_B[batch.unit_rows_U]
                    logits, rows = outputs.unit_logits_UC, batch.unit_ids_U
                found = logits[mine_B.to(logits.device), : spec.num_outputs].float()
                pieces[spec.name].append((rows[mine_B].numpy(), found.cpu().numpy()))
        return {
            name: assemble(pieces[name], split, self.specs[name].num_outputs)
            for name, split in splits.items()
        }

    def weights_hash(self) -> str:
        """Return a SHA-256 of the model's weights."""
        return state_hash(self.network.state_dict())

    @torch.no_grad()
    def route_counts(self, task: str, split: EncodedSplit) -> np.ndarray:
        """Return tokens of a split by layer and expert [layers, experts]; needs MoE.

        int64; of merged experts float64: the tokens' shares of each expert.
        """
        total = 0
        for batch in evaluation_batches(split, self._index(task)):
            counts = self.network(**network_inputs(batch.to(self.device))).counts
            if not counts:
                raise UserError(f"a {self.description['kind']} model has no experts to route to")
            counts_LE = torch.stack(counts)
            wide = torch.float64 if counts_LE.is_floating_point() else torch.int64
            total = total + counts_LE.to(wide).cpu().numpy()
        return total

    def _index(self, task: str) -> int:
        return list(self.specs).index(task)
