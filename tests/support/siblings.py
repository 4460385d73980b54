"""One of two ranks under mpirun, of which rank 0 may end before they have met.

siblings.py WAY: here (both wait for each other), gone (rank 0 ends, rank 1 waits for it), killed
(rank 0 is killed while rank 1 prepares), mistaken (rank 0 ends by itself while rank 1 prepares)
"""

import os
import subprocess
import sys
import time

from ds_moe_mtl.ranks.rendezvous import mpi_broadcast
from ds_moe_mtl.ranks.siblings import siblings_watched, watch_killed

if __name__ == "__main__":
    way = sys.argv[1]
    watch_killed(os.environ)
    # Once the ranks have taken leave of MPI, hydra ends none that is left; before it does.
    mpi_broadcast(("localhost", 1), 2)
    if way != "here" and os.environ["PMI_RANK"] == "0":
        time.sleep(3)
        if way == "killed":
            os.kill(os.getpid(), 9)
        os._exit(2)
    if way == "gone":
        with siblings_watched(os.environ):
            subprocess.run(["sleep", "600"], check=False)
    elif way == "here":
        with siblings_watched(os.environ):
            time.sleep(5)
    else:
        time.sleep(60 if way == "killed" else 8)
    print("went on", flush=True)
