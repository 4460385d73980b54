"""One text of thousands of tokens through ModernBERT-base's shape: CPU time and memory.

    python tests/soak/long_text.py mt_dense|mt_tag [tokens]

Random weights, fp32, one thread, no dropout; one sequence, forward and backward, no update. The
peak is that of the process, with 0.7 GiB of imports and what building the network took.
"""

import resource
import sys
import time

import torch

from ds_moe_mtl.benchmark.encoder_shape import build, known_config
from ds_moe_mtl.models import HeadSpec, RoutingOptions, build_network

ROUTING = RoutingOptions(num_experts=4, num_gates=1, gate_scale="preserve")


def peak_gib() -> float:
    """Return the most memory that the process has held, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main(kind: str, tokens: int) -> None:
    """Print what one batch takes."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    encoder = build(known_config("modernbert_base"), 0.0, False)
    network = build_network(encoder, kind, [HeadSpec("task", 2)], 0.0, ROUTING).train()
    ids_T = torch.randint(5, 50_000, (tokens,))
    batch = {
        "input_ids_T": ids_T,
        "token_type_ids_T": torch.zeros_like(ids_T),
        "position_ids_T": torch.arange(tokens),
        "cu_seqlens": torch.tensor([0, tokens], dtype=torch.int32),
        "groups": [(0, 1)],
        "task_ids_B": torch.zeros(1, dtype=torch.long),
        "spans_B22": torch.full((1, 2, 2), -1),
    }
    built, began = peak_gib(), time.process_time()
    out = network(**batch)
    between = time.process_time()
    out.logits_BC.square().sum().backward()
    weights = sum(weight.numel() for weight in network.parameters())
    forward, backward = between - began, time.process_time() - between
    print(
        f"{kind}, {weights:,} weights, {tokens:,} tokens: forward {forward:.1f} s, backward "
        f"{backward:.1f} s of CPU; peak {peak_gib():.2f} GiB, {built:.2f} before the batch"
    )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 4_096)
