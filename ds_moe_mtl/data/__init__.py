"""Rows of text become token sequences, sequences become super-batches."""

from ds_moe_mtl.data.batch import MultiTaskBatch, collate
from ds_moe_mtl.data.check import CheckedTask, checked_tasks
from ds_moe_mtl.data.describe import describe
from ds_moe_mtl.data.encode import EncodedSplit, encode_columns, encode_task
from ds_moe_mtl.data.loader import SuperBatches, evaluation_batches, mixed_batches
from ds_moe_mtl.data.mixture import sampling_rates
from ds_moe_mtl.data.own import own_spec
from ds_moe_mtl.data.sample import split_rows
from ds_moe_mtl.data.source import SUBSTITUTE, read_split

__all__ = [
    "SUBSTITUTE",
    "CheckedTask",
    "EncodedSplit",
    "MultiTaskBatch",
    "SuperBatches",
    "checked_tasks",
    "collate",
    "encode_columns",
    "describe",
    "encode_task",
    "evaluation_batches",
    "mixed_batches",
    "own_spec",
    "read_split",
    "sampling_rates",
    "split_rows",
]
