#!/usr/bin/env bash
# mpirun, MPICH's or Open MPI's, on one machine or many, from any folder:
#   launchers/mpirun.sh ds_configs/experiments/glue_small_mttag_minilm.yaml [section.key=value ...]
# RANKS: processes in all (4). HOSTFILE: machines, as this mpirun wants them (MPICH: node1:4,
# Open MPI: node1 slots=4). Rank 0's address travels over MPI itself (mpi4py); where that is not
# installed, export MASTER_ADDR and MASTER_PORT.
set -eu
# The train.py of this checkout; of an installed package the module that does the same.
home="$(cd "$(dirname "$0")/.." && pwd)"
if [ -f "$home/train.py" ]; then set -- "$home/train.py" "$@"; else set -- -m ds_moe_mtl.train "$@"; fi
# Open MPI takes none of the environment to other machines; MPICH takes all of it. By its path,
# python is the same there, whatever PATH a login by ssh has.
passed=()
case "$(mpirun --version 2>/dev/null)" in *"Open MPI"* | *OpenRTE*)
    for name in $(compgen -e); do
        case $name in
        MASTER_* | OMP_* | PYTHON* | HF_* | TRANSFORMERS_* | NCCL_* | GLOO_* | DS_* | CUDA_*)
            passed+=(-x "$name") ;;
        esac
    done ;;
esac
exec mpirun -n "${RANKS:-4}" ${HOSTFILE:+-hostfile "$HOSTFILE"} ${passed[@]+"${passed[@]}"} \
    "$(command -v python)" "$@"
