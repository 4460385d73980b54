"""run.elastic: the ep_size that other ranks get, and what is refused since it could not be kept."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ds_moe_mtl.config import UserError, load_config, resolve_deepspeed
from ds_moe_mtl.config.elastic import fit_to_ranks, fitting_ep_size

ELASTIC = ("run.elastic=true", "train.save_every=10")


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 64))
def test_the_ep_size_divides_experts_and_ranks_and_no_larger_one_that_is_allowed_does(
    ep_size, multiple, ranks
):
    experts = ep_size * multiple

    def fits(size: int) -> bool:
        return experts % size == 0 and ranks % size == 0

    found = fitting_ep_size(ep_size, experts, ranks)
    assert 1 <= found <= ep_size and fits(found)
    assert not any(fits(size) for size in range(found + 1, ep_size + 1))
    assert fitting_ep_size(ep_size, experts, ranks * ep_size) == ep_size  # and back again


def test_on_ranks_that_do_not_divide_the_run_gets_the_largest_ep_size_that_fits_and_is_told_so():
    config = load_config(None, [*ELASTIC, "moe.num_experts=8", "moe.ep_size=4"])
    assert fit_to_ranks(config, 4) == fit_to_ranks(config, 8) == (config, "")
    fitted, line = fit_to_ranks(config, 6)
    assert fitted.moe == config.moe.model_copy(update={"ep_size": 2})
    assert fitted.model_copy(update={"moe": config.moe}) == config
    assert line == (
        "run.elastic: moe.ep_size = 4 does not divide the number of ranks, 6: 2 on these, where a "
        "rank holds 4 of 8 experts, not 2"
    )
    assert resolve_deepspeed(fitted, 6)["train_micro_batch_size_per_gpu"] == 6  # of 32


def test_without_run_elastic_such_ranks_are_refused_as_ever():
    config = load_config(None, ["moe.ep_size=4"])
    assert fit_to_ranks(config, 6) == (config, "")
    with pytest.raises(UserError, match="moe.ep_size = 4 does not divide the number of ranks, 6"):
        resolve_deepspeed(config, 6)


def test_a_dense_model_has_nothing_to_fit():
    config = load_config(None, [*ELASTIC, "model.kind=mt_dense", "moe.ep_size=4"])
    assert fit_to_ranks(config, 3) == (config, "")


@pytest.mark.parametrize(
    ("override", "allowed"),
    [
        ("run.resume=never", "auto"),
        ("train.save_every=0", "a number of steps"),
        ("train.average_from=0.5", "null"),
        ("moe.dispatch=capacity", "dropless"),
        ("moe.exchange=hierarchical", "flat"),
        ("moe.load_balance_loss=0.01", "0"),
        ("moe.router_z_loss=0.001", "0"),
    ],
)
def test_what_other_ranks_would_train_otherwise_is_refused_with_the_reason(override, allowed):
    with pytest.raises(UserError) as refused:
        load_config(None, [*ELASTIC, "moe.ep_size=4", override])
    text, (key, _, value) = str(refused.value), override.partition("=")
    assert f"run.elastic = true with {key} = {value}: " in text and "\n" not in text
    assert text.endswith(f"; allowed: {allowed}")


def test_a_dense_model_may_have_what_only_sparse_layers_mind():
    load_config(None, [*ELASTIC, "model.kind=mt_dense", "moe.load_balance_loss=0.01"])


@pytest.mark.parametrize(
    ("native", "elastic", "named"),
    [
        ({"train_micro_batch_size_per_gpu": 64}, True, "train_micro_batch_size_per_gpu = 64 with "),
        ({"elasticity": {"enabled": True}}, False, "elasticity.enabled = true: DeepSpeed would"),
    ],
)
def test_a_json_that_fixes_what_follows_the_ranks_is_refused(tmp_path, native, elastic, named):
    file = tmp_path / "ds.json"
    file.write_text(json.dumps(native))
    config = load_config(None, [*(ELASTIC if elastic else ()), f"deepspeed={file}"])
    with pytest.raises(UserError) as refused:
        resolve_deepspeed(config, 2)
    assert named in str(refused.value) and "; allowed: " in str(refused.value)
