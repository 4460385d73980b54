"""The ds-moe-mtl command as a process: `ds-moe-mtl COMMAND ...` or `python -m ds_moe_mtl ...`."""

import os
import sys
from typing import NoReturn

from ds_moe_mtl.cli import main


def run() -> NoReturn:
    """Run the command line's subcommand and end the process with its status."""
    # deepspeed's launcher puts it before the command; the rank is known without it.
    status = main([word for word in sys.argv[1:] if not word.startswith("--local_rank=")])
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except BrokenPipeError:  # the reader has gone (`| head`)
        pass
    except OSError as error:
        print(f"error: standard output: {error.strerror}", file=sys.stderr)
        status = 2
    os._exit(status)  # as train.py: threads that gloo leaves behind abort the shutdown


if __name__ == "__main__":
    run()
