#!/usr/bin/env bash
# torchrun, one machine, from any folder:
#   launchers/torchrun.sh ds_configs/experiments/glue_small_mttag_minilm.yaml [section.key=value ...]
# RANKS: processes to start on this machine (4). Many machines: on each of them with NODES (how
# many there are), NODE (0, 1, ...) and MASTER (node 0's name); MASTER_PORT if 29500 is taken.
set -eu
# The train.py of this checkout; of an installed package the module that does the same.
home="$(cd "$(dirname "$0")/.." && pwd)"
if [ -f "$home/train.py" ]; then set -- "$home/train.py" "$@"; else set -- -m ds_moe_mtl.train "$@"; fi
exec torchrun --nproc-per-node "${RANKS:-4}" \
    --nnodes "${NODES:-1}" --node-rank "${NODE:-0}" \
    --master-addr "${MASTER:-127.0.0.1}" --master-port "${MASTER_PORT:-29500}" \
    "$@"
