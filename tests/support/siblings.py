"""One of two ranks that wait for each other: rank 0 ends, or waits too.

siblings.py gone | here
"""

import os
import subprocess
import sys
import time

from ds_moe_mtl.ranks.siblings import siblings_watched

if __name__ == "__main__":
    gone = sys.argv[1] == "gone"
    if gone and os.environ["PMI_RANK"] == "0":
        time.sleep(0.5)
        os._exit(9)
    with siblings_watched(os.environ):
        if gone:
            subprocess.run(["sleep", "600"], check=False)
        time.sleep(5)
    print("met", flush=True)
