"""On a CPU in 16 bits tokens and attention groups are filled up: nothing of it may be seen."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import BertConfig, BertModel

from ds_moe_mtl.models import HeadSpec, RoutingOptions, build_network
from ds_moe_mtl.models.attention.padded import groups_to_pad
from moe_kernels import expert_ffn, recurring_size
from tests.support.tiny import BERT

CPU = torch.device("cpu")
LENGTHS = [11, 9, 9, 5, 5, 5, 5, 5, 5, 2, 2]  # 63 tokens; 11 sequences
GROUPS = [(0, 3), (3, 11)]


@given(st.integers(0, 200_000), st.sampled_from([1, 2, 4, 8, 16, 32]), st.sampled_from([4, 8, 64]))
def test_a_recurring_size_is_a_little_more_and_stands_for_itself(count, step, per_octave):
    size = recurring_size(count, CPU, torch.bfloat16, step, per_octave)
    assert count <= size <= max(count + step - 1, count * (1 + 1 / per_octave))
    assert recurring_size(size, CPU, torch.bfloat16, step, per_octave) == size
    assert recurring_size(count, CPU, torch.float32, step, per_octave) == count


def test_an_octave_has_no_more_sizes_than_asked_for():
    sizes = {recurring_size(n, CPU, torch.float16) for n in range(1025, 2049)}
    assert len(sizes) == 64 and max(sizes) == 2048


class Products(TorchDispatchMode):
    """The shapes of the first inner products of an expert's rows, which oneDNN would compile."""

    def __init__(self):
        super().__init__()
        self.shapes = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket.__name__ == "addmm":
            self.shapes.add(tuple(args[1].shape))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("dtype", "most"), [(torch.bfloat16, 8), (torch.float32, 64)])
def test_the_rows_of_an_expert_have_few_sizes_in_16_bits_on_a_cpu(dtype, most):
    draw = torch.Generator().manual_seed(0)
    w1, w2 = ([torch.randn(*shape, generator=draw).to(dtype)] for shape in ((3, 2), (2, 3)))
    b1, b2 = [torch.zeros(3, dtype=dtype)], [torch.zeros(2, dtype=dtype)]
    with Products() as products:
        for rows in range(1025, 2049, 16):  # 64 numbers of rows within an octave
            x_RD = torch.ones(rows, 2, dtype=dtype)
            y_RD = expert_ffn(x_RD, torch.tensor([rows]), w1, b1, w2, b2)
            assert y_RD.shape == x_RD.shape
    first = {rows for rows, width in products.shapes if width == 2}
    assert len(first) == most


def test_groups_of_like_shape_share_one_filled_shape():
    filled = groups_to_pad([11, 9, 9], [(0, 3)], CPU, torch.bfloat16)[0]
    assert (filled.sequences, filled.length) == (3, 12)
    many = groups_to_pad([7] * 17, [(0, 17)], CPU, torch.bfloat16)[0]
    assert (many.sequences, many.length) == (18, 8)
    assert many.places.tolist() == [8 * n + k for n in range(17) for k in range(7)]


@pytest.mark.parametrize("kind", ["mt_dense", "mt_switch", "mt_tag"])
def test_filling_is_not_seen_in_outputs_gradients_counts_or_routes(kind):
    config = BertConfig(vocab_size=60, max_position_embeddings=40, **BERT)
    torch.manual_seed(0)
    options = RoutingOptions(num_gates=2 if kind == "mt_tag" else 1, gate_scale="preserve")
    heads = [HeadSpec("first", 2), HeadSpec("second", 3)]
    short = build_network(BertModel(config), kind, heads, 0.0, options).eval().bfloat16()
    exact = copy.deepcopy(short).float()
    lengths = torch.tensor(LENGTHS)
    batch = {
        "input_ids_T": torch.randint(5, 60, (63,)),
        "token_type_ids_T": torch.zeros(63, dtype=torch.long),
        "position_ids_T": torch.cat([torch.arange(n) for n in LENGTHS]),
        "cu_seqlens": torch.cat([torch.zeros(1), lengths.cumsum(0)]).int(),
        "groups": GROUPS,
        "task_ids_B": torch.arange(len(LENGTHS)) % 2,
        "spans_B22": torch.full((len(LENGTHS), 2, 2), -1),
        "keep_routes": True,
    }
    outputs = {}
    for name, network in (("short", short), ("exact", exact)):
        outputs[name] = network(**batch)
        finite = outputs[name].logits_BC.isfinite()
        outputs[name].logits_BC[finite].square().sum().backward()
    found, expected = outputs["short"], outputs["exact"]
    finite = expected.logits_BC.isfinite()
    torch.testing.assert_close(
        found.logits_BC[finite], expected.logits_BC[finite], rtol=0.05, atol=0.02
    )
    assert all(int(counts.sum()) == 63 for counts in found.counts)
    assert all(len(route.expert_T) == len(route.prob_T) == 63 for route in found.routes)
    assert all(int(route.expert_T.min()) >= 0 for route in found.routes)
    theirs = dict(exact.named_parameters())
    for name, parameter in short.named_parameters():
        if "experts" in name or parameter.grad is None:
            continue  # copies of one FFN: near-zero gates choose by rounding, outputs do not care
        reference = theirs[name].grad
        error = (parameter.grad.float() - reference).norm()
        assert error <= 0.05 * reference.norm() + 1e-3, name
