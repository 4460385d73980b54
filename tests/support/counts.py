"""What one training step asks of torch, of the host and of other ranks, counted while it runs."""

import json
from collections import Counter
from pathlib import Path

import torch
from torch import distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime.interpreter import GridExecutor

from tests.support.launch import ROOT
from tests.support.steps import start_tiny

HOST_READS = ("_local_scalar_dense", "is_nonzero", "equal", "masked_select", "_unique2")
"""Operators whose result the host waits for; each of them empties a GPU's queue. `nonzero` is left
out: attention's plan on a CPU is the one user, a GPU's has none."""

COUNTED_STEP = 3
"""The step that is counted, from 0: DeepSpeed's throughput timer starts with the third."""


class Counts(TorchDispatchMode):
    """Counts operators and Triton's launches by name, and walks over modules, while entered."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter = Counter()
        self.launches = self.walks = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names[f"{function.namespace}.{function.overloadpacket.__name__}"] += 1
        return function(*args, **(kwargs or {}))

    def __enter__(self):
        self._kept = GridExecutor.__call__, torch.nn.Module.modules
        run_grid, modules = self._kept

        def launch(executor, *args, **kwargs):
            # What the interpreter itself does with tensors is no operator of the step.
            self.launches += 1
            before = self.names.copy()
            run_grid(executor, *args, **kwargs)
            self.names = before

        def walk(module):
            self.walks += 1
            return modules(module)

        GridExecutor.__call__, torch.nn.Module.modules = launch, walk
        return super().__enter__()

    def __exit__(self, *ended):
        GridExecutor.__call__, torch.nn.Module.modules = self._kept
        return super().__exit__(*ended)

    def summary(self) -> dict[str, int]:
        """Return the counts that a test holds."""
        ours = {name: n for name, n in self.names.items() if not name.startswith("c10d")}
        return {
            "operators": sum(ours.values()),
            "selects": self.names["aten.select_backward"],
            "launches": self.launches,
            "host_reads": sum(self.names[f"aten.{name}"] for name in HOST_READS),
            "collectives": sum(self.names.values()) - sum(ours.values()),
            "walks": self.walks,
        }


def count_steps(folder: str, cases: list[dict]) -> list[dict]:
    """Return the counts of one step that is not logged, for each case: {"kind", "kernels", ...}.

    kernels: of layer and update both; further keys are the DeepSpeed JSON's, of zero_optimization.
    """
    return [_count(Path(folder), **case) for case in cases]


def _count(folder: Path, kind: str, kernels: str = "torch", **zero) -> dict[str, int]:
    from deepspeed.accelerator import get_accelerator

    deepspeed = json.loads((ROOT / "ds_configs/deepspeed/zero1.json").read_text())
    deepspeed["zero_optimization"] |= zero
    path = folder / f"counts{dist.get_rank()}.json"
    path.write_text(json.dumps(deepspeed))
    sections = {
        "model": {"kind": kind},
        "moe": {"impl": kernels, "tied_steps": 2 if kind == "mt_tag" else 0},
        "train": {"steps": 9, "precision": "bf16", "log_every": 100, "update_kernels": kernels},
    }
    run = start_tiny(str(folder), sections, path)
    run.engine.train()
    synchronised = []
    accelerator = get_accelerator()
    accelerator.synchronize = lambda *_: synchronised.append(1)
    try:
        for step, (micro_batches, examples) in enumerate(run.loader):
            synchronised.clear()
            with Counts() as counts:
                run.step(step, micro_batches, examples)
            if step == COUNTED_STEP:
                break
    finally:
        del accelerator.synchronize
        run.loader.close()
    return {**counts.summary(), "synchronisations": len(synchronised)}
