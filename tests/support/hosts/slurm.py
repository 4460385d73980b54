"""A Slurm whose nodes are hosts: munged and slurmd on each, slurmctld on the first."""

import secrets
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from tests.support.hosts.host import Host
from tests.support.hosts.hosts import Hosts
from tests.support.hosts.packages import which
from tests.support.launch import rank_environ
from tests.support.slurm.cluster import SCRIPTS, Cluster

SLURM_PROGRAMS = {
    **dict.fromkeys(("slurmctld", "slurmd", "sbatch", "srun"), "slurm-wlm"),
    "munged": "munge",
}
PORT = "6817"  # Slurm's own: the network is ours
START_LIMIT = 30


class HostCluster(Cluster):
    """A node for each of some hosts, by its name; it ends with them.

    The hosts must have been brought up with more=SLURM_PROGRAMS.
    """

    def __init__(self, hosts: Hosts):
        """Bring it up and wait until all nodes idle. AssertionError where they do not."""
        self.folder, self._first = hosts.shared / "slurm", hosts[0]
        for name in ("state", "log"):
            (self.folder / name).mkdir(parents=True)
        nodes = [f"{host.name} NodeHostname={host.name} NodeAddr={host.address}" for host in hosts]
        control = f"{self._first.name}({self._first.address})"
        subprocess.run(
            [SCRIPTS / "conf.sh", self.folder, control, PORT, *nodes],
            env=rank_environ({"OWN": str(hosts.folder)}),
            check=True,
        )
        conf = self.folder / "slurm.conf"
        self.environ = rank_environ({"SLURM_CONF": str(conf)})
        key = secrets.token_bytes(1024)
        for host in hosts:
            _start_munged(host, hosts.folder, key)
        self._first.serve([which("slurmctld"), "-c", "-f", conf])
        for host in hosts:
            host.serve([which("slurmd"), "-N", host.name, "-f", conf])
        until = time.monotonic() + START_LIMIT
        while self.ask("sinfo", "-h", "-p", "batch", "-t", "idle", "-o", "%D") != str(len(hosts)):
            assert time.monotonic() < until, self.ask("sinfo", "-N", "-l")
            time.sleep(0.1)

    def down(self) -> None:
        """Do nothing: the hosts take it along."""

    def _line(self, command: Sequence[str | Path], cwd: Path) -> list[str | Path]:
        return self._first.line(command, cwd)


def _start_munged(host: Host, folder: Path, key: bytes) -> None:
    kept = host.kept / "munge"
    (host.kept / "spool" / host.name).mkdir(parents=True)
    kept.mkdir(mode=0o700)
    (kept / "key").write_bytes(key)
    (kept / "key").chmod(0o600)
    seen = folder / "munge"
    names = {"socket": "socket", "key-file": "key", "pid-file": "pid", "seed-file": "seed"}
    options = [f"--{option}={seen / name}" for option, name in names.items()]
    host.serve([which("munged"), "--force", *options, f"--log-file={seen / 'log'}"])
