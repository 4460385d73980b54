"""A ds-moe-mtl command as a process that a test can signal."""

import os
import sys

from ds_moe_mtl.cli import main

if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # as train.py: threads that gloo leaves behind abort the shutdown
