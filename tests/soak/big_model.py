"""Trains a BERT with experts for a few steps in one process and says what memory it took.

    python tests/soak/big_model.py --size bert_large --experts 4 --zero 2 [--layers 6] [--offload]

Random weights of the given size, bf16, Adam, one CPU process on DeepSpeed's engine. What the states
should take (ds_moe_mtl.models.memory) and what the process should need are printed first; nothing
is built where that exceeds --limit-gib or the memory that is free. `--zero 3` shows DeepSpeed's
refusal.
"""

import argparse
import json
import os
import resource
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

import psutil  # noqa: E402  (the paths above come first)
import torch  # noqa: E402

from ds_moe_mtl.models import memory  # noqa: E402
from ds_moe_mtl.models.shape import SIZES, Shape  # noqa: E402

GIB = 2**30
IMPORTS_GIB = 0.5
PEAK_BYTES_A_WEIGHT = 33
"""Measured (docs/memory.md): the states' 16, copies of gradients and freed blocks that stay."""

EXAMPLES, TOKENS, GATES = 4, 32, 8


def main() -> int:
    options = parse()
    shape = SIZES[options.size]
    if options.layers:
        shape = shape._replace(layers=options.layers)
    weights = memory.count_weights(shape, options.experts, GATES)
    if options.zero < 3:
        states = memory.state_bytes(weights, options.zero, 1, 1, "bf16").total / GIB
        needed = PEAK_BYTES_A_WEIGHT * weights.total / GIB + IMPORTS_GIB
        allowed = min(options.limit_gib, psutil.virtual_memory().available / GIB)
        print(f"{weights.total / 1e6:,.0f}M weights; states {states:.1f} GiB, peak {needed:.1f}")
        if needed > allowed:
            print(f"not run: {allowed:.1f} GiB are free, or allowed by --limit-gib")
            return 1
    rows = train(shape, options)
    print(json.dumps(rows))
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="bert_large")
    parser.add_argument("--layers", type=int, help="default: the size's own")
    parser.add_argument("--experts", type=int, default=4)
    parser.add_argument("--zero", type=int, choices=(1, 2, 3), default=2)
    parser.add_argument("--offload", action="store_true", help="offload_optimizer: cpu")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--limit-gib", type=float, default=15.0)
    return parser.parse_args()


def train(shape: Shape, options: argparse.Namespace) -> dict:
    """Return peaks and bytes a weight after `options.steps` steps."""
    from ds_moe_mtl.models import upcycle
    from ds_moe_mtl.moe import to_deepspeed
    from ds_moe_mtl.moe.optimizer_groups import parameter_groups
    from ds_moe_mtl.training.engine import start_process_group
    from ds_moe_mtl.training.rendezvous import rendezvous

    start_process_group(rendezvous(os.environ))
    import deepspeed
    from transformers import BertConfig, BertModel

    before = peak()
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.intermediate,
    )
    model = BertModel(config, add_pooling_layer=False)
    upcycle(model, num_experts=options.experts, num_gates=GATES)
    count = sum(parameter.numel() for parameter in model.parameters())
    to_deepspeed(model.to(torch.bfloat16))
    peaks = {"built": peak()}
    engine, *_ = deepspeed.initialize(
        model=model,
        model_parameters=parameter_groups(model, 0.0, (0.9, 0.999), True),
        config=deepspeed_config(options),
        dist_init_required=False,
    )
    peaks["engine"] = peak()
    seconds = []
    for step in range(options.steps):
        began = time.perf_counter()
        draw = torch.Generator().manual_seed(step)
        ids = torch.randint(1000, 30_000, (EXAMPLES, TOKENS), generator=draw)
        gates = torch.arange(EXAMPLES) % GATES
        out = engine(input_ids=ids, attention_mask=torch.ones_like(ids), gate_ids=gates)
        engine.backward(out.last_hidden_state.float().square().mean())
        peaks[f"backward {step + 1}"] = peak()
        engine.step()
        peaks[f"step {step + 1}"] = peak()
        seconds.append(round(time.perf_counter() - began, 1))
    return {
        "weights": count,
        "zero": options.zero,
        "offload": options.offload,
        "imports_gib": round(before, 2),
        "peak_gib_after": {stage: round(gib, 2) for stage, gib in peaks.items()},
        "bytes_a_weight": round((peak() - before) * GIB / count, 2),
        "seconds_a_step": seconds,
    }


def deepspeed_config(options: argparse.Namespace) -> dict:
    zero = {"stage": options.zero}
    if options.offload:
        zero["offload_optimizer"] = {"device": "cpu"}
    return {
        "train_batch_size": EXAMPLES,
        "bf16": {"enabled": True},
        "zero_optimization": zero,
        # Otherwise DeepSpeed insists on its own CPUAdam, which it compiles first.
        "zero_force_ds_cpu_optimizer": False,
        "gradient_clipping": 1.0,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-4, "torch_adam": True, "fused": True}},
        "steps_per_print": 10**9,
    }


def peak() -> float:
    """Return this process's largest resident memory so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)
