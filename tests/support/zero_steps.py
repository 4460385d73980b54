"""The same training steps by our update of ZeRO's partitions and by DeepSpeed's own."""

import json
from pathlib import Path

import torch
import torch.distributed as dist

from ds_moe_mtl.engine.zero_update import update_in_one_pass
from tests.support.launch import ROOT
from tests.support.steps import start_tiny

STEPS = 4
PIECE = 1000
"""Weights; smaller than the embedding, larger than a bias: pieces cut and join gradients."""

REPLACED = (
    "step",
    "scaled_global_norm",
    "get_grad_norm_direct",
    "setup_buckets",
    "reduce_ready_partitions_and_remove_grads",
    "reduce_ipg_grads",
)


def both_updates(folder: str, cases: list[dict]) -> list[dict]:
    """Return what a rank holds after the steps of each case, ours and theirs; on each rank."""
    return [_both(Path(folder), case) for case in cases]


def _both(folder: Path, case: dict) -> dict:
    deepspeed = json.loads((ROOT / f"ds_configs/deepspeed/{case['zero']}.json").read_text())
    deepspeed["optimizer"]["type"] = case.get("optimizer", "AdamW")
    if case.get("optimizer") == "Adam":
        deepspeed["optimizer"]["params"]["adam_w_mode"] = False
    path = folder / f"update{dist.get_rank()}.json"  # each rank its own: none reads half a file
    path.write_text(json.dumps(deepspeed))
    sections = {
        "moe": {"ep_size": case.get("ep_size", 1)},
        "train": {
            "steps": STEPS,
            "precision": case["precision"],
            "clip": case["clip"],
            "accumulation": case.get("accumulation", 1),
        },
    }
    theirs = start_tiny(str(folder), sections, path)
    for name in REPLACED:
        vars(theirs.engine.optimizer).pop(name, None)  # the class has its own
    ours = start_tiny(str(folder), sections, path)
    zero = ours.engine.optimizer
    replaced = "step" in vars(zero)
    update_in_one_pass(zero, PIECE)
    before = _tensors(zero)
    for run in (ours, theirs):
        run.go()
    return {
        "replaced": replaced,
        "pieces": sum(part.numel() for part in zero.single_partition_of_fp32_groups) / PIECE,
        "moved": not any(torch.equal(a, b) for a, b in zip(before, _tensors(zero), strict=False)),
        "norms": [row["grad_norm"] for row in ours.rows if "grad_norm" in row],
        "their_norms": [row["grad_norm"] for row in theirs.rows if "grad_norm" in row],
        "tensors": _tensors(zero),
        "their_tensors": _tensors(theirs.engine.optimizer),
    }


def _tensors(zero) -> list[torch.Tensor]:
    """Return copies of a rank's fp32 partitions, all 16-bit weights, and Adam's moments."""
    found = [*zero.single_partition_of_fp32_groups, *zero.bit16_groups_flat]
    for partition in zero.single_partition_of_fp32_groups:
        state = zero.optimizer.state.get(partition, {})
        found += [state[name] for name in ("exp_avg", "exp_avg_sq", "step") if name in state]
    return [tensor.detach().clone() for tensor in found]
