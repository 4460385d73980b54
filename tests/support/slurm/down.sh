#!/usr/bin/env bash
# Stops what up.sh started for FOLDER: jobs first, then the daemons by the ids they wrote.
set -uo pipefail

folder=$(cd "${1:?folder}" && pwd)
export SLURM_CONF=$folder/slurm.conf
if [ -f "$folder/slurmctld.pid" ]; then
    timeout 10 scancel --user=root
    for _ in $(seq 100); do # their steps outlive a slurmd that is stopped too early
        [ -z "$(timeout 10 squeue -h)" ] && break
        sleep 0.2
    done
fi

stop() { # names of daemons
    ids=$(for name in "$@"; do cat "$folder/$name.pid" 2>/dev/null; done)
    [ -n "$ids" ] || return
    kill $ids 2>/dev/null
    for _ in $(seq 50); do
        kill -0 $ids 2>/dev/null || break
        sleep 0.1
    done
    kill -9 $ids 2>/dev/null
}
stop node0 node1 slurmctld
stop munge
rm -f "$folder"/*.pid

# Not sed -i: in a container /etc/hosts is often a mount that cannot be renamed over.
kept=$(grep -vF "# Slurm for tests in $folder" /etc/hosts) && printf '%s\n' "$kept" >/etc/hosts
exit 0
