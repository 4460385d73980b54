#!/usr/bin/env bash
# Brings up a real two-node Slurm on this machine, from Debian's packages, and waits until it idles.
#
#   tests/support/slurm/up.sh FOLDER       then   export SLURM_CONF=FOLDER/slurm.conf
#   tests/support/slurm/down.sh FOLDER     stops it and removes what it left outside FOLDER
#
# Needs root: slurmd starts jobs as their users, and the nodes' names go to /etc/hosts. munge,
# slurmctld and two slurmd (node0 and node1, one port each) run beside any Slurm already there.
# Partitions: "batch", and "urgent", which preempts it (requeue after 20 s of grace).
# Exit status 3: cannot be had here, with the reason on stderr.
set -euo pipefail

folder=$(mkdir -p "${1:?folder}" && cd "$1" && pwd)
[ "$(id -u)" = 0 ] || { echo "Slurm: not root" >&2; exit 3; }

if ! command -v slurmctld slurmd munged sbatch >/dev/null; then
    command -v apt-get >/dev/null || { echo "Slurm: not installed, and no apt-get" >&2; exit 3; }
    export DEBIAN_FRONTEND=noninteractive
    { timeout 60 apt-get update -q && timeout 180 apt-get install -q -y --no-install-recommends \
        slurm-wlm munge; } >"$folder/apt.log" 2>&1 </dev/null ||
        { echo "Slurm: apt-get cannot install slurm-wlm ($folder/apt.log)" >&2; exit 3; }
fi

host=$(hostname -s)
read -r control_port port0 port1 < <(python3 - <<'PORTS'
import socket
held = [socket.create_server(("", 0)) for _ in range(3)]
print(*(s.getsockname()[1] for s in held))
PORTS
)
mkdir -p "$folder"/{state,spool/node0,spool/node1,log,munge}
chmod 700 "$folder/munge"
for name in node0 node1; do
    echo "127.0.0.1 $name # Slurm for tests in $folder" >>/etc/hosts
done

"$(dirname "$0")/conf.sh" "$folder" "$host(127.0.0.1)" "$control_port" \
    "node0 NodeHostname=$host NodeAddr=127.0.0.1 Port=$port0" \
    "node1 NodeHostname=$host NodeAddr=127.0.0.1 Port=$port1"
export SLURM_CONF=$folder/slurm.conf

head -c 1024 /dev/urandom >"$folder/munge/key"
chmod 600 "$folder/munge/key"
munged --force --socket="$folder/munge/socket" --key-file="$folder/munge/key" \
    --pid-file="$folder/munge.pid" --log-file="$folder/log/munged.log" \
    --seed-file="$folder/munge/seed"
slurmctld -c
slurmd -N node0
slurmd -N node1

for _ in $(seq 100); do
    idle=$(sinfo -h -p batch -t idle -o %D 2>/dev/null || true)
    [ "$idle" = 2 ] && { echo "SLURM_CONF=$SLURM_CONF"; exit 0; }
    sleep 0.2
done
echo "Slurm: two nodes did not become idle; $folder/log has why" >&2
sinfo >&2 || true
tail -n 5 "$folder"/log/*.log >&2
exit 1
