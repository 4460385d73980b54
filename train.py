"""What every launcher starts: `deepspeed --num_gpus 4 train.py CONFIG [section.key=value ...]`."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

from ds_moe_mtl.cli.train import main  # noqa: E402  (the paths above come first)

if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads that gloo and DeepSpeed leave behind abort the interpreter's shutdown now and then
    # ("terminate called without an active exception"); the status is what launchers read.
    os._exit(status)
