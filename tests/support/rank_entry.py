"""One rank of a launched test: joins a gloo group, calls the function, leaves its result.

Run by tests/support/launch.py, under a launcher as `rank_entry.py CALL OUTPUT`, where CALL is a
pickle of (file, function name, arguments) and OUTPUT the folder that receives `rank<N>.pkl`.
"""

import importlib.util
import os
import pickle
import runpy
import signal
import sys
import traceback
from pathlib import Path

import torch
import torch.distributed as dist

from ds_moe_mtl.ranks.rendezvous import apply, rendezvous


def main(call: str, output: str) -> None:
    file, name, arguments = pickle.loads(Path(call).read_bytes())
    apply(rendezvous(os.environ), os.environ)
    spec = importlib.util.spec_from_file_location(f"launched_{Path(file).stem}", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if gpu else "gloo")
    result = getattr(module, name)(*arguments)
    Path(output, f"rank{dist.get_rank()}.pkl").write_bytes(pickle.dumps(result))
    dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # as train.py: gloo's threads abort the interpreter's shutdown now and then


def run(words: list[str], environ: dict[str, str], cwd: str, out: str, err: str) -> None:
    """Be `python WORDS` in a forked process that has imported much already."""
    os.setsid()
    os.environ.clear()
    os.environ.update(environ)
    os.chdir(cwd)
    for stream, name in ((1, out), (2, err)):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    status = 1
    try:
        status = _status_of(words)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except Exception:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _status_of(words: list[str]) -> int:
    """Return the exit status of a Python file, or of a module after -m, with its arguments."""
    try:
        if words[0] == "-m":
            sys.argv = words[1:]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = words
            sys.path.insert(0, str(Path(words[0]).parent))
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return end.code or 0
    return 0


if __name__ == "__main__":
    # deepspeed puts --local_rank=N before the arguments.
    main(*[word for word in sys.argv[1:] if not word.startswith("--local_rank")])
