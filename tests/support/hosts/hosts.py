"""Hosts for tests, on one machine: names, addresses and a network of their own, and no way out.

    with Hosts(folder, count=2, ssh=True) as hosts:
        run = hosts[0].run(["ssh", "node1", "hostname"])

Each is a set of Linux namespaces (network, UTS, mount, IPC, PID); a bridge in one more joins them:
the machine's own network has no part in it. Needs root. What such hosts share beside the network
is the processor, the clock and the file system: `shared` is one folder for all.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.support.hosts.host import Host
from tests.support.hosts.namespace import Namespace
from tests.support.hosts.packages import Unavailable, require, which
from tests.support.hosts.ssh import SSH_PROGRAMS, write_ssh

SUBNET = "10.77.0"  # only in these namespaces
PROGRAMS = {"ip": "iproute2", "tc": "iproute2", "unshare": "util-linux", "nsenter": "util-linux"}
FAULT_PROGRAMS = {"nft": "nftables"}  # what Host.link of one direction and Host.drop need


class Hosts:
    """`count` hosts node0, node1, ... and their network, while the `with` block lasts.

    shared: a folder that all of them see. folder: one that is each host's own.
    """

    def __init__(
        self,
        folder: Path,
        count: int = 2,
        ssh: bool = False,
        faults: bool = False,
        more: Mapping[str, str] | None = None,
    ):
        """Bring them up. ssh: each reaches each, without a password; faults: for link and drop.

        more: further programs, by name, and their Debian packages. Raises Unavailable, with the
        reason, where this machine cannot have them.
        """
        programs = PROGRAMS | (SSH_PROGRAMS if ssh else {}) | (FAULT_PROGRAMS if faults else {})
        if os.getuid() != 0:
            raise Unavailable("hosts: not root")
        if os.environ.get("DS_MOE_MTL_HOSTS") == "0":
            raise Unavailable("DS_MOE_MTL_HOSTS=0")
        require(programs | dict(more or {}), "hosts")
        self.home, self.shared, self.folder = folder, folder / "shared", folder / "own"
        for path in (self.shared, self.folder):
            path.mkdir(parents=True)
        self._ssh = write_ssh(folder / "ssh") if ssh else None
        self._hosts: list[Host] = []
        try:
            self._switch = Namespace()
        except OSError as error:
            raise Unavailable(f"hosts: {error}") from None
        try:
            self._boot(count)
        except BaseException:
            self.down()
            raise

    def __enter__(self) -> "Hosts":
        return self

    def __exit__(self, *exception: object) -> None:
        self.down()

    def __getitem__(self, number: int) -> Host:
        return self._hosts[number]

    def __len__(self) -> int:
        return len(self._hosts)

    def __iter__(self) -> Iterator[Host]:
        return iter(self._hosts)

    def down(self) -> None:
        """End all of them, and the network."""
        for host in self._hosts:
            host.down()
        self._switch.end()

    def names(self, debian: bool = False) -> None:
        """Write every host's /etc/hosts anew: all of them by their addresses.

        debian: each host itself by 127.0.1.1, as Debian's and Ubuntu's installers write it.
        """
        for host in self:
            lines = ["127.0.0.1 localhost"]
            for each in self:
                address = "127.0.1.1" if debian and each is host else each.address
                lines.append(f"{address} {each.name}")
            host.hosts_file.write_text("\n".join(lines) + "\n")

    def boot(self, host: Host) -> None:
        """Bring a killed host back, with its sshd if there are any."""
        host.boot(self._ssh)
        if self._ssh:
            log = host.kept / "sshd.log"
            host.serve([which("sshd"), "-f", self._ssh / "sshd_config", "-E", log])

    def _boot(self, count: int) -> None:
        for number in range(count):
            name, address = f"node{number}", f"{SUBNET}.{number + 1}"
            home = self.home / name
            self._hosts.append(Host(name, address, self.folder, home, self._switch))
        self.names()
        for host in self:
            self.boot(host)
