"""Rank 0's address on every rank of an mpirun; run by rendezvous.py in a process of its own.

    python mpi_address.py HOST PORT RANKS PARENT
prints {"address": [host, port]} or {"fault": text}.

MPI's library stays out of the rank that asks, process PARENT, and the package out of this process,
which ends with its rank: else mpirun would wait for it where a rank is killed in these moments.
"""

import json
import sys


def main(host: str, port: str, world_size: str) -> dict:
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        cause = str(error).splitlines()[0]
        return {
            "fault": f"mpirun started {world_size} ranks without MASTER_ADDR and MASTER_PORT, and"
            f" mpi4py cannot tell them ({cause})"
        }
    world = MPI.COMM_WORLD
    if world.Get_size() != int(world_size):
        library = MPI.Get_library_version().split("\n")[0].strip("\0 ")
        return {
            "fault": f"mpirun started {world_size} ranks, but mpi4py's library ({library}) sees"
            f" {world.Get_size()}: it belongs to another MPI"
        }
    return {"address": world.bcast((host, int(port)), root=0)}


if __name__ == "__main__":
    from orphan import end_with_parent  # beside this file, which is started by its path

    del sys.path[0]  # this folder: its modules are no top-level names
    if end_with_parent(int(sys.argv[4])):
        print(json.dumps(main(*sys.argv[1:4])))
