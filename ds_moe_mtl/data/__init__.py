"""Rows of text become token sequences, sequences become super-batches."""

from ds_moe_mtl.data.batch import MultiTaskBatch, collate
from ds_moe_mtl.data.encode import EncodedSplit, encode_columns, encode_task
from ds_moe_mtl.data.loader import SuperBatches, evaluation_batches
from ds_moe_mtl.data.mixture import Mixture, sampling_rates
from ds_moe_mtl.data.source import read_split

__all__ = [
    "EncodedSplit",
    "Mixture",
    "MultiTaskBatch",
    "SuperBatches",
    "collate",
    "encode_columns",
    "encode_task",
    "evaluation_batches",
    "read_split",
    "sampling_rates",
]
