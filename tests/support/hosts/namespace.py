"""Linux namespaces held by one process, which end with it.

The holder ends with the process that made it, by SIGKILL too, and as the first process of a PID
namespace it takes all others in there along. The kernel then removes the network namespace and
the interfaces in it, so that nothing is left behind whatever happens.
"""

import os
import signal
import subprocess
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import psutil

from ds_moe_mtl.ranks.orphan import end_with_parent
from tests.support.hosts.packages import SBIN

INIT = Path(__file__).with_name("init.sh")
DO_LIMIT = 20


class Namespace:
    """A network and PID namespace, and those of `kinds`, arranged by init.sh with `words`."""

    def __init__(self, kinds: Sequence[str] = (), words: Sequence[str] = ()):
        held = ["--net", "--pid", "--fork", "--kill-child", "--mount-proc", *kinds]
        self._holder = subprocess.Popen(
            ["unshare", *held, "bash", INIT, *words],
            env={**os.environ, "PATH": f"{os.environ.get('PATH', '')}:{SBIN}"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=partial(end_with_parent, os.getpid()),
        )
        said = self._holder.stdout.readline()
        if said != "ready\n":
            said += self._holder.stdout.read()
            self._holder.wait()
            raise OSError(f"no namespace {' '.join(words)}: {said.strip()}")
        (init,) = psutil.Process(self._holder.pid).children()
        self.init = init.pid
        self._pid_namespace = _pid_namespace(self.init)

    @property
    def enter(self) -> list[str]:
        """The beginning of a command line that runs the rest of it in here."""
        return ["nsenter", "--all", "--target", str(self.init)]

    def do(self, script: str) -> str:
        """Return what a shell's script prints in here. AssertionError where it fails."""
        run = subprocess.run(
            ["nsenter", "--net", "--target", str(self.init), "sh", "-ec", script],
            env={**os.environ, "PATH": f"{os.environ.get('PATH', '')}:{SBIN}"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DO_LIMIT,
        )
        assert run.returncode == 0, f"{script}: {run.stdout}{run.stderr}"
        return run.stdout

    def processes(self) -> list[psutil.Process]:
        """Return what runs in here, but for the holder."""
        living = (process for process in psutil.process_iter() if process.pid != self.init)
        return [process for process in living if _pid_namespace(process.pid) == self._pid_namespace]

    def end(self) -> None:
        """Kill everything in here at once and wait until it is gone."""
        if self._holder.poll() is None:
            os.kill(self.init, signal.SIGKILL)
        self._holder.wait(DO_LIMIT)
        self._holder.stdout.close()


def _pid_namespace(pid: int) -> str:
    """Return which PID namespace a process is in; "" of one that has ended."""
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return ""
