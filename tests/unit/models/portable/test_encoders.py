"""The portable model of every encoder: where its FFNs stand, their form, positions, token types."""

import json

import pytest
import torch

from ds_moe_mtl.models import HeadSpec, RoutingOptions, build_network
from ds_moe_mtl.models.portable.configuration_ds_moe_mtl import DsMoeMtlConfig
from ds_moe_mtl.models.portable.folder import opened, portable_config
from ds_moe_mtl.models.portable.modeling_ds_moe_mtl import DsMoeMtlForSequenceClassification
from ds_moe_mtl.tasks import TaskSpec
from tests.support.families import PLACES, SHOWN, tiny
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
FORMS = {
    "paper": ("mt_tag", {"gate_scale": "paper"}),
    "shared": ("mt_tag", {"gate_scale": "preserve", "shared_share": 0.25, "layers": "last_half"}),
    "merged": ("mt_tag", {"gate_scale": "preserve", "combine": "merged"}),
    "switch": ("mt_switch", {"gate_scale": "preserve", "num_gates": 1}),
    "dense": ("mt_dense", {}),
}
LENGTHS = (7, 4, 11)
SPANS = torch.tensor([[[1, 3], [4, 5]], [[0, 1], [2, 4]], [[3, 6], [7, 10]]])


def network_of(encoder, form="paper"):
    """Return (network in eval mode, its description)."""
    if hasattr(encoder, "pooler"):
        encoder.pooler = None
    kind, more = FORMS[form]
    routing = RoutingOptions(**{"num_experts": 4, "num_gates": len(TASKS), **more})
    network = build_network(encoder, kind, HEADS, 0.0, routing).eval()
    spread_gates(network, std=1.0)
    differ_experts(network)
    return network, network.description(kind, routing, [task.to_dict() for task in TASKS], {})


def padded(values_T, filling, side="right"):
    """Return packed values as rows [B, S]."""
    split = values_T.split(LENGTHS)
    pad = torch.nn.utils.rnn.pad_sequence
    return pad(split, batch_first=True, padding_value=filling, padding_side=side)


def texts():
    """Return packed ids and token types."""
    generator = torch.Generator().manual_seed(0)
    ids_T = torch.randint(5, 290, (sum(LENGTHS),), generator=generator)
    ids_T[3] = 1  # a text may hold the token of pads: its place is a place all the same
    return ids_T, torch.randint(0, 2, ids_T.shape, generator=generator)


def packed_logits(network, ids_T, types_T, number):
    """Return the packed network's outputs of a task."""
    positions_T = torch.cat([torch.arange(length) for length in LENGTHS])
    ends = torch.tensor([0, *LENGTHS]).cumsum(0).int()
    tasks = torch.full((len(LENGTHS),), number)
    out = network(ids_T, types_T, positions_T, ends, None, tasks, SPANS)
    return out.logits_BC[:, : TASKS[number].num_outputs]


@pytest.mark.parametrize(
    ("kind", "form"),
    [
        *((kind, "paper") for kind in (*SHOWN, "electra", "ernie")),
        *((kind, form) for kind in (*PLACES, "roberta") for form in FORMS if form != "paper"),
    ],
)
@torch.no_grad()
def test_padded_rows_give_what_packed_tokens_give(kind, form):
    network, description = network_of(tiny(kind), form)
    portable = opened(network, description)
    ids_T, types_T = texts()
    rows = padded(ids_T, 1), padded(torch.ones_like(ids_T), 0), padded(types_T, 0)
    left = [padded(part, filling, "left") for part, filling in ((ids_T, 1), (ids_T * 0 + 1, 0))]
    for number, task in enumerate(TASKS):
        wanted = packed_logits(network, ids_T, types_T, number)
        found = portable(*rows, task=task.name, word_spans=SPANS)
        torch.testing.assert_close(found.logits, wanted, rtol=1e-5, atol=1e-5)
        if task.kind == "span":
            continue
        for untyped in (portable(*rows[:2], task=task.name), portable(*left, task=task.name)):
            wanted = packed_logits(network, ids_T, types_T * 0, number)
            torch.testing.assert_close(untyped.logits, wanted, rtol=1e-5, atol=1e-5)


def test_a_word_sense_task_needs_its_words():
    portable = opened(*network_of(tiny("bert")))
    ids = torch.tensor([[2, 7, 3]])
    with pytest.raises(ValueError, match="'sense' reads two words of the text: give word_spans"):
        portable(ids, task="sense")


def test_what_the_code_that_travels_has_no_place_for_is_one_line():
    network, description = network_of(tiny("modernbert"))
    network.encoder.transformer.layers[0].extra = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"layers.0.extra.weight is \(2, 2\) here and None"):
        portable_config(network, description)


def test_a_folder_of_before_is_told_to_run_its_own_code():
    values = json.loads(json.dumps(portable_config(*network_of(tiny("bert")))))
    old = {key: value for key, value in values.items() if key != "first_position"}
    with pytest.raises(ValueError, match="by an older ds_moe_mtl; allowed: its own code"):
        DsMoeMtlForSequenceClassification(DsMoeMtlConfig(**old))
    assert DsMoeMtlForSequenceClassification(DsMoeMtlConfig(**values)).config.hidden_size == 32
    assert DsMoeMtlConfig().hidden_size is None
