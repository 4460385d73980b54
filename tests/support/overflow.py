"""fp16 runs with a step whose loss is beyond its range on one rank, and what they left behind."""

import json
from pathlib import Path

from tests.support.launch import ROOT
from tests.support.steps import start_tiny

BAD_STEP = 2


def write_fp16(folder: Path) -> Path:
    """Write a DeepSpeed JSON (ZeRO 2, loss scale 256, halved at once) and return its path."""
    config = json.loads((ROOT / "ds_configs/deepspeed/zero2.json").read_text())
    config["fp16"] = {"enabled": "auto", "initial_scale_power": 8, "hysteresis": 1}
    path = folder / "fp16.json"
    path.write_text(json.dumps(config))
    return path


class Poisoned:
    """A loader whose batch of BAD_STEP weighs its loss beyond float32, where `bad`."""

    def __init__(self, loader, bad: bool) -> None:
        self.loader, self.bad = loader, bad
        self.stall_seconds = self.attention_padding = 0.0
        self.close = loader.close

    def __iter__(self):
        for step, (micro_batches, examples) in enumerate(self.loader):
            if step == BAD_STEP and self.bad:
                micro_batches[0].weights_B.fill_(1e38)
            yield micro_batches, examples


def overflow_on_one_rank(
    folder: str, json_path: str, ep_sizes: list[int], bad_rank: int, kernels: str = "auto"
) -> list[dict]:
    """Return, for each ep_size, weights and loss scales around a step whose loss is infinite.

    kernels: train.update_kernels of the last of them.
    """
    from deepspeed.accelerator import get_accelerator
    from torch import distributed as dist

    get_accelerator().is_fp16_supported = lambda: True
    results = []
    for ep_size, last in zip(ep_sizes, [*["auto"] * (len(ep_sizes) - 1), kernels], strict=True):
        sections = {
            "moe": {"ep_size": ep_size},
            "train": {"precision": "fp16", "steps": 5, "save_every": 1, "update_kernels": last},
        }
        run = start_tiny(folder, sections, Path(json_path), device="cuda")
        results.append([])
        said = []
        run.skipped.say = said.append

        def record(step, engine=run.engine, history=results[-1], said=said, run=run):
            weights = {k: v.detach().clone() for k, v in engine.module.state_dict().items()}
            scale = engine.optimizer.loss_scale
            history.append({"weights": weights, "scale": scale, "skipped": engine.skipped_steps})
            history[-1] |= {"said": list(said), "counted": run.skipped.count}

        run.save = record
        run.loader = Poisoned(run.loader, dist.get_rank() == bad_rank)
        run.go()
    return results
