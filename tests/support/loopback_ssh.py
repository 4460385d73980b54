"""An sshd of our own on the loopback, for launchers that reach their nodes by ssh."""

import os
import shutil
import subprocess
import time
from pathlib import Path

from ds_moe_mtl.ranks.rendezvous import free_port
from tests.support.hosts.packages import which
from tests.support.hosts.ssh import SSH_PROGRAMS, write_ssh


class LoopbackSsh:
    """Serves while the `with` block lasts; `bin` holds an `ssh` that reaches it without a password.

    Keys, port and configuration live in `folder`: nothing of the user's own ssh is touched.
    """

    def __init__(self, folder: Path):
        self.folder, self.bin = write_ssh(folder, free_port(), "127.0.0.1"), folder / "bin"
        self.bin.mkdir()
        (self.bin / "ssh").write_text(
            f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder}/ssh_config "$@"\n'
        )
        (self.bin / "ssh").chmod(0o755)

    def __enter__(self) -> "LoopbackSsh":
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # sshd's empty directory for unprivileged work
        self._server = subprocess.Popen(
            [which("sshd"), "-D", "-f", self.folder / "sshd_config", "-E", self.folder / "sshd.log"]
        )
        until = time.monotonic() + 20
        while subprocess.run([self.bin / "ssh", "localhost", "true"]).returncode != 0:
            assert time.monotonic() < until, (self.folder / "sshd.log").read_text()
            time.sleep(0.1)
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.terminate()
        self._server.wait()


def missing_programs() -> list[str]:
    """Return which programs of a loopback ssh and of deepspeed's hostfile launcher are missing."""
    return [name for name in (*SSH_PROGRAMS, "pdsh") if not which(name)]
