"""A run's folder: who holds it, which configuration it belongs to, whether it is finished."""

import fcntl
import os
import re
import socket
import time
from collections.abc import Callable
from pathlib import Path

from ds_moe_mtl.config import RunConfig, UserError, differing_keys, dump_config, load_config
from ds_moe_mtl.config.files import read_json, write_json, write_text
from ds_moe_mtl.config.levers import SPARSE_KINDS
from ds_moe_mtl.engine.checkpoints import settle_removal

# What may differ between the start of a run and its continuation: none of it changes a number
# (the topology beyond rounding and dropout's draws: its checkpoints are reshaped).
_FREE_KEYS = (
    "run.dir",
    "run.resume",
    "run.extend",
    "run.elastic",
    "data.cache",
    "train.log_every",
    "train.save_every",
    "train.keep_checkpoints",
    "train.max_skipped",
    "train.hang_timeout",
    "train.threads",
    "train.accumulation",
    "moe.ep_size",
    "moe.exchange",
    "deepspeed",
    "track",
)
_EXTENDED_KEYS = ("train.steps", "train.epochs", "train.lr", "train.warmup", "train.patience")
"""What else may differ where run.extend says so: the schedule from here on."""

LOST_HOLDER = 120.0
"""Seconds that run.elastic waits for a folder: a file server lets go of what a lost host held when
its lease ends (NFS 4: 90 s)."""

_ASIDE = re.compile(r"previous-[0-9]+")
_TAKEN = re.compile(
    r"model|checkpoints|best|tensorboard|wandb|logs|lock|finetune|previous-.*", re.IGNORECASE
)
"""What a run's folder has, or may be given, that a task's folder below it must not be taken for."""


class RunFolder:
    """run.dir of one run. Only rank 0 writes into it (checkpoints excepted).

    steps: of the run, where they are known; run.extend compares them with those that are done.
    """

    def __init__(
        self, config: RunConfig, say: Callable[[str], None], steps: int | None = None
    ) -> None:
        self.config, self.steps = config, steps or config.train.steps
        self._say = say
        self.path = Path(config.run.dir)
        self._lock = None

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints lie."""
        return self.path / "checkpoints"

    def finished(self) -> dict | None:
        """Return results.json of a finished run of this configuration, or None.

        One that is to be extended is not finished. Raises UserError where the folder belongs to
        another configuration.
        """
        if self.config.run.resume == "never" or not (self.path / "config.yaml").exists():
            return None
        self._check_config()
        done = read_json(self.path / "results.json")
        if done is None or not self.config.run.extend:
            return done
        if self.steps is not None and done["steps"] > self.steps:
            raise UserError(
                f"run.extend: {self.path} has {done['steps']} steps and {self.steps} are asked "
                "for; allowed: more of them"
            )
        return done if done["steps"] == self.steps else None

    def claim(self) -> None:
        """Hold the folder for this process; the lock ends with the process, however it ends.

        Raises UserError where a live process holds it, where it belongs to another
        configuration, or where it cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / "lock").open("a+")
        except (OSError, ValueError) as error:  # a name with a zero byte is a ValueError
            reason = getattr(error, "strerror", error)
            raise UserError(f"run.dir: {str(self.path)!r:.80}: {reason}") from error
        until = time.monotonic() + (LOST_HOLDER if self.config.run.elastic else 0.0)
        told = not self.config.run.elastic
        while not self._hold():
            if not told:
                told = True
                self._say(
                    f"run.dir: {self.path} is in use by {self._holder()}: waiting for up to "
                    f"{LOST_HOLDER:.0f} s, in case that was a host that is lost"
                )
            if time.monotonic() >= until:
                holder = self._holder()
                self._lock.close()
                raise UserError(
                    f"run.dir: {self.path} is in use by {holder}; wait for it or set another "
                    "run.dir"
                )
            time.sleep(0.5)
        try:
            self._lock.truncate(0)
            self._lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            self._lock.flush()
            settle_removal(self.checkpoints)
        except OSError as error:
            raise UserError(f"run.dir: {self.path}: {error.strerror}") from error
        if (self.path / "config.yaml").exists():
            if self.config.run.resume == "never":
                self._put_aside()
            elif self.finished() is None and (self.path / "results.json").exists():
                self._extend()
        self._check_checkpoint()

    def _holder(self) -> str:
        self._lock.seek(0)
        return self._lock.read().strip() or "another process"

    def _hold(self) -> bool:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def release(self) -> None:
        """Let another process have the folder."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def write_start(self, deepspeed_config: dict, environment: dict) -> None:
        """Write config.yaml, deepspeed.json and environment.json."""
        write_text(self.path / "config.yaml", dump_config(self.config))
        write_json(self.path / "deepspeed.json", deepspeed_config)
        write_json(self.path / "environment.json", environment)

    def _put_aside(self) -> None:
        """Move an earlier run's files into previous-<n>/, so that nothing is lost."""
        earlier = {item for item in self.path.iterdir() if _ASIDE.fullmatch(item.name)}
        taken = [int(item.name.partition("-")[2]) for item in earlier]
        aside = self.path / f"previous-{max(taken, default=0) + 1}"
        aside.mkdir()
        for item in self.path.iterdir():
            if item.name != "lock" and item not in {aside, *earlier}:
                item.rename(aside / item.name)
        self._say(f"run.resume is never: the earlier run is now in {aside}")

    def _extend(self) -> None:
        """Let a complete run go on: results-<steps>.json keeps what it came to."""
        if not any(self.checkpoints.glob("step_*")):
            raise UserError(
                f"run.extend: {self.path} keeps no checkpoint (train.keep_checkpoints was 0); "
                f"allowed: a new run with start.model={self.path}"
            )
        steps = read_json(self.path / "results.json")["steps"]
        (self.path / "results.json").rename(self.path / f"results-{steps}.json")
        self._say(f"extending {self.path} from {steps} to {self.steps} steps")

    def _check_config(self) -> None:
        before = load_config(self.path / "config.yaml", check_files=False)
        free_keys = _FREE_KEYS if self.config.model.kind in SPARSE_KINDS else (*_FREE_KEYS, "moe")
        if self.config.run.extend:
            free_keys = (*free_keys, *_EXTENDED_KEYS)
        if self.config.train.select == "last":
            free_keys = (*free_keys, "train.eval_every")
        keys = [
            key
            for key in differing_keys(before, self.config)
            if not any(key == free or key.startswith(free + ".") for free in free_keys)
        ]
        if keys:
            raise UserError(
                f"run.dir: {self.path} holds a run with another configuration; "
                f"different: {', '.join(keys)}; set another run.dir"
            )

    def _check_checkpoint(self) -> None:
        """Raise UserError where the run that run.resume names scales its experts otherwise.

        The default was another once, and the weights do not show it.
        """
        resume, kind = self.config.run.resume, self.config.model.kind
        its_config = Path(resume).parent.parent / "config.yaml"
        if resume in ("auto", "never") or kind not in SPARSE_KINDS or not its_config.is_file():
            return
        scale, there = self.config.moe.gate_scale, load_config(its_config, check_files=False).moe
        if scale != there.gate_scale:
            raise UserError(
                f"run.resume: moe.gate_scale is {there.gate_scale} in {resume} and {scale} here; "
                f"make them agree"
            )


def task_folder(run: Path, task: str) -> Path:
    """Return the folder of one task's model below a run of single-task models: run/<task>.

    A task that is called as a part of a run's folder has run/<task>.task; no name has a dot.
    """
    return run / (f"{task}.task" if _TAKEN.fullmatch(task) else task)
