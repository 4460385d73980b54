"""One host on a switch: what runs on it, and what can break."""

import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from tests.support.hosts.namespace import Namespace
from tests.support.launch import LIMIT, Launched, Running, rank_environ

INTERFACE = "eth0"
FREEZE_LIMIT = 10
SERVE_LIMIT = 30
_STILL = (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)


class OnHost(Running):
    """A process on a host; `process` is nsenter, which waits for it and ends as it ends."""

    def signal(self, number: int) -> None:
        """Send a signal to the process itself."""
        _send(self.inside(), number)

    def inside(self) -> list[psutil.Process]:
        """Return the process itself, once it is there and as long as it lives."""
        try:
            return psutil.Process(self.process.pid).children()
        except psutil.NoSuchProcess:
            return []


class Host:
    """A host. Its `folder` is its alone: at the same path the others have another one.

    name: what hostname says; address: its IPv4 address, on the interface eth0.
    kept: where `folder` lies outside of the host, and stays when the host ends.
    hosts_file: its /etc/hosts. Write into it; a file that replaces it is one the host never sees.
    """

    def __init__(self, name: str, address: str, folder: Path, home: Path, switch: Namespace):
        home.mkdir()
        self.name, self.address, self.folder = name, address, folder
        self.kept, self.hosts_file = home / "own", home / "hosts"
        self.kept.mkdir()
        self._switch, self._port = switch, f"to-{name}"
        # The same after a boot: others remember it for a while.
        self._mac = ":".join(["02", "00", *(f"{int(part):02x}" for part in address.split("."))])
        self._inside: Namespace | None = None

    def boot(self, ssh: Path | None = None) -> None:
        """Bring it up, for the first time or after `kill`; ssh: the folder of the network's ssh."""
        assert self._inside is None, f"{self.name} is up"
        words = [self.name, self.hosts_file, self.kept, self.folder, ssh or ""]
        self._inside = Namespace(["--uts", "--mount", "--ipc"], [str(word) for word in words])
        # A socket of a host that was killed with its cable pulled sends on, and keeps the old one.
        self._switch.do(
            f"ip link delete {self._port} 2>&1 || true;"
            f"ip link add {self._port} type veth peer name {INTERFACE} address {self._mac}"
            f" netns {self._inside.init};"
            f"ip link set {self._port} master bridge up"
        )
        self._inside.do(
            f"ip link set lo up; ip address add {self.address}/24 dev {INTERFACE};"
            f"ip link set {INTERFACE} up"
        )

    def popen(
        self,
        command: Sequence[str | Path],
        env: Mapping[str, str] | None = None,
        cwd: Path = Path("/"),
    ) -> OnHost:
        """Return a command started on this host, in the environment of a launched run and `env`."""
        running = OnHost(self.line(command, cwd), rank_environ(env), Path("/"))
        while running.process.poll() is None and not running.inside():
            time.sleep(0.005)
        return running

    def run(
        self,
        command: Sequence[str | Path],
        env: Mapping[str, str] | None = None,
        cwd: Path = Path("/"),
        time_limit: float = LIMIT,
    ) -> Launched:
        """Return how a command on this host ended."""
        with self.popen(command, env, cwd) as running:
            return running.wait(time_limit)

    def serve(self, command: Sequence[str | Path]) -> None:
        """Start a daemon, which goes into the background by itself and ends with the host."""
        run = subprocess.run(
            self.line(command),
            env=rank_environ(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SERVE_LIMIT,
        )
        assert run.returncode == 0, f"{command}: {run.stdout}{run.stderr}"

    def line(self, command: Sequence[str | Path], cwd: Path = Path("/")) -> list[str]:
        """Return the command line that, outside, runs a command on this host."""
        go = ["sh", "-c", 'cd "$0" && exec "$@"', str(cwd), *map(str, command)]
        return [*self._up().enter, *go]

    @property
    def up(self) -> bool:
        """Whether it has been booted and not been killed since."""
        return self._inside is not None

    @property
    def init(self) -> int:
        """The process id, outside, of the host's first process, which holds its namespaces."""
        return self._up().init

    def processes(self) -> list[psutil.Process]:
        """Return what runs on this host, but for its first process."""
        return [] if self._inside is None else self._inside.processes()

    def link(self, state: str, direction: str = "both") -> None:
        """Pull this host's cable ("down") or put it back ("up").

        direction: "in" or "out" loses only what comes in or goes out; the host is not told.
        """
        if direction == "both":
            self._switch.do(f"ip link set {self._port} {state}")
        elif state == "down":
            match = {"in": "iifname != lo", "out": "oifname != lo"}[direction]
            self._drop("link", direction, match)
        else:
            self._up().do(f"nft delete table inet link-{direction}")

    def drop(self, port: int | str, direction: str = "in") -> None:
        """Drop, as a firewall, what goes to a port: this host's ("in") or others' ("out").

        port: "20000-30000" drops what goes to any of them.
        """
        self._drop("ports", direction, f"tcp dport {port}")

    def shape(self, rate: str | None, burst: str = "64kb", latency: str = "50ms") -> None:
        """Let no more than `rate` ("100mbit") out, and in; None: as fast as it goes.

        burst, latency: of tbf, what may go at once and how long a packet may wait its turn.
        """
        words = f"root tbf rate {rate} burst {burst} latency {latency}"
        for where, device in ((self._up(), INTERFACE), (self._switch, self._port)):
            if rate:
                where.do(f"tc qdisc replace dev {device} {words}")
            else:
                where.do(f"tc qdisc delete dev {device} root 2>&1 || true")

    def heal(self) -> None:
        """Undo link, drop and shape."""
        self._switch.do(f"ip link set {self._port} up")
        self._up().do("nft flush ruleset")
        self.shape(None)

    def freeze(self) -> None:
        """Stop every process; the kernel answers for them as it does for a program that hangs."""
        until = time.monotonic() + FREEZE_LIMIT
        while running := [p for p in self.processes() if _status(p) not in _STILL]:
            assert time.monotonic() < until, f"{self.name} does not freeze: {running}"
            _send(running, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let them go on, with nsenter, which stops outside when what it waits for stops."""
        inside = self.processes()
        own = {self._up().init, *(process.pid for process in inside)}
        outside = [parent for p in inside if (parent := p.parent()) and parent.pid not in own]
        _send([*inside, *outside], signal.SIGCONT)

    def kill(self, silently: bool = False) -> None:
        """Kill every process at once; `boot` brings the host back.

        silently: the cable goes first and no other host hears of it, as when the power fails.
        """
        if silently:
            self.link("down")
        inside, self._inside = self._up(), None
        inside.end()

    def down(self) -> None:
        """Kill it if it is up."""
        if self._inside is not None:
            self.kill()

    def _drop(self, table: str, direction: str, match: str) -> None:
        hook = {"in": "input", "out": "output"}[direction]
        self._up().do(
            f"nft 'table inet {table}-{direction} {{ chain {direction} {{"
            f" type filter hook {hook} priority 0; {match} drop; }}; }}'"
        )

    def _up(self) -> Namespace:
        assert self._inside is not None, f"{self.name} is down"
        return self._inside


def _send(processes: Sequence[psutil.Process], number: int) -> None:
    for process in processes:
        try:
            process.send_signal(number)
        except psutil.NoSuchProcess:
            continue


def _status(process: psutil.Process) -> str:
    try:
        return process.status()
    except psutil.NoSuchProcess:
        return psutil.STATUS_DEAD
