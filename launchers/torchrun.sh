#!/usr/bin/env bash
# torchrun, one machine, from any folder:
#   launchers/torchrun.sh ds_configs/experiments/glue_small_mttag_minilm.yaml [section.key=value ...]
# RANKS: processes to start on this machine (4). Many machines: on each of them with NODES (how
# many there are), NODE (0, 1, ...) and MASTER (node 0's name); MASTER_PORT if 29500 is taken.
#
# As many machines as there are, of a run with run.elastic=true (docs/launching.md, "Elastic"): on
# each with NODES=MIN:MAX, RUN_ID (of this start of the run, alike on all) and MASTER, where they
# meet: a new file in a folder that all share, or the name of a machine that outlives the others.
# MOST_RESTARTS: how many losses of machines a run survives (20). LAST_CALL: seconds to wait for
# more machines than MIN (30).
set -eu
# The train.py of this checkout; of an installed package the module that does the same.
home="$(cd "$(dirname "$0")/.." && pwd)"
if [ -f "$home/train.py" ]; then set -- "$home/train.py" "$@"; else set -- -m ds_moe_mtl.train "$@"; fi
case "${NODES:-1}" in *:*)
    if ! [[ "$NODES" =~ ^([1-9][0-9]*):([1-9][0-9]*)$ ]] || [ "${BASH_REMATCH[1]}" -gt "${BASH_REMATCH[2]}" ]; then
        echo "error: NODES = $NODES; allowed: a number, or MIN:MAX such as 1:4" >&2
        exit 2
    elif [ -z "${MASTER:-}" ]; then
        echo "error: NODES = $NODES without MASTER; allowed: MASTER=/SHARED/NEW_FILE or MASTER=HOST" >&2
        exit 2
    fi
    case "$MASTER" in
    /*) meeting=(--rdzv-endpoint "$MASTER" --rdzv-conf "store_type=file,last_call_timeout=${LAST_CALL:-30}") ;;
    *) meeting=(--rdzv-endpoint "$MASTER:${MASTER_PORT:-29400}" --rdzv-conf "last_call_timeout=${LAST_CALL:-30}") ;;
    esac
    # Ranks meet at a store of their own: of the one that torchrun would have them share a machine
    # keeps the first address, that of a lost machine too.
    export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
    exec torchrun --nproc-per-node "${RANKS:-4}" --nnodes "$NODES" \
        --max-restarts "${MOST_RESTARTS:-20}" --rdzv-backend c10d --rdzv-id "${RUN_ID:-1}" \
        "${meeting[@]}" "$@"
    ;;
esac
exec torchrun --nproc-per-node "${RANKS:-4}" \
    --nnodes "${NODES:-1}" --node-rank "${NODE:-0}" \
    --master-addr "${MASTER:-127.0.0.1}" --master-port "${MASTER_PORT:-29500}" \
    "$@"
