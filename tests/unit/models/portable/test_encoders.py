"""The portable model of other architectures than BERT: positions, token types, embeddings."""

import pytest
import torch

from ds_moe_mtl.models import HeadSpec, RoutingOptions, build_network
from ds_moe_mtl.models.portable.folder import opened
from ds_moe_mtl.tasks import TaskSpec
from tests.support.families import tiny
from tests.support.tiny import differ_experts, spread_gates

TASKS = [
    TaskSpec("type", "classification", ("t",), labels=("x", "y", "z")),
    TaskSpec("sense", "span", ("t", "u"), labels=("F", "T")),
    TaskSpec("one", "options", ("t",), choices=("o",)),
    TaskSpec("two", "options", ("t",), choices=("o",)),
]
HEADS = [
    HeadSpec("type", 3),
    HeadSpec("sense", 2, spans=True),
    HeadSpec("one", 1, shared="options"),
    HeadSpec("two", 1, shared="options"),
]
LENGTHS = (7, 4, 11)


OWN_ATTENTION = ["mpnet", "megatron-bert", "rembert", "deberta", "deberta-v2"]


@pytest.mark.parametrize("kind", ["roberta", "electra", "ernie", *OWN_ATTENTION])
@torch.no_grad()
def test_padded_rows_give_what_packed_tokens_give(kind):
    encoder = tiny(kind)
    if hasattr(encoder, "pooler"):
        encoder.pooler = None
    routing = RoutingOptions(4, len(TASKS))
    network = build_network(encoder, "mt_tag", HEADS, 0.0, routing).eval()
    spread_gates(network, std=1.0)
    differ_experts(network)
    description = network.description("mt_tag", routing, [task.to_dict() for task in TASKS], {})
    portable = opened(network, description)
    generator = torch.Generator().manual_seed(0)
    ids_T = torch.randint(5, 290, (sum(LENGTHS),), generator=generator)
    ids_T[3] = 1  # a text may hold the token of pads: its place is a place all the same
    types_T = torch.randint(0, 2, ids_T.shape, generator=generator)
    positions_T = torch.cat([torch.arange(length) for length in LENGTHS])
    ends = torch.tensor([0, *LENGTHS]).cumsum(0).int()
    spans = torch.tensor([[[1, 3], [4, 5]], [[0, 1], [2, 4]], [[3, 6], [7, 10]]])

    def rows(values_T, filling):
        split = values_T.split(LENGTHS)
        return torch.nn.utils.rnn.pad_sequence(split, batch_first=True, padding_value=filling)

    mask = rows(torch.ones_like(ids_T), 0)
    for number, task in enumerate(TASKS):
        tasks = torch.full((len(LENGTHS),), number)
        packed = network(ids_T, types_T, positions_T, ends, None, tasks, spans)
        found = portable(rows(ids_T, 1), mask, rows(types_T, 0), task=task.name, word_spans=spans)
        wanted = packed.logits_BC[:, : task.num_outputs]
        torch.testing.assert_close(found.logits, wanted, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="'sense' reads two words of the text: give word_spans"):
        portable(rows(ids_T, 1), mask, task="sense")
