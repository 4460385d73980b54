"""One rank of a launched test: joins a gloo group, calls the function, leaves its result.

Run by tests/support/launch.py, under a launcher as `rank_entry.py CALL OUTPUT`, where CALL is a
pickle of (file, function name, arguments) and OUTPUT the folder that receives `rank<N>.pkl`.
"""

import importlib.util
import os
import pickle
import sys
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


def forked(call: str, output: str, environ: dict[str, str], cwd: str) -> None:
    """Be the rank that `environ` says, in a forked process; what it says goes to OUTPUT."""
    os.environ.clear()
    os.environ.update(environ)
    os.chdir(cwd)
    for stream, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(Path(output, name), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, stream)
    main(call, output)


if __name__ == "__main__":
    # deepspeed puts --local_rank=N before the arguments.
    main(*[word for word in sys.argv[1:] if not word.startswith("--local_rank")])
