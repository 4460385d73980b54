"""Whatever a user types after the YAML: it sets exactly its key, or is one line of complaint."""

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ds_moe_mtl.config import UserError, differing_keys, load_config
from ds_moe_mtl.config.document import dump_yaml, parse_yaml

VALID = {
    "run.seed": st.integers(0, 2**32 - 1),
    "run.dir": st.text("abc/_-.é ", min_size=1),
    "mixture.sampling": st.sampled_from(["natural", "uniform", "temperature"]),
    "mixture.temperature": st.floats(0.1, 1e6),
    "model.dropout": st.floats(0, 0.999),
    "model.pooler": st.booleans(),
    "moe.num_experts": st.integers(1, 512),
    "train.batch_size": st.integers(1, 10**6),
    "train.lr": st.floats(1e-12, 10),
    "train.max_length": st.none() | st.integers(8, 512),
    "train.betas": st.lists(st.floats(0, 0.9999), min_size=2, max_size=2),
    "tasks": st.lists(st.sampled_from(["rte", "cola", "mnli"]), min_size=1, unique=True),
}
OVERRIDE = st.sampled_from(sorted(VALID)).flatmap(lambda key: st.tuples(st.just(key), VALID[key]))


def value_of(config, key):
    """Return what a dotted key holds, as plain YAML values."""
    held = config.model_dump(mode="json")
    for part in key.split("."):
        held = held[part]
    return held


def typed(value):
    """Return a value as a user types it after `key=`: YAML on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6)
    return text.removesuffix("\n").removesuffix("\n...")


@given(st.lists(OVERRIDE, max_size=6))
def test_overrides_set_their_keys_and_no_other(overrides):
    config = load_config(None, [f"{key}={typed(value)}" for key, value in overrides])
    wanted = dict(overrides)
    for key, value in wanted.items():
        assert value_of(config, key) == value
    assert set(differing_keys(load_config(), config)) <= set(wanted)


@given(
    st.permutations([("train.lr", 0.5), ("moe.num_experts", 8), ("run.dir", "x"), ("tasks", ["a"])])
)
def test_the_order_of_overrides_of_different_keys_is_nothing(overrides):
    config = load_config(None, [f"{key}={typed(value)}" for key, value in overrides])
    assert value_of(config, "train.lr") == 0.5
    assert value_of(config, "tasks") == ["a"]
    assert config == load_config(
        None, [f"{key}={typed(value)}" for key, value in sorted(overrides)]
    )


@settings(max_examples=100)
@given(st.text(max_size=40) | st.text("abcr.=[]{}:&*!-|> '\"\n0", max_size=20))
@example("train.betas=[")
@example("tasks.0=[*x]")
@example("run.seed=!!binary x")
@example("train.lr=1e999")
@example("run.dir=|")
@example("tasks=[[[[[[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]]]]]]]")
def test_any_text_is_taken_or_told_in_one_line(text):
    for override in (text, f"train.lr={text}", f"tasks={text}", f"{text}=1"):
        try:
            load_config(None, [override], check_files=False)
        except UserError as error:
            assert len(str(error).splitlines()) == 1


@given(st.text() | st.sampled_from(["1e-4", "yes", "~", "010", "2024-01-01", ".5e3", "1_0"]))
def test_any_text_survives_a_dumped_configuration(text):
    assert parse_yaml(dump_yaml({"a": [text]}), "here").values == {"a": [text]}


@pytest.mark.parametrize(
    "text, value",
    {
        "1e-4": 1e-4,
        "1.": 1.0,
        ".5": 0.5,
        "-3": -3,
        "+3": 3,
        "010": "010",
        "1_000": "1_000",
        "12:30:45": "12:30:45",
        "2024-01-01": "2024-01-01",
        "yes": "yes",
        "off": "off",
        "true": True,
        "~": None,
        "": None,
        "'1'": "1",
        "0x10": "0x10",
    }.items(),
)
def test_scalars_are_those_of_yaml_1_2(text, value):
    read = parse_yaml(text, "here").values
    assert (type(read), read) == (type(value), value)
