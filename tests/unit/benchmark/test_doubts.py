"""Figures that cannot be right are told, each in one line; sound ones are not."""

import pytest

from ds_moe_mtl.benchmark.doubts import doubts


def row(ms: float, ratio: float, spread: float = 0.1, mfu: float | None = 0.4, **more) -> dict:
    quartiles = [ms * (1 - spread / 2), ms * (1 + spread / 2)]
    found = {"ms": ms, "ratio": ratio, "quartiles_ms": quartiles, "mfu": mfu, "utilisation": 0.6}
    return found | {"forward_ms": ms / 3, "backward_ms": ms / 2, "parts_apart": False} | more


def contest(model: dict | None, step: dict, **more) -> dict:
    found = {"ranks": 1, "threads": 1, "cores": 4, "load_at_start": 0.3, "step": step, **more}
    return found | ({} if model is None else {"model": model})


DENSE = row(100, 1.0)


def test_sound_figures_have_no_warning():
    model = {"mt_dense": row(80, 1.0), "mt_tag": row(90, 1.1)}
    step = {"mt_dense": DENSE, "mt_tag": row(115, 1.16), "trainer": row(50, 0.5)}
    assert doubts(contest(model, step)) == []
    assert doubts(contest(None, step, load_at_start=None)) == []
    assert doubts(contest(None, {"mt_dense": DENSE, "stock_capacity": row(60, 0.6)})) == []


def test_a_call_on_a_busy_machine_is_not_printed_without_a_word():
    """Forward + backward 0.62 of dense, a whole step of 2.64, 1.53 of the product's rate."""
    model = {"mt_dense": row(80, 1.0), "mt_tag": row(80 * 0.62, 0.62, utilisation=1.53)}
    step = {"mt_dense": row(100, 1.0), "mt_tag": row(264, 2.64, spread=0.9)}
    found = doubts(contest(model, step))
    assert len(found) == 3
    assert found[0].startswith("forward + backward, mt_tag: 1.53 of the product in this run")
    assert found[1].startswith("forward + backward, mt_tag: 0.62 of dense")
    assert found[2].startswith("whole step, mt_tag: quartiles 145.2 to 382.8 ms around 264.0")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"mfu": 1.01}, "1.01 of the card's peak"),
        ({"utilisation": 1.2}, "1.20 of the product in this run"),
        ({"ratio": 0.8}, "0.80 of dense, which computes no more"),
        ({"ratio": 1.3}, "1.30 of dense within rounds, but 1.10 by the medians"),
        ({"quartiles_ms": [90, 120]}, "quartiles 90.0 to 120.0 ms"),
        ({"parts_apart": True, "forward_ms": 10}, "the parts, timed apart, sum to 65.0 ms"),
    ],
)
def test_each_rule_speaks_by_itself(changed, words):
    step = {"mt_dense": DENSE, "mt_tag": row(110, 1.1) | changed}
    texts = doubts(contest(None, step))
    assert any(text.startswith("whole step, mt_tag: ") and words in text for text in texts), texts


def test_a_whole_step_is_not_shorter_than_what_is_in_it():
    (text,) = doubts(contest({"mt_dense": row(120, 1.0)}, {"mt_dense": DENSE}))
    assert text.startswith("mt_dense: a whole step of 100.0 ms, though forward + backward")


def test_a_load_that_leaves_no_core_to_us_is_told():
    (text,) = doubts(contest(None, {"mt_dense": DENSE}, load_at_start=3.6))
    assert text.startswith("the machine was at work: a load of 3.6 at the start and 1 threads")
    assert doubts(contest(None, {"mt_dense": DENSE}, load_at_start=3.4)) == []
