#!/usr/bin/env bash
# DeepSpeed's own launcher, one machine, from any folder:
#   launchers/local_deepspeed.sh CONFIG [section.key=value ...]
# RANKS: processes to start (4), one a GPU; without a GPU they run on the CPU with gloo.
# MASTER_PORT: if 29500 is taken, by another run on this machine say.
# Many machines, over ssh without passwords (see launchers/hostfile.example):
#   deepspeed --hostfile launchers/hostfile train.py CONFIG
set -eu
# The train.py of this checkout; of an installed package the module that does the same.
home="$(cd "$(dirname "$0")/.." && pwd)"
if [ -f "$home/train.py" ]; then set -- "$home/train.py" "$@"; else set -- --module ds_moe_mtl.train "$@"; fi

# `deepspeed` dies of SIGTERM and leaves its ranks running. Passed to its child instead, the ranks
# get it: they have 30 s to checkpoint, and this script ends with status 1. Ctrl-C reaches all of
# them by the terminal; the script waits until the ranks have ended.
deepspeed --num_gpus "${RANKS:-4}" --master_port "${MASTER_PORT:-29500}" "$@" &
trap 'pkill -TERM -P $!' TERM INT
until wait $!; status=$?; ! kill -0 $! 2>/dev/null; do :; done
exit "$status"
