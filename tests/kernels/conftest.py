"""Triton's interpreter for these tests, on machines without a GPU: it must be asked for early."""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
