"""What every launcher starts: `deepspeed --num_gpus 4 train.py CONFIG [section.key=value ...]`."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

from ds_moe_mtl.train import run  # noqa: E402  (the paths above come first)

if __name__ == "__main__":
    run()
