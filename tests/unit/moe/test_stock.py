"""DeepSpeed's own layer in our network, as `bench` runs it."""

import os

import torch

from tests.support.launch import run_ranks


def outputs_of_stock(dtype: torch.dtype) -> list[tuple[bool, torch.Size]]:
    """Return whether the outputs are finite, and their shape, dropping tokens and not."""
    from transformers import BertConfig, BertModel

    from ds_moe_mtl.engine.engine import start_process_group
    from ds_moe_mtl.models import HeadSpec, RoutingOptions, build_network
    from ds_moe_mtl.moe.stock import join_groups, to_stock
    from ds_moe_mtl.ranks.rendezvous import rendezvous

    start_process_group(rendezvous(os.environ))
    found = []
    for drop_tokens in (True, False):
        size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
        config = BertConfig(vocab_size=60, **size)
        heads = [HeadSpec("one", 2), HeadSpec("other", 2)]
        network = build_network(BertModel(config), "mt_switch", heads, 0.0, RoutingOptions())
        network = join_groups(to_stock(network, drop_tokens)).to(dtype)
        lengths = (11, 9, 3)  # 23 tokens, which a CPU fills up in 16 bits
        out = network(
            torch.randint(5, 60, (23,)),
            torch.zeros(23, dtype=torch.long),
            torch.cat([torch.arange(n) for n in lengths]),
            torch.tensor([0, 11, 20, 23], dtype=torch.int32),
            None,
            torch.tensor([0, 1, 0]),
            torch.full((3, 2, 2), -1),
        )
        out.logits_BC.sum().backward()
        found.append((bool(out.logits_BC.isfinite().all()), out.logits_BC.shape))
    return found


def test_it_runs_on_filled_up_batches():
    for dtype in (torch.float32, torch.bfloat16):
        (found,) = run_ranks(outputs_of_stock, dtype, ranks=1)
        assert found == [(True, (3, 2))] * 2
