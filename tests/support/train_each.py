"""Trains one YAML after the other, each in a fork: the imports, most of a tiny run, happen once."""

import os
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]
os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed  # noqa: E402, F401
import matplotlib.pyplot  # noqa: E402, F401
import sklearn.metrics  # noqa: E402, F401
import transformers.models.bart  # noqa: E402, F401
import transformers.models.bert  # noqa: E402, F401

from ds_moe_mtl.cli.train import main  # noqa: E402
from ds_moe_mtl.training import train  # noqa: E402, F401

if __name__ == "__main__":
    for path in sys.argv[1:]:
        child = os.fork()
        if child == 0:
            status = main([path])
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        _, status = os.waitpid(child, 0)
        if status:
            sys.exit(f"{path} ended with {os.waitstatus_to_exitcode(status)}")
