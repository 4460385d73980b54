"""A two-node Slurm for tests: brought up once, asked through its own commands."""

import os
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.support.launch import LIMIT, rank_environ

SCRIPTS = Path(__file__).parent
UNAVAILABLE = 3  # up.sh's status where this machine cannot have a Slurm


class SlurmUnavailable(RuntimeError):
    """This machine cannot have a Slurm; the text is the reason."""


class Cluster:
    """Nodes node0 and node1, four CPUs each (on paper); partitions "batch" and "urgent".

    Both are this machine; tests/support/hosts/slurm.py has two that are hosts.
    """

    def __init__(self, folder: Path):
        """Bring it up under `folder`. Raises SlurmUnavailable where that is not possible."""
        if os.environ.get("DS_MOE_MTL_SLURM") == "0":
            raise SlurmUnavailable("DS_MOE_MTL_SLURM=0")
        self.folder = folder
        up = subprocess.run(
            [SCRIPTS / "up.sh", folder], capture_output=True, text=True, timeout=300
        )
        if up.returncode == UNAVAILABLE:
            raise SlurmUnavailable(up.stderr.strip())
        if up.returncode != 0:
            self.down()
            raise AssertionError(f"up.sh ended with {up.returncode}\n{up.stdout}\n{up.stderr}")
        self.environ = rank_environ({"SLURM_CONF": str(folder / "slurm.conf")})

    def down(self) -> None:
        subprocess.run([SCRIPTS / "down.sh", self.folder], check=True, timeout=60)

    def ask(self, *command: str | Path, cwd: Path | None = None) -> str:
        """Return what a Slurm command prints."""
        run = subprocess.run(
            self._line(command, cwd or Path.cwd()),
            env=self.environ,
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert run.returncode == 0, f"{command}: {run.stdout} {run.stderr}"
        return run.stdout.strip()

    def _line(self, command: Sequence[str | Path], cwd: Path) -> list[str | Path]:
        """Return the command line that runs a Slurm command where one has to be run."""
        return list(command)

    def submit(self, *words: str | Path, cwd: Path) -> str:
        """Return the id of a job of one CPU a task and no GPU; `words` follow `sbatch`."""
        small = ("--ntasks-per-node=1", "--cpus-per-task=1", "--gpus-per-node=0")
        return self.ask("sbatch", "--parsable", *small, *words, cwd=cwd)

    def job(self, job: str) -> dict[str, str]:
        """Return Slurm's record of a job (JobState, Restarts, ExitCode, ...)."""
        words = self.ask("scontrol", "show", "job", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait_until(self, job: str, happened: Callable[[], bool], time_limit: float = LIMIT) -> None:
        """Return once `happened()`; AssertionError with the job's record and logs if it is late."""
        until = time.monotonic() + time_limit
        while not happened():
            assert time.monotonic() < until, f"{self.job(job)}\n{self._logs(job)}"
            time.sleep(0.1)

    def wait_for_state(self, job: str, state: str, time_limit: float = LIMIT) -> None:
        """Return once Slurm has the job in `state` ("COMPLETED", "CANCELLED", ...)."""
        self.wait_until(job, lambda: self.job(job)["JobState"] == state, time_limit)

    def _logs(self, job: str) -> str:
        folder = Path(self.job(job)["WorkDir"])
        logs = [*folder.glob(f"slurm-{job}.log"), *folder.glob(f"logs/{job}-*.log")]
        return "\n".join(f"{log.name}:\n{log.read_text()}" for log in logs)
