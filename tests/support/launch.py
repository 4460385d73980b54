"""Starts N gloo ranks on this machine, for every test that needs more than one process.

GPUs are hidden from them unless `env` says otherwise: there may be fewer than ranks.

Used so:
    results = run_ranks(losses_of_three_steps, "paper", ranks=2)   # a function of a test file
    run = launch([ROOT / "train.py", config], ranks=2, launcher="mpirun")
    assert run.returncode == 0, run.text

The launcher "fork" forks the ranks from one process that has imported everything: on two cores
imports are most of what a short run costs. It is for tests whose subject is no launcher.
"""

import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import forkserver, get_context
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

import psutil

from ds_moe_mtl.ranks.rendezvous import free_port
from tests.support import rank_entry

ROOT = Path(__file__).resolve().parents[2]
ENTRY = Path(rank_entry.__file__)
SLOW_IMPORTS = (
    "ds_moe_mtl.training.train",
    "sklearn.metrics",
    "scipy.stats",
    "matplotlib.pyplot",
    "torch.utils.tensorboard",
    "datasets",
    "transformers.models.bert.modeling_bert",
)
MARK = "DS_MOE_MTL_TEST_LAUNCH"  # in the environment of all that a launch starts
LIMIT = 180.0  # seconds: a hang on a busy machine, where importing torch alone can take 40
# What an outer launcher may have left: a launched run must not take it for its own.
OUTER = ("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "OMPI_", "PMI", "MPI_LOCAL", "SLURM_")


@dataclass(frozen=True)
class Launched:
    """How a launched run ended; `returncode` is the launcher's own (negative: a signal)."""

    returncode: int
    stdout: str
    stderr: str
    seconds: float
    timed_out: bool

    @property
    def text(self) -> str:
        """Both outputs with the exit status, for an assertion's message."""
        ending = "killed at the time limit" if self.timed_out else f"status {self.returncode}"
        return f"{ending} after {self.seconds:.1f} s\n{self.stdout}\n{self.stderr}"


class Running:
    """A launched run that a test watches or signals; leave the `with` block to end it."""

    def __init__(self, command: Sequence[str], environ: Mapping[str, str], cwd: Path):
        self.mark = uuid.uuid4().hex
        self._folder = tempfile.TemporaryDirectory()
        self._texts = [Path(self._folder.name, name) for name in ("stdout", "stderr")]
        self._started = time.monotonic()
        self.process = self._begin(command, {**environ, MARK: self.mark}, cwd)

    def _begin(self, command: Sequence[str], environ: Mapping[str, str], cwd: Path):
        with self._texts[0].open("wb") as out, self._texts[1].open("wb") as err:
            return subprocess.Popen(
                list(command),
                env=environ,
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
                preexec_fn=_hear_interrupts,
            )

    def __enter__(self) -> "Running":
        return self

    def __exit__(self, *exception: object) -> None:
        self.kill()
        self._folder.cleanup()

    def output(self) -> tuple[str, str]:
        """Return what the run has written so far: (stdout, stderr)."""
        out, err = (path.read_text(errors="replace") for path in self._texts)
        return out, err

    def wait_until(self, happened: Callable[[], bool], time_limit: float = LIMIT) -> None:
        """Return once `happened()`; AssertionError with the output if the run ends or is late."""
        until = time.monotonic() + time_limit
        while not happened():
            ended = self.process.poll() is not None
            assert not ended and time.monotonic() < until, "\n".join(self.output())
            time.sleep(0.05)

    def wait(self, time_limit: float = LIMIT) -> Launched:
        """Return the ended run; past `time_limit` seconds it is killed and marked so."""
        timed_out = False
        try:
            self.process.wait(time_limit)
        except subprocess.TimeoutExpired:
            timed_out = True
        self.kill()
        seconds = time.monotonic() - self._started
        return Launched(self.process.returncode, *self.output(), seconds, timed_out)

    def processes(self) -> list[psutil.Process]:
        """Return everything this launch started that still lives, in whatever session it is."""
        return [process for process, _ in self._marked()]

    def ranks(self) -> list[psutil.Process]:
        """Return the living ranks in order, by the rank that their launcher gave them."""
        ranked = [(e.get("RANK", e.get("PMI_RANK")), p) for p, e in self._marked()]
        return [p for _, p in sorted(((r, p) for r, p in ranked if r), key=lambda x: int(x[0]))]

    def _marked(self) -> list[tuple[psutil.Process, dict[str, str]]]:
        found = [(process, _environ(process)) for process in psutil.process_iter()]
        return [(p, environ) for p, environ in found if environ.get(MARK) == self.mark]

    def kill(self) -> None:
        """Kill all of it. torchrun puts its workers into sessions of their own: hence the mark."""
        if self.process.poll() is None:
            self._kill_group()
        for left in self.processes():
            try:
                left.kill()
            except psutil.NoSuchProcess:
                continue
        self.process.wait()

    def _kill_group(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)


class ForkedRanks:
    """The ranks of a forked run, with what tests use of a subprocess.Popen; a signal goes to all.

    together: it ends with the first rank that fails, as under torchrun; otherwise with the last.
    returncode: the first status other than 0, by rank; -N for one that signal N ended.
    """

    def __init__(self, processes: Sequence[ForkServerProcess], together: bool):
        self.processes, self.together = processes, together
        self.pid = processes[0].pid

    @property
    def returncode(self) -> int | None:
        codes = [process.exitcode for process in self.processes]
        failed = [code for code in codes if code]
        if None in codes and not (self.together and failed):
            return None
        return failed[0] if failed else 0

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float = LIMIT) -> int:
        until = time.monotonic() + timeout
        while self.returncode is None:
            living = [process.sentinel for process in self.processes if process.exitcode is None]
            if not wait(living, max(until - time.monotonic(), 0)) and time.monotonic() > until:
                raise subprocess.TimeoutExpired("forked ranks", timeout)
        return self.returncode

    def send_signal(self, number: int) -> None:
        for process in self.processes:
            if process.exitcode is None:
                os.kill(process.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Forked(Running):
    """A run whose ranks are forked. `command`: their number, a Python file or -m, arguments."""

    together = False

    def _begin(self, command: Sequence[str], environ: Mapping[str, str], cwd: Path) -> ForkedRanks:
        size, *words = command
        texts = [str(path) for path in self._texts]
        for path in self._texts:
            path.touch()
        world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": size}
        if size == "1":  # as plain `python`: a world of one
            world = {}
        processes = []
        for rank in map(str, range(int(size))):
            place = {"RANK": rank, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size} if world else {}
            arguments = (words, {**environ, **world, **place}, str(cwd), *texts)
            processes.append(forkserver_context().Process(target=rank_entry.run, args=arguments))
            processes[-1].start()
        return ForkedRanks(processes, self.together)

    def processes(self) -> list[psutil.Process]:
        return [*self.ranks(), *super().processes()]

    def ranks(self) -> list[psutil.Process]:
        living = [process for process in self.process.processes if process.exitcode is None]
        return [psutil.Process(process.pid) for process in living]

    def _kill_group(self) -> None:
        self.process.kill()


class ForkedTogether(Forked):
    """As Forked, ended by the first rank that fails."""

    together = True


def _hear_interrupts() -> None:
    """Have a started process hear Ctrl-C: a shell's background job, the suite say, does not."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(
    script: Sequence[str | Path],
    ranks: int = 2,
    launcher: str = "torchrun",
    env: Mapping[str, str] | None = None,
    cwd: Path = ROOT,
) -> Running:
    """Return a run of `script` (a python file and its arguments), started and not waited for."""
    words = [str(word) for word in script]
    if launcher == "fork":
        return Forked([str(ranks), *words], rank_environ(env), cwd)
    return Running(launch_line(words, ranks, launcher), rank_environ(env), cwd)


def launch(
    script: Sequence[str | Path],
    ranks: int = 2,
    launcher: str = "torchrun",
    env: Mapping[str, str] | None = None,
    cwd: Path = ROOT,
    time_limit: float = LIMIT,
) -> Launched:
    """Return how a run of `script` ended under torchrun | mpirun | deepspeed | python | fork."""
    with start(script, ranks, launcher, env, cwd) as running:
        return running.wait(time_limit)


def run_ranks(
    function: Callable[..., object],
    *arguments: object,
    ranks: int = 2,
    launcher: str | None = None,
    env: Mapping[str, str] | None = None,
    time_limit: float = LIMIT,
) -> list[object]:
    """Return what `function(*arguments)` returned on each rank of a gloo group, in rank order.

    The function is found by its file and name, so it must stand at the top of a module; arguments
    and results are pickled (plain values and tensors, no class of the test file). The group is
    made before the call and destroyed after it. Without a launcher the ranks are forked from one
    process that has imported everything: on two cores imports are most of what a rank costs. That
    process saw no GPU; a function that needs one needs a launcher.
    """
    with tempfile.TemporaryDirectory() as folder:
        call = Path(folder, "call.pkl")
        file = Path(function.__code__.co_filename).resolve()
        call.write_bytes(pickle.dumps((str(file), function.__name__, arguments)))
        if launcher is None:
            words = [str(ranks), str(ENTRY), str(call), folder]
            with ForkedTogether(words, rank_environ(env), ROOT) as running:
                run = running.wait(time_limit)
        else:
            run = launch([ENTRY, call, folder], ranks, launcher, env, time_limit=time_limit)
        results = [Path(folder, f"rank{rank}.pkl") for rank in range(ranks)]
        missing = [path.stem for path in results if not path.exists()]
        assert run.returncode == 0 and not missing, f"no result from {missing}; {run.text}"
        return [pickle.loads(path.read_bytes()) for path in results]


@lru_cache(maxsize=1)
def forkserver_context() -> ForkServerContext:
    """Return where ranks are forked from: started once, with a launched run's environment."""
    context = get_context("forkserver")
    context.set_forkserver_preload([rank_entry.__name__, *SLOW_IMPORTS])
    before = dict(os.environ)
    os.environ.update(rank_environ({"DS_ACCELERATOR": "cpu"}))
    try:
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)
    return context


def launch_line(script: Sequence[str], ranks: int, launcher: str) -> list[str]:
    """Return the command that starts `ranks` ranks of a python file with its arguments."""
    programs = Path(sys.executable).parent
    if launcher == "torchrun":
        options = ["--nproc-per-node", str(ranks), "--master-port", str(free_port())]
        return [sys.executable, "-m", "torch.distributed.run", *options, *script]
    if launcher == "mpirun":
        return [str(programs / "mpirun"), "-n", str(ranks), sys.executable, *script]
    if launcher == "deepspeed":
        options = ["--num_gpus", str(ranks), "--master_port", str(free_port())]
        return [str(programs / "deepspeed"), *options, *script]
    assert launcher == "python" and ranks == 1, f"{launcher} with {ranks} ranks"
    return [sys.executable, *script]


def rank_environ(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of a launched run: one thread, our sources, no outer launcher."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(OUTER)}
    sources = [str(ROOT), str(ROOT / "kernels"), kept.get("PYTHONPATH", "")]
    return {
        **kept,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}",
        "PYTHONPATH": os.pathsep.join(filter(None, sources)),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        **(extra or {}),
    }


def _environ(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return {}
