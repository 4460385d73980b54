"""Which kernels run without being asked for by name: those verified on that kind of card."""

import pytest
import torch

from moe_kernels import choose_ffn
from moe_kernels.verified import Choice, choose, verified
from tests.kernels.layers import KERNEL_DEVICE


def test_the_table_knows_the_kind_of_card():
    assert verified("moe", (9, 0)) and not verified("moe", (8, 0))
    assert not verified("update", (9, 0))  # it has run in the interpreter alone


def test_plain_pytorch_is_what_auto_takes_on_a_cpu():
    assert choose("update", "auto", "cpu") == Choice("torch", "")


def test_a_name_is_taken_or_refused():
    assert choose("update", "triton", KERNEL_DEVICE) == Choice("triton", "asked for")
    assert choose("update", "torch", KERNEL_DEVICE) == Choice("torch", "asked for")
    with pytest.raises(ValueError, match="must be one of"):
        choose("update", "fast", "cpu")


def test_gated_experts_and_those_without_biases_wait_for_a_card_that_has_verified_them(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert choose_ffn("auto", "cuda", "gelu", True) == Choice("triton", "")
    not_yet = Choice("torch", "Triton's is not verified on compute capability 9.0")
    for activation, biased in (("swiglu", True), ("geglu", False), ("gelu", False)):
        assert choose_ffn("auto", "cuda", activation, biased) == not_yet
        assert choose_ffn("triton", "cuda", activation, biased).impl == "triton"
    assert choose_ffn("auto", "cpu", "swiglu", False) == Choice("torch", "")
