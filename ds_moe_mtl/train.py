"""train.py of an installed package: `python -m ds_moe_mtl.train CONFIG [section.key=value ...]`.

Launchers start it as a module: `torchrun --nproc-per-node 4 -m ds_moe_mtl.train CONFIG`,
`deepspeed --num_gpus 4 --module ds_moe_mtl.train CONFIG`, `srun python -m ds_moe_mtl.train CONFIG`.
"""

import os
import sys
from typing import NoReturn


def run() -> NoReturn:
    """Train what the command line says and end the process with the status."""
    try:
        from ds_moe_mtl.cli.train import main
        from ds_moe_mtl.ranks.torchrun import prevent_restart

        status = main(sys.argv[1:])
        prevent_restart(status, os.environ)
    except KeyboardInterrupt:  # while this very file and what it imports are read
        status = 130
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads that gloo and DeepSpeed leave behind abort the interpreter's shutdown now and then
    # ("terminate called without an active exception"); the status is what launchers read.
    os._exit(status)


if __name__ == "__main__":
    run()
