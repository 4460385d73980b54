"""predict takes examples: whatever holds them, and nothing that only looks like some."""

import io

import numpy as np
import pandas
import pyarrow
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ds_moe_mtl.cli import main
from ds_moe_mtl.config import UserError
from ds_moe_mtl.evaluation import MultiTaskModel
from ds_moe_mtl.models import HeadSpec, RoutingOptions, build_network
from ds_moe_mtl.models.description import save_folder
from ds_moe_mtl.models.tokenizer import load_tokenizer
from ds_moe_mtl.tasks import TaskSpec
from tests.support.tiny import differ_experts, spread_gates, write_encoder

SPECS = [
    TaskSpec("one", "classification", ("text",), labels=("no", "yes")),
    TaskSpec("pair", "regression", ("first", "second"), metric="spearman"),
    TaskSpec("pick", "options", ("text",), choices=("choices",)),
    TaskSpec(
        "word",
        "span",
        ("left", "right"),
        labels=("same", "other"),
        spans=("start1", "end1", "start2", "end2"),
    ),
]
PAIRS = [("the red cat", "a dog"), ("one two", "three here")]
TABLE = pandas.DataFrame({"second": ["a dog", "three here"], "first": ["the red cat", "one two"]})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model folder with a task of each kind; untrained, its experts different."""
    from transformers import BertModel

    folder = tmp_path_factory.mktemp("examples")
    encoder = write_encoder(folder / "encoder")
    heads = [
        HeadSpec("one", 2),
        HeadSpec("pair", 1),
        HeadSpec("pick", 1, shared="options"),
        HeadSpec("word", 2, spans=True),
    ]
    options = RoutingOptions(4, len(heads))
    transformer = BertModel.from_pretrained(encoder, add_pooling_layer=False)
    network = build_network(transformer, "mt_tag", heads, 0.0, options)
    spread_gates(network)
    differ_experts(network)
    rows = [spec.to_dict() for spec in SPECS]
    description = network.description("mt_tag", options, rows, {})
    save_folder(
        folder / "model", description, network.state_dict(), load_tokenizer(encoder, network.limits)
    )
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return MultiTaskModel.from_pretrained(folder, "cpu")


@pytest.mark.parametrize(
    "held",
    [
        tuple(PAIRS),
        iter(PAIRS),
        [list(pair) for pair in PAIRS],
        (pair for pair in PAIRS),
        np.array(PAIRS),
        np.array(PAIRS, dtype=object),
        [{"second": b, "first": a} for a, b in PAIRS],
        [{"second": b, "first": a, "label": 1.0} for a, b in PAIRS],
        TABLE,
        TABLE.assign(label=0.5),
        pyarrow.table(TABLE),
        pandas.Series(PAIRS),
    ],
    ids=lambda held: type(held).__name__,
)
def test_pairs_are_taken_as_what_holds_them(model, held):
    assert model.predict("pair", held) == model.predict("pair", PAIRS)


@pytest.mark.parametrize(
    "held",
    [
        iter(["a", ""]),
        np.array(["a", ""]),
        pandas.Series(["a", ""], index=[7, 3]),
        pyarrow.array(["a", ""]),
        {"x": "a", "y": ""}.values(),
        [("a",), [""]],
        pandas.DataFrame({"text": ["a", ""]}),
    ],
    ids=lambda held: type(held).__name__,
)
def test_texts_are_taken_as_what_holds_them(model, held):
    assert model.predict("one", held) == model.predict("one", ["a", ""])


@pytest.mark.parametrize(
    "nothing", [[], (), iter([]), np.array([]), pandas.DataFrame(), pandas.Series(dtype=object)]
)
def test_no_examples_have_no_answers(model, nothing):
    assert model.predict("one", nothing) == []


def test_empty_texts_are_examples(model):
    assert len(model.predict("one", [""])) == len(model.predict("pair", [("", "")])) == 1


@pytest.mark.parametrize(
    ("task", "given", "words"),
    [
        ("one", "red cat", "one: a text ('red cat') in place of examples; allowed: a list of text"),
        ("one", np.str_("red cat"), "in place of examples"),
        ("one", b"red cat", "a bytes (b'red cat') in place of examples"),
        ("one", None, "None in place of examples; allowed: a list of texts (text)"),
        ("one", 3, "a int (3) in place of examples"),
        ("one", {"red", "cat"}, "a set"),
        ("one", np.array("red"), "in place of examples"),
        ("one", torch.tensor(3), "in place of examples"),
        ("one", {"text": "red cat"}, "one dict in place of examples; allowed: a list of dicts"),
        ("one", {"text": ["red", "cat"]}, "one dict in place of examples"),
        ("one", [None, "a", None], "example 0 has None in 'text'; allowed: a text (2 such rows)"),
        ("one", ["a", 3, b"b"], "example 1 has a int (3) in 'text'; allowed: a text; example 2"),
        ("one", np.array([1.0, 2.0]), "(2 such rows)"),
        ("one", pandas.Series(["a", None]), "example 1 has a float (nan) in 'text'"),
        ("one", [["a", "b"]], "example 0 has 2 values; needed: text"),
        ("pair", ["a red cat", "a dog"], "example 0 has 1 values; needed: first, second (2 such"),
        ("pair", [7], "example 0 is a int (7); needed: first, second"),
        ("pair", [{"first": "a", "other": "b"}], "lacks 'second' and has the unknown 'other'"),
        ("pair", TABLE.drop(columns="first"), "lacks 'first'; needed: first, second (2 such rows)"),
        ("pair", TABLE.assign(id=1), "has the unknown 'id'"),
        ("pick", [("a", "yes")], "a text ('yes') in 'choices'; allowed: a list of texts"),
        ("pick", [("a", [])], "a list ([]) in 'choices'"),
        ("pick", [("a", ["b", 3])], "in 'choices'; allowed: a list of texts, at least one"),
        ("pick", [("a", {"b": 1})], "in 'choices'"),
        ("word", [("a cat", "cat", "2", 5, 0, 3)], "a text ('2') in 'start1'; allowed: a whole"),
        ("word", [("a cat", "cat", 2, 99, 0, 3)], "no word at characters 2 to 99"),
        (["one"], ["a"], "the model has no task ['one']"),
    ],
)
def test_what_is_no_example_is_refused_in_one_line(model, task, given, words):
    with pytest.raises(UserError) as refused:
        model.predict(task, given)
    assert words in str(refused.value) and str(refused.value).isprintable()


@pytest.mark.parametrize("length", [0, -1, "3", 3.5, True])
def test_a_length_that_is_none_is_refused(model, length):
    with pytest.raises(UserError, match="max_length: .* allowed: a whole number above 0"):
        model.predict("one", ["a"], max_length=length)


leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
things = st.recursive(
    leaves | st.binary(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.sampled_from(["text", "first", "second", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.sampled_from(["one", "pair", "pick"]), things)
def test_whatever_is_given_is_answered_one_by_one_or_refused_in_one_line(model, task, given):
    try:
        answers = model.predict(task, given)
    except UserError as error:
        assert str(error).isprintable()
        return
    assert isinstance(given, list | tuple) and len(answers) == len(given)


def test_outputs_that_are_not_finite_are_no_answers(folder):
    model = MultiTaskModel.from_pretrained(folder, "cpu")
    model.network.heads.linears[0].bias.data[1] = float("nan")
    with pytest.raises(UserError, match="outputs for one are not finite"):
        model.predict("one", ["a"])


@pytest.mark.parametrize(
    ("task", "lines", "same"),
    [
        (
            "pick",
            "the cat\tone\ttwo\nred\tdog\n",
            [("the cat", ["one", "two"]), ("red", ["dog"])],
        ),
        ("word", "a cat\tcat\t2\t5\t0\t3\n", [("a cat", "cat", 2, 5, 0, 3)]),
    ],
)
def test_the_command_reads_options_and_places(
    folder, model, capsys, monkeypatch, task, lines, same
):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    assert main(["predict", str(folder), "--task", task]) == 0
    assert capsys.readouterr().out.splitlines() == model.predict(task, same)


@pytest.mark.parametrize(
    ("task", "lines", "words"),
    [
        ("pick", "the cat\n", "in 'choices'; allowed: a list of texts, at least one"),
        ("word", "a cat\tcat\t2.0\t5\t0\t3\n", "in 'start1'; allowed: a whole number"),
        ("word", "a cat\tcat\t2\n", "example 0 has 3 values; needed: left, right, start1"),
    ],
)
def test_the_command_tells_what_a_line_lacks(folder, capsys, monkeypatch, task, lines, words):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    assert main(["predict", str(folder), "--task", task]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1
