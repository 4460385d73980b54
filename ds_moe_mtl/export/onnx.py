"""One task as an ONNX graph with dynamic axes, compared in onnxruntime; as int8 too where asked.

A task that can be made dense without loss becomes that classifier's graph; one that is routed by
token keeps its experts and its gate. torch's older exporter is not used: it traces, and its graphs
gave other answers than the model at other batch sizes and lengths.
"""

import logging
import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ds_moe_mtl.config import UserError
from ds_moe_mtl.config.files import new_folder
from ds_moe_mtl.data import EncodedSplit, MultiTaskBatch, evaluation_batches
from ds_moe_mtl.export.agreement import (
    TOKENS_PER_BATCH,
    Run,
    compare,
    outputs_of,
    padded,
    tell,
    write_about,
)
from ds_moe_mtl.export.dense import dense_task
from ds_moe_mtl.export.source import ExportSource
from ds_moe_mtl.models.encoder_files import quiet
from ds_moe_mtl.models.plain_classifier import plain_outputs
from ds_moe_mtl.models.portable.folder import cutting_tokenizer, opened
from ds_moe_mtl.tasks import TOKEN_KINDS, TaskSpec

Say = Callable[[str], None]

PACKAGES = ("onnx", "onnxruntime", "onnxscript")
OPSET = 18
ROUNDS = 21
"""Alternated runs of the two graphs, of which medians are told; our choice."""

RANDOM_ROWS = 100
"""Rows of random tokens that a graph is compared on where there are no dev rows."""


class _ClassifierGraph(nn.Module):
    """A plain classifier as a function of tensors alone."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, input_ids, attention_mask, token_type_ids=None):
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None:
            inputs["token_type_ids"] = token_type_ids
        return plain_outputs(self.classifier(**inputs))


class _SparseGraph(nn.Module):
    """One task of a portable model: its gate and its head are constants of the graph."""

    def __init__(self, model: nn.Module, number: int) -> None:
        super().__init__()
        self.encoder = model.encoder
        self.head = model.heads.linears[model.heads.place[number]]
        self.gate = model.config.gate_of_task[number]
        self.reads_tokens = model.config.tasks[number]["kind"] in TOKEN_KINDS

    def forward(self, input_ids, attention_mask, token_type_ids=None):
        gates_B = torch.full_like(input_ids[:, 0], self.gate)
        hidden_BSD = self.encoder(input_ids, attention_mask, token_type_ids, gates_B)
        if self.reads_tokens:
            return self.head(hidden_BSD)
        return self.head(self.encoder.pool(hidden_BSD[:, 0]))


def export_onnx(
    source: ExportSource, task: str, output: Path, merge: bool, int8: bool, say: Say
) -> None:
    """Write model.onnx, with int8 model_int8.onnx too, the tokenizer and export.json.

    merge: as in dense.export_dense; without it a routed task keeps its experts. Raises UserError
    where a package is missing, the folder is taken, the task has no graph, or the graph does not
    agree.
    """
    for package in PACKAGES:
        if find_spec(package) is None:
            raise UserError(
                f"--to onnx needs the package {package}; allowed: pip install 'ds-moe-mtl[export]'"
            )
    spec = source.model.task(task)
    graph, how, exact = task_graph(source, spec, merge)
    say(f"{task}: {how}")
    with new_folder(output) as folder:
        tokenizer = cutting_tokenizer(source.model.tokenizer, spec.max_length)
        # An input that the encoder does not read would be none of the graph's.
        types = source.model.network.encoder.token_types > 0
        types = types and "token_type_ids" in tokenizer.model_input_names
        _write_graph(graph, folder / "model.onnx", types)
        tokenizer.save_pretrained(folder)
        about = {"to": "onnx", "source": source.name, "task": task, "how": how, "exact": exact}
        about["labels"] = list(spec.labels)
        split = source.dev(task)
        run = _session_run(folder / "model.onnx", tokenizer.pad_token_id, types)
        if split is None:
            about["random_rows"] = _check_random(graph, run, source, types, say)
        else:
            found = outputs_of(run, split, spec.num_outputs)
            agreement = compare(spec, split, source.outputs(task), found)
            about["agreement"] = tell(spec, agreement, say, merged=not exact)
        if int8:
            about["int8"] = _write_int8(source, spec, folder, split, run, types, say)
        write_about(folder, about)


def task_graph(source: ExportSource, spec: TaskSpec, merge: bool) -> tuple[nn.Module, str, bool]:
    """Return (module, how it was made, whether nothing was lost) of a task."""
    routing = source.model.description["routing"]
    by_token = routing is not None and routing["combine"] == "top1"
    if not by_token or merge or source.dev(spec.name) is not None:
        dense = dense_task(source, spec.name, merge)
        if dense.exact or merge:
            return _ClassifierGraph(dense.model).eval(), dense.how, dense.exact
    model = opened(source.model.network, source.model.description)
    if spec.kind == "span":
        raise UserError(f"--to onnx: task {spec.name!r} is span; allowed: tasks that read [CLS]")
    number = list(source.model.specs).index(spec.name)
    return _SparseGraph(model, number).eval(), "it keeps its experts and its gate", True


def _write_graph(graph: nn.Module, path: Path, types: bool) -> None:
    """Write a module as an ONNX file whose batch and length are free."""
    ids_BS = torch.arange(2 * 9).view(2, 9) % 5 + 1
    mask_BS = torch.ones_like(ids_BS)
    mask_BS[1, 6:] = 0
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if types else [])]
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with quiet():
        torch.onnx.export(
            graph,
            (ids_BS, mask_BS, torch.zeros_like(ids_BS))[: len(names)],
            path,
            input_names=names,
            output_names=["logits"],
            dynamic_shapes=tuple(axes for _ in names),
            dynamo=True,
            opset_version=OPSET,
            external_data=False,
            verbose=False,
        )


def _session_run(path: Path, pad_id: int, types: bool) -> Run:
    """Return what runs a graph in onnxruntime on a batch of ours."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(batch: MultiTaskBatch) -> torch.Tensor:
        inputs = {name: values.numpy() for name, values in padded(batch, pad_id, types).items()}
        return torch.from_numpy(session.run(None, inputs)[0])

    return run


def _check_random(graph, run, source: ExportSource, types: bool, say: Say) -> dict:
    """Return how far a graph is from its module on rows of random tokens. Raises UserError."""
    limits, pad = source.model.network.limits, source.model.tokenizer.pad_token_id
    drawn = np.random.default_rng(0)
    lengths = drawn.integers(3, min(64, limits.max_length) + 1, RANDOM_ROWS)
    ids = drawn.integers(0, limits.ids, lengths.sum())
    ids[ids == pad] = (pad + 1) % limits.ids
    zeros = np.zeros(RANDOM_ROWS, dtype=np.float32)
    split = EncodedSplit(
        ids.astype(np.int32),
        np.concatenate([[0], lengths.cumsum()]),
        lengths.astype(np.int32),
        zeros,
        zeros + 1,
        np.arange(RANDOM_ROWS),
        zeros.astype(np.int8),
    )
    largest = scale = 0.0
    for batch in evaluation_batches(split, 0, tokens_per_batch=TOKENS_PER_BATCH):
        with torch.no_grad():
            wanted = graph(*padded(batch, pad, types).values())
        largest = max(largest, float((run(batch) - wanted).abs().max()))
        scale = max(scale, float(wanted.abs().max()))
    if not largest <= 1e-3 * max(1.0, scale):
        raise UserError(f"the graph differs by {largest:.1e} from the model on random tokens")
    say(f"outputs differ by at most {largest:.1e} on {RANDOM_ROWS} rows of random tokens")
    return {"rows": RANDOM_ROWS, "largest_difference": largest}


def _write_int8(source, spec: TaskSpec, folder: Path, split, run, types: bool, say: Say) -> dict:
    """Write model_int8.onnx and return its size, its speed and how it agrees."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    before, after = folder / "model.onnx", folder / "model_int8.onnx"
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)  # of whole numbers, which are not quantised
    try:
        quantize_dynamic(before, after, weight_type=QuantType.QInt8)
    finally:
        logging.disable(disabled)
    about = {"bytes": after.stat().st_size, "bytes_before": before.stat().st_size}
    say(f"int8: {about['bytes'] / 1e6:.1f} MB in place of {about['bytes_before'] / 1e6:.1f} MB")
    if split is None:
        say("int8: not compared, no dev rows")
        return about
    small = _session_run(after, source.model.tokenizer.pad_token_id, types)
    found = outputs_of(small, split, spec.num_outputs)
    agreement = compare(spec, split, source.outputs(spec.name), found)
    about["agreement"] = tell(spec, agreement, lambda line: say(f"int8: {line}"), merged=True)
    batch = next(iter(evaluation_batches(split, 0, tokens_per_batch=TOKENS_PER_BATCH)))
    about |= _alternated(run, small, batch)
    say(
        f"int8: {about['times_as_fast']:.2f} times as fast ({ROUNDS} alternated runs over "
        f"{batch.num_sequences} rows, {torch.get_num_threads()} threads)"
    )
    return about


def _alternated(run, small, batch: MultiTaskBatch) -> dict:
    """Return medians in ms of two graphs run in turn, and their ratio."""
    taken: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        for times, graph in zip(taken, (run, small), strict=True):
            start = time.perf_counter()
            graph(batch)
            times.append(1e3 * (time.perf_counter() - start))
    before, after = (statistics.median(times) for times in taken)
    return {"ms_before": before, "ms": after, "times_as_fast": before / after}
