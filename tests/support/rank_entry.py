"""The ranks of a launched test: each joins a gloo group, calls the function, leaves its result.

Run by tests/support/launch.py as `rank_entry.py CALL OUTPUT [RANKS]`, where CALL is a pickle of
(file, function name, arguments) and OUTPUT the folder that receives `rank<N>.pkl`. Under a launcher
this is one rank; with RANKS it imports all there is to import and forks that many, which on few
cores takes a fraction of the time. The first that fails ends the others.
"""

import importlib.util
import os
import pickle
import signal
import sys
from pathlib import Path
from types import ModuleType

import torch
import torch.distributed as dist

from ds_moe_mtl.training.rendezvous import apply, free_port, rendezvous


def main(call: str, output: str, ranks: str | None = None) -> int:
    file, name, arguments = pickle.loads(Path(call).read_bytes())
    if ranks is None:
        apply(rendezvous(os.environ), os.environ)
        _be_a_rank(_load(file), name, arguments, Path(output))
    module = _load(file)
    import deepspeed  # noqa: F401 - nearly every test needs it, and imports it in its function

    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": ranks}
    children = set()
    for rank in range(int(ranks)):
        child = os.fork()
        if child == 0:
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": ranks}
            os.environ.update(shared | own)
            try:
                _be_a_rank(module, name, arguments, Path(output))
            except BaseException:
                sys.excepthook(*sys.exc_info())
                sys.stderr.flush()
                os._exit(1)
        children.add(child)
    while children:
        child, status = os.wait()
        children.discard(child)
        if status:
            for other in children:
                os.kill(other, signal.SIGKILL)
            return os.waitstatus_to_exitcode(status)
    return 0


def _load(file: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"launched_{Path(file).stem}", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _be_a_rank(module: ModuleType, name: str, arguments: tuple, output: Path) -> None:
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if gpu else "gloo")
    result = getattr(module, name)(*arguments)
    (output / f"rank{dist.get_rank()}.pkl").write_bytes(pickle.dumps(result))
    dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # as train.py: gloo's threads abort the interpreter's shutdown now and then


if __name__ == "__main__":
    # deepspeed puts --local_rank=N before the arguments.
    sys.exit(main(*[word for word in sys.argv[1:] if not word.startswith("--local_rank")]))
