"""An sshd of our own on the loopback, for launchers that reach their nodes by ssh."""

import os
import shutil
import subprocess
import time
from pathlib import Path

from ds_moe_mtl.ranks.rendezvous import free_port

SBIN = "/usr/sbin:/usr/local/sbin"  # not on every user's PATH


class LoopbackSsh:
    """Serves while the `with` block lasts; `bin` holds an `ssh` that reaches it without a password.

    Keys, port and configuration live in `folder`: nothing of the user's own ssh is touched.
    """

    def __init__(self, folder: Path):
        self.folder, self.bin, self.port = folder, folder / "bin", free_port()
        self.bin.mkdir(parents=True)
        for key in ("host_key", "user_key"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)]
            subprocess.run(command, check=True)
        (folder / "sshd_config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {folder}/host_key\n"
            f"AuthorizedKeysFile {folder}/user_key.pub\nStrictModes no\nUsePAM no\nPidFile none\n"
        )
        (folder / "ssh_config").write_text(
            f"Host *\n  Port {self.port}\n  IdentityFile {folder}/user_key\n"
            "  StrictHostKeyChecking no\n  UserKnownHostsFile /dev/null\n  LogLevel ERROR\n"
        )
        (self.bin / "ssh").write_text(
            f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder}/ssh_config "$@"\n'
        )
        (self.bin / "ssh").chmod(0o755)

    def __enter__(self) -> "LoopbackSsh":
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # sshd's empty directory for unprivileged work
        program = shutil.which("sshd") or shutil.which("sshd", path=SBIN)
        self._server = subprocess.Popen(
            [program, "-D", "-f", self.folder / "sshd_config", "-E", self.folder / "sshd.log"]
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
    path = f"{os.environ.get('PATH', '')}:{SBIN}"
    return [
        name for name in ("sshd", "ssh", "ssh-keygen", "pdsh") if not shutil.which(name, path=path)
    ]
