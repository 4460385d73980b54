"""Mistakes are refused in one line that names the argument, what it is and what is allowed."""

import pytest
import torch

import moe_kernels
from tests.kernels.layers import make_layer


def call(layer, **changes):
    w1, b1, w2, b2 = layer.experts
    arguments = {
        "x_TD": layer.x_TD, "gate_weight": layer.gate_weight, "gate_ids_T": layer.gate_ids_T,
        "w1": w1, "b1": b1, "w2": w2, "b2": b2, "mask_T": layer.mask_T,
    }  # fmt: skip
    return moe_kernels.top1_moe_ffn(**(arguments | changes))


LAYER = make_layer(6, 8, 12, 2, 3)
GATED = make_layer(6, 8, 12, 2, 3, activation="swiglu").experts[0]
MISTAKES = {
    "gate scale": ({"gate_scale": "none"}, "gate_scale='none': must be one of paper, preserve"),
    "activation": (
        {"activation": "relu"},
        "activation='relu': must be one of gelu, gelu_tanh, geglu",
    ),
    "impl": ({"impl": "fast"}, "impl='fast': must be one of auto, torch, triton, cuda"),
    "gates": ({"gate_weight": torch.zeros(7, 8)}, "7 rows must be a multiple"),
    "hidden": ({"gate_weight": torch.zeros(6, 9)}, r"must be \[gates \* experts, 8\]"),
    "ids": ({"gate_ids_T": None}, "gate_ids_T=None: allowed with one gate only"),
    "id": ({"gate_ids_T": torch.full((6,), 2)}, r"gate_ids_T has 2: must be in 0\.\.1"),
    "negative id": ({"gate_ids_T": torch.full((6,), -1)}, r"gate_ids_T has -1"),
    "id shape": ({"gate_ids_T": torch.zeros(3, dtype=int)}, r"gate_ids_T has shape \[3\]: must be"),
    "mask shape": ({"mask_T": torch.ones(5)}, r"mask_T has shape \[5\]: must be \[6\]"),
    "experts": ({"b2": LAYER.experts[3][:2]}, "w1, b1, w2, b2 have 3, 3, 3, 2 tensors"),
    "shape": ({"w2": LAYER.experts[0]}, r"w2\[0\] has shape \(12, 8\): must be \(8, 12\)"),
    "no halves": ({"activation": "geglu"}, "12 rows: must be 2 x w2.0.'s 12 columns for .*'geglu'"),
    "two halves": (
        {"w1": GATED, "b1": None},
        "24 rows: must be 1 x w2.0.'s 12 columns for .*'gelu'",
    ),
    "some without": ({"b1": None, "b2": LAYER.experts[3][:2]}, "w1, w2, b2 have 3, 3, 2 tensors"),
    "type": ({"x_TD": LAYER.x_TD.double()}, r"w1\[0\] is torch.float32: must be x's torch.float64"),
}


@pytest.mark.parametrize("changes, message", MISTAKES.values(), ids=MISTAKES)
def test_mistake_is_named(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        call(LAYER, **changes)
    assert "\n" not in str(caught.value)


def test_counts_must_sum_to_the_rows():
    with pytest.raises(ValueError, match="counts_E sums to 5: must be x_RD's rows, 6"):
        moe_kernels.expert_ffn(LAYER.x_TD, [1, 2, 2], *LAYER.experts)
    with pytest.raises(ValueError, match="counts_E has 2 entries: must be the 3 experts"):
        moe_kernels.expert_ffn(LAYER.x_TD, [3, 3], *LAYER.experts)


def test_auto_takes_plain_pytorch_on_the_cpu():
    assert moe_kernels.resolve_impl("auto", "cpu") == "torch"
    assert moe_kernels.resolve_impl("torch", "cpu") == "torch"


def test_an_implementation_that_cannot_run_says_why(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(ValueError, match='impl="triton" cannot run here: .*needs a GPU'):
        moe_kernels.resolve_impl("triton", "cpu")
    with pytest.raises(ValueError, match='impl="cuda" cannot run here: .*needs a CUDA GPU'):
        call(LAYER, impl="cuda")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_kernels_refuse_float64():
    layer = make_layer(6, 8, 12, 2, 3, torch.float64)
    with pytest.raises(ValueError, match="x_TD is torch.float64: kernels take"):
        call(layer, impl="triton")
