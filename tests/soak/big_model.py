"""Trains encoders with experts for a few steps in one process and says what memory it took.

    python tests/soak/big_model.py --size bert_large --experts 4 --zero 2 [--layers 6] [--offload]
    python tests/soak/big_model.py --experts 4 16 --zero 1 2 --checkpointing off on \
        --offload off on --sequences 32 --length 128     # every combination, one after the other

MT-TaG of random weights of the given size, eight gates, bf16, Adam, on DeepSpeed's engine. Each row
holds the planner's peak (ds_moe_mtl.planner.memory)
and the measured one: what torch's allocator held on a GPU, the process's resident memory on a CPU,
where nothing is built that exceeds --limit-gib or the memory that is free. `--zero 3` shows
DeepSpeed's refusal.
"""

import argparse
import gc
import itertools
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

from ds_moe_mtl.benchmark.encoder_shape import (  # noqa: E402
    build,
    known_config,
    shape_of,
    with_layers,
)
from ds_moe_mtl.config.deepspeed import UPDATE_PIECE  # noqa: E402
from ds_moe_mtl.planner import memory  # noqa: E402
from ds_moe_mtl.planner.shape import KNOWN_ENCODERS, SIZES, Shape  # noqa: E402

GIB = 2**30
IMPORTS_GIB = 0.5
PEAK_BYTES_A_WEIGHT = 33
"""Measured (docs/memory.md): the states' 16, copies of gradients and freed blocks that stay."""

GATES, DROPOUT = 8, 0.1
BUCKET = 50_000_000  # elements, as in ds_configs/deepspeed
SWITCH = ("off", "on")


def main() -> int:
    options = parse()
    shape = shape_asked(options)
    device = start()
    status = 0
    cases = itertools.product(
        options.experts, options.zero, options.offload or ["on"], options.checkpointing
    )
    for experts, zero, offload, checkpointing in cases:
        row = {
            "size": options.size,
            "layers": shape.layers,
            "vocabulary": shape.vocabulary,
            "experts": experts,
            "zero": zero,
            "offload": offload == "on",
            "checkpointing": checkpointing == "on",
            "tokens": f"{options.sequences} x {options.length}",
            "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        }
        weights = memory.count_weights(shape, experts, GATES)
        row["weights"] = weights.total
        if zero < 3:
            row["planned_gib"] = round(planned(shape, weights, row, options, device) / GIB, 2)
        needed = PEAK_BYTES_A_WEIGHT * weights.total / GIB + IMPORTS_GIB
        allowed = min(options.limit_gib, psutil.virtual_memory().available / GIB)
        if device.type == "cpu" and zero < 3 and needed > allowed:
            row["not_run"] = f"needs {needed:.1f} GiB; {allowed:.1f} are free, or --limit-gib"
            status = 1
        else:
            row |= measured(shape, row, options, device)
        print(json.dumps(row), flush=True)
        if options.output:
            with options.output.open("a") as file:
                file.write(json.dumps(row) + "\n")
    return status


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=(*SIZES, *KNOWN_ENCODERS), default="bert_large")
    parser.add_argument("--vocabulary", type=int, help="default: the size's own")
    parser.add_argument("--layers", type=int, help="default: the size's own")
    parser.add_argument("--experts", type=int, nargs="+", default=[4])
    parser.add_argument("--zero", type=int, choices=(1, 2, 3), nargs="+", default=[2])
    parser.add_argument(
        "--offload", choices=SWITCH, nargs="*", default=["off"], help="optimizer on the host"
    )
    parser.add_argument("--checkpointing", choices=SWITCH, nargs="+", default=["off"])
    parser.add_argument("--sequences", type=int, default=4)
    parser.add_argument("--length", type=int, default=32, help="tokens a sequence")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--limit-gib", type=float, default=15.0, help="on a CPU")
    parser.add_argument("--output", type=Path, help="append the rows to this file")
    return parser.parse_args()


def encoder_asked(options):
    """Return transformers' configuration of the encoder; None: a BERT."""
    if options.size in SIZES:
        return None
    config = known_config(options.size)
    config.vocab_size = options.vocabulary or config.vocab_size
    return with_layers(config, options.layers or config.num_hidden_layers)


def shape_asked(options) -> Shape:
    config = encoder_asked(options)
    if config is not None:
        return shape_of(config)
    shape = SIZES[options.size]
    return shape._replace(
        layers=options.layers or shape.layers, vocabulary=options.vocabulary or shape.vocabulary
    )


def start() -> torch.device:
    from ds_moe_mtl.engine.engine import start_process_group
    from ds_moe_mtl.ranks.rendezvous import rendezvous

    return start_process_group(rendezvous(os.environ))


def planned(shape: Shape, weights, row: dict, options, device: torch.device) -> float:
    """Return the planner's peak in bytes."""
    count, length = options.sequences, options.length
    tokens = memory.Tokens(count * length, count * length, count * length**2, count)
    on_gpu = device.type == "cuda"
    activations = memory.activation_bytes(
        shape,
        tokens,
        "bf16",
        True,
        DROPOUT,
        checkpointing=row["checkpointing"],
        on_gpu=on_gpu,
    )
    zero, offloads = row["zero"], row["offload"]
    piece = None if offloads else UPDATE_PIECE[device.type]
    run = shape, weights, zero, 1, 1, "bf16", activations, tokens, BUCKET, offloads, piece
    peak = memory.peak_bytes(*run, flash=on_gpu)
    return peak.total


def measured(shape: Shape, row: dict, options, device: torch.device) -> dict:
    """Return peaks and seconds of `options.steps` steps; that memory ran out, where it did."""
    reset_peak(device)
    before = peak(device)
    try:
        found = train(shape, row, options, device)
    except torch.OutOfMemoryError as error:
        found = {"out_of_memory": str(error).splitlines()[0][:160]}
    gc.collect()  # an engine is full of cycles
    if device.type == "cuda":
        torch.cuda.empty_cache()
        found["left_gib"] = round(torch.cuda.memory_allocated() / GIB, 2)
    return {"before_gib": round(before, 2), **found}


def train(shape: Shape, row: dict, options, device: torch.device) -> dict:
    import deepspeed

    from ds_moe_mtl.config.deepspeed import updates_in_one_pass
    from ds_moe_mtl.engine.optimizer_groups import parameter_groups
    from ds_moe_mtl.engine.zero_update import update_in_one_pass
    from ds_moe_mtl.models import HeadSpec, RoutingOptions, build_network
    from ds_moe_mtl.moe import to_deepspeed
    from ds_moe_mtl.planner.shape import random_transformer

    torch.manual_seed(0)
    routing = RoutingOptions(num_experts=row["experts"], num_gates=GATES, gate_scale="preserve")
    heads = [HeadSpec(f"task{number}", 2) for number in range(GATES)]
    with device:
        config = encoder_asked(options)
        if config is None:
            transformer = random_transformer(shape, DROPOUT)
        else:
            transformer = build(config, DROPOUT, pooler=False)
        network = build_network(transformer, "mt_tag", heads, DROPOUT, routing)
    if row["checkpointing"]:
        network.checkpoint_activations()
    count = sum(parameter.numel() for parameter in network.parameters())
    to_deepspeed(network.to(torch.bfloat16))
    peaks = {"built": peak(device)}
    config = deepspeed_config(row, options)
    engine, *_ = deepspeed.initialize(
        model=network,
        model_parameters=parameter_groups(network, 0.0, (0.9, 0.999), True),
        config=config,
        dist_init_required=False,
    )
    if updates_in_one_pass(config):
        update_in_one_pass(engine.optimizer)
    peaks["engine"] = peak(device)
    reset_peak(device)
    engine.train()
    seconds = []
    for step in range(options.steps):
        began = time.perf_counter()
        outputs = engine(**batch(options, shape, device, step))
        engine.backward(outputs.logits_BC.square().mean())
        peaks[f"backward {step + 1}"] = peak(device)
        engine.step()
        del outputs
        peaks[f"step {step + 1}"] = peak(device)
        seconds.append(round(time.perf_counter() - began, 3))
    held = torch.cuda.memory_allocated() if device.type == "cuda" else 0
    engine.destroy()
    return {
        "measured_gib": round(max(gib for name, gib in peaks.items() if " " in name), 2),
        "held_gib": round(held / GIB, 2),
        "peak_gib_after": {stage: round(gib, 2) for stage, gib in peaks.items()},
        "bytes_a_weight": round(peaks[f"step {options.steps}"] * GIB / count, 2),
        "seconds_a_step": seconds,
    }


def batch(options, shape: Shape, device: torch.device, step: int) -> dict:
    """Return a network's inputs: random tokens, the tasks in turn."""
    count, length = options.sequences, options.length
    draw = torch.Generator().manual_seed(step)
    ids = torch.randint(1000, shape.vocabulary, (count * length,), generator=draw).to(device)
    return {
        "input_ids_T": ids,
        "token_type_ids_T": torch.zeros_like(ids),
        "position_ids_T": torch.arange(length, device=device).repeat(count),
        "cu_seqlens": (torch.arange(count + 1, device=device) * length).int(),
        "lengths": (length,) * count,
        "groups": ((0, count),),
        "task_ids_B": torch.arange(count, device=device) % GATES,
        "spans_B22": torch.full((count, 2, 2), -1, device=device),
        "longest_word": 1,
    }


def deepspeed_config(row: dict, options) -> dict:
    zero = {
        "stage": row["zero"],
        "reduce_bucket_size": BUCKET,
        "allgather_bucket_size": BUCKET,
    }
    if row["offload"]:
        zero["offload_optimizer"] = {"device": "cpu"}
    return {
        "train_batch_size": options.sequences,
        "bf16": {"enabled": True},
        "zero_optimization": zero,
        # Otherwise DeepSpeed insists on its own CPUAdam, which it compiles first.
        "zero_force_ds_cpu_optimizer": False,
        "gradient_clipping": 1.0,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-4, "torch_adam": True, "fused": True}},
        "steps_per_print": 10**9,
    }


def peak(device: torch.device) -> float:
    """Return the most memory so far, in GiB: of tensors on a GPU since the last reset, else
    resident in this process."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() / GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)
