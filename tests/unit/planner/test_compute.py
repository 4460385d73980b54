"""Rates, bytes and seconds of one GPU, against counts worked by hand and a recorded step."""

import pytest
import torch

from ds_moe_mtl.planner.cards import CARDS, NAMES, card_name, card_of
from ds_moe_mtl.planner.compute import (
    Batch,
    Speed,
    accumulator_bytes,
    beside_bytes,
    compute_seconds,
    tiled,
)
from ds_moe_mtl.planner.flops import count_ffn_weights, count_flops
from ds_moe_mtl.planner.levers import NO_LEVERS, Levers
from ds_moe_mtl.planner.rates import MEMORY_SHARE, product_share
from ds_moe_mtl.planner.shape import SIZES, Shape
from ds_moe_mtl.planner.update import update_bytes

TINY = Shape(layers=2, hidden=8, intermediate=16, heads=2)
BASE = SIZES["bert_base"]


def seconds(batch: Batch, speed: Speed, experts=0, levers=NO_LEVERS, element=2, shape=TINY):
    flops = count_flops(shape, 4, int(experts > 0) * 4, int(experts > 0), levers=levers)
    return compute_seconds(shape, flops, batch, experts, levers, element, True, speed)


def test_a_card_is_known_by_exactly_its_name():
    assert card_of("NVIDIA H100 80GB HBM3").half == 989.4e12
    assert card_of("NVIDIA H100 80GB HBM3 MIG 1g.10gb") is None and card_name("NVIDIA H900") is None
    assert set(NAMES.values()) == set(CARDS)
    assert CARDS["t4"].peak("bf16") is None and CARDS["t4"].peak("fp16") == 65e12
    assert CARDS["a100-sxm-80"].peak("fp32") == 19.5e12


def test_the_rate_of_a_shape_is_the_recorded_steps():
    """d 768, T 32,768: 48 T d d operations in 2.003 x 0.93 ms, without 2 (6 x 4 + 1) T d bytes."""
    beside = 2 * 25 * 32_768 * 768 / (0.9 * 3350e9)
    rate = 48 * 32_768 * 768**2 / (2.003e-3 * 0.93 - beside)
    assert product_share(768, 32_768) == pytest.approx(rate / 989.4e12)
    assert product_share(384, 16_384) < product_share(384, 131_072) < product_share(768, 131_072)
    between = product_share(512, 32_768)
    assert product_share(384, 32_768) < between < product_share(768, 32_768)
    assert product_share(128, 10) == product_share(384, 16_384)


def test_flash_attention_computes_tiles_and_passes_over_its_sums():
    assert tiled(torch.tensor([1, 128, 129])) == 128**2 + 128**2 + 256**2
    assert accumulator_bytes(33_938, 960, 768) == pytest.approx(482e6, rel=1e-3)  # docs/planning.md
    speed = Speed(1e9, 1e9)
    products = 14 * 2 * 128**2 * 8 / 1e9  # of two sequences
    passes = 4 * 4 * 2 * 128 * 8 / 1e9
    found = seconds(Batch(100, 2, 2 * 128**2), speed) - seconds(Batch(100, 0, 0), speed)
    assert found == pytest.approx(2 * (products + passes))  # layers


def test_bytes_beside_the_products_worked_by_hand():
    # A half of a layer: sums 3 + 3, norm 7, dropout 4 rows of 2 bytes and its mask twice; then
    # 6 rows of the gradients' sums, 4 of biases; the FFN's 6 rows of F and one of D.
    assert beside_bytes(BASE, 2, True) == 768 * (2 * (2 * 17 + 2) + 2 * 10 + 2 * (6 * 4 + 1))
    assert beside_bytes(BASE, 2, True) - beside_bytes(BASE, 2, False) == 768 * 2 * (2 * 4 + 2)


def test_a_ranks_experts_are_read_though_few_tokens_come():
    fast, batch = Speed(1e30, 1e9), Batch(1, 1, 128**2)
    ffn = count_ffn_weights(TINY)
    one, four = (seconds(batch, fast, experts) for experts in (1, 4))
    assert four - one == pytest.approx(2 * 3 * 3 * 2 * ffn / 1e9)  # layers, experts, passes, bytes
    some = seconds(batch, fast, 4, Levers(layers=1))
    assert four - some == pytest.approx(3 * 3 * 2 * ffn / 1e9)
    slow = Speed(1.0, 1e30)
    assert (
        seconds(batch, slow, 4)
        == seconds(batch, slow, 1)
        == pytest.approx(seconds(batch, slow), rel=0.1)
    )  # products alone: the gates are a few more


def test_micro_batches_cost_what_each_of_them_costs():
    speed = Speed(1e9, 1e9)
    assert seconds(Batch(9, 1, 128**2, 3), speed, 4) == pytest.approx(
        3 * seconds(Batch(9, 1, 128**2), speed, 4)
    )


def test_a_recorded_step_of_bert_base_is_longer_than_its_work_and_not_by_half():
    """docs/gpu.md: 33,938 tokens in 960 sequences, MT-Dense, 71.9 ms on an H100; the rest is the
    host's and what the model leaves out."""
    card = CARDS["h100-sxm"]
    speed = Speed(product_share(768, 33_938) * card.half, MEMORY_SHARE * card.bandwidth)
    found = seconds(Batch(33_938, 960, 960 * 128**2), speed, shape=BASE)
    assert 0.0719 / 1.5 < found < 0.0719


@pytest.mark.parametrize(
    ("element", "stage", "piece", "expected"),
    [
        (2, 1, 1 << 20, 30),  # a CPU: docs/speed.md
        (2, 1, 1 << 25, 10 + 6 + 8 + 28 + 6),  # a GPU: norm, copy, scale, Adam, copy back
        (4, 2, 1 << 25, 12 + 8 + 8 + 28 + 8),
        (2, 1, None, 4 + 18 + 4 + 6 + 8 + 28 + 6),  # DeepSpeed's own
        (4, 1, None, 8 + 20 + 8 + 0 + 8 + 28 + 8),
        (4, 0, None, 40),
    ],
)
def test_bytes_of_an_update_worked_by_hand(element, stage, piece, expected):
    assert update_bytes(element, stage, piece) == expected
