"""A plain Hugging Face Trainer run of the dense encoder, stepped from outside.

What a user would write without us: BertForSequenceClassification with one head over the mixture's
rows, random batches, dynamic padding, the Trainer's own defaults. Only the optimizer's length, the
batch size and the precision are the run's.
"""

import copy
import os
import queue
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from ds_moe_mtl.benchmark.allocations import AllocationMeter
from ds_moe_mtl.benchmark.stopwatch import Marks, Split, Stopwatch
from ds_moe_mtl.benchmark.workload import Workload
from ds_moe_mtl.planner.shape import bert_config

ENDLESS = 10**9
"""Steps; the run is ended from outside."""


class TrainerSteps:
    """Runs trainer.train() in a thread of its own that goes on for one step when told to."""

    def __init__(self, workload: Workload, world_size: int, device: torch.device) -> None:
        self.meter, self.device = AllocationMeter(device), device
        self.metered, self.marks = False, None
        self._go: queue.Queue = queue.Queue()
        self._done: queue.Queue = queue.Queue()
        with self.meter.measured():
            model = _model(workload)
        train = workload.config.train
        self._folder = tempfile.TemporaryDirectory()
        with _plain_process() if world_size == 1 else nullcontext():
            arguments = TrainingArguments(
                output_dir=self._folder.name,
                per_device_train_batch_size=max(1, train.batch_size // world_size),
                max_steps=ENDLESS,
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=device.type == "cpu",
                bf16=train.precision == "bf16",
                fp16=train.precision == "fp16",
            )
            if arguments.n_gpu > 1:
                arguments._n_gpu = 1  # else it spreads each batch over all GPUs of the machine
            self._trainer = _Timed(
                model=model,
                args=arguments,
                train_dataset=_rows(workload),
                data_collator=DataCollatorWithPadding(workload.plan.tokenizer),
                callbacks=[_Pause(self)],
            )
        self._trainer.owner = self
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def take(self, step: object = None) -> None:
        """Take one step of the Trainer, on a batch of its own, waiting for nothing."""
        self._go.put(True)
        error = self._done.get()
        if error is not None:
            raise error

    def marked(self, step: object, watch: Stopwatch) -> Marks:
        """Take one step and return its marks, waiting for nothing."""
        self.marks = marks = Marks(watch, watch.mark())
        self.take()
        marks.ended, self.marks = watch.mark(), None
        return marks

    def step(self, step: object, watch: Stopwatch) -> Split:
        """Take one step and return where its time went."""
        marks = self.marked(step, watch)
        watch.wait()
        return marks.split()

    def close(self) -> None:
        """End the run."""
        self._go.put(False)
        self._thread.join()
        self._folder.cleanup()

    def _run(self) -> None:
        try:
            self._trainer.train()
        except Exception as error:  # handed to the thread that asked for the step
            self._done.put(error)
        else:
            self._done.put(None)


class _Timed(Trainer):
    """The Trainer, with marks around its parts where they are asked for."""

    def training_step(self, *arguments, **keywords):
        step = partial(super().training_step, *arguments, **keywords)
        owner = self.owner
        with owner.meter.measured() if owner.metered else nullcontext():
            if owner.marks is None:
                return step()
            began = owner.marks.watch.mark()
            loss = step()
            forward, ended = owner.marks.parts["forward"][-1], owner.marks.watch.mark()
            around = [(began, forward[0]), (forward[1], ended)]
            owner.marks.parts.setdefault("backward", []).extend(around)
            return loss

    def compute_loss(self, *arguments, **keywords):
        with self._part("forward"):
            return super().compute_loss(*arguments, **keywords)

    def get_batch_samples(self, *arguments, **keywords):
        with self._part("data"):
            return super().get_batch_samples(*arguments, **keywords)

    @contextmanager
    def _part(self, name: str) -> Iterator[None]:
        marks = self.owner.marks
        if marks is None:
            yield
            return
        began = marks.watch.mark()
        yield
        marks.parts.setdefault(name, []).append((began, marks.watch.mark()))


class _Pause(TrainerCallback):
    """Waits at the end of every step, and before the first, until the next is asked for."""

    def __init__(self, owner: TrainerSteps) -> None:
        self.owner = owner

    def on_train_begin(self, args, state, control, **keywords):
        if not self.owner._go.get():
            control.should_training_stop = True

    def on_step_end(self, args, state, control, **keywords):
        self.owner._done.put(None)
        if not self.owner._go.get():
            control.should_training_stop = True


@contextmanager
def _plain_process() -> Iterator[None]:
    """Hide that a launcher started this process, as in `python script.py`: the Trainer would wrap
    the model for several ranks, and copy its gradients, though there is one."""
    hidden = {name: os.environ.pop(name) for name in ("RANK", "LOCAL_RANK") if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _model(workload: Workload):
    outputs = max(spec.num_outputs for spec in workload.plan.specs)
    labels = max(2, outputs)
    if not workload.random:
        folder = workload.plan.source.folder
        return AutoModelForSequenceClassification.from_pretrained(
            folder, num_labels=labels, dtype=torch.float32
        )
    if workload.architecture is None:
        return BertForSequenceClassification(bert_config(workload.shape, num_labels=labels))
    config = copy.deepcopy(workload.architecture)
    config.num_labels = labels
    return AutoModelForSequenceClassification.from_config(config)


def _rows(workload: Workload) -> list[dict]:
    """Return every training sequence of every task; a score is rounded to a class.

    One plain head cannot be right for all tasks: only speed is compared.
    """
    most = max(2, max(spec.num_outputs for spec in workload.plan.specs)) - 1
    types = workload.shape.token_types
    rows = []
    for split in workload.plan.train:
        for i in range(len(split.offsets) - 1):
            ids = split.input_ids[split.offsets[i] : split.offsets[i + 1]].tolist()
            second = int(split.second_start[i])
            row = {
                "input_ids": ids,
                "attention_mask": [1] * len(ids),
                "labels": min(most, max(0, round(float(split.labels[i])))),
            }
            if types > 1:
                row["token_type_ids"] = [int(place >= second) for place in range(len(ids))]
            rows.append(row)
    return rows
