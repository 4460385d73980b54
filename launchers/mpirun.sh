#!/usr/bin/env bash
# mpirun, MPICH's or Open MPI's, on one machine or many:
#   launchers/mpirun.sh ds_configs/experiments/glue_small_mttag_minilm.yaml [section.key=value ...]
# RANKS: processes in all (4). HOSTFILE: machines, as this mpirun wants them (MPICH: node1:4,
# Open MPI: node1 slots=4). Rank 0's address travels over MPI itself (mpi4py); where that is not
# installed, export MASTER_ADDR and MASTER_PORT.
set -eu
cd "$(dirname "$0")/.."
exec mpirun -n "${RANKS:-4}" ${HOSTFILE:+-hostfile "$HOSTFILE"} python train.py "$@"
