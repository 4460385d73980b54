"""An ssh of a test's own: its keys, and the configuration of its server and of its clients."""

import subprocess
from pathlib import Path

SSH_PROGRAMS = {"sshd": "openssh-server", "ssh": "openssh-client", "ssh-keygen": "openssh-client"}


def write_ssh(folder: Path, port: int = 22, listen: str = "0.0.0.0") -> Path:
    """Write keys, sshd_config and ssh_config into a new folder, and return it.

    The client asks nothing and takes every server's key: for addresses that only this test has.
    """
    folder.mkdir(parents=True)
    for key in ("host_key", "user_key"):
        words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)]
        subprocess.run(words, check=True)
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress {listen}\nHostKey {folder}/host_key\n"
        f"AuthorizedKeysFile {folder}/user_key.pub\nStrictModes no\nUsePAM no\nPidFile none\n"
    )
    (folder / "ssh_config").write_text(
        f"Host *\n  Port {port}\n  IdentityFile {folder}/user_key\n  BatchMode yes\n"
        "  StrictHostKeyChecking no\n  UserKnownHostsFile /dev/null\n  LogLevel ERROR\n"
    )
    return folder
