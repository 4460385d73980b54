"""The rows of tasks: the paper's table 9, names, groups."""

import json

import pytest

from ds_moe_mtl.config import UserError
from ds_moe_mtl.tasks import TaskSpec, expand_tasks, get_task, is_small, known_tasks, task_groups
from tests.support.paths import shared_data

# Appendix A.2, table 9: training examples in thousands as printed, classes, metric.
TABLE_9 = {
    "wic": (5.4, 2, "accuracy"),
    "stsb": (5.7, 1, "spearman"),
    "cola": (8.5, 2, "matthews"),
    "rotten_tomatoes": (8.5, 2, "accuracy"),
    "imdb": (25, 2, "accuracy"),
    "sst2": (67.3, 2, "accuracy"),
    "yelp_polarity": (560, 2, "accuracy"),
    "mrpc": (3.7, 2, "accuracy"),
    "qqp": (364, 2, "accuracy"),
    "cb": (0.25, 3, "accuracy"),
    "rte": (2.5, 2, "accuracy"),
    "scitail": (23.6, 2, "accuracy"),
    "qnli": (105, 2, "accuracy"),
    "mnli": (393, 3, "accuracy"),
    "copa": (0.4, 2, "accuracy"),
    "multirc": (27, 2, "f1a"),
    "boolq": (9.4, 2, "accuracy"),
}


def test_every_set_of_the_paper_is_a_row_of_its_size_classes_and_metric():
    for name, (thousands, outputs, metric) in TABLE_9.items():
        spec = get_task(name)
        assert spec.published_size / 1000 == pytest.approx(thousands, rel=0.012), name
        assert (spec.num_outputs, spec.metric) == (outputs, metric), name


def test_lengths_of_glue_are_the_papers():
    """Appendix A.3.2: 512 for QNLI and MNLI, 128 for the rest."""
    lengths = {name: get_task(name).max_length for name in expand_tasks(["glue"])}
    assert {name for name, length in lengths.items() if length == 512} == {"qnli", "mnli"}
    assert set(lengths.values()) == {128, 512}


def test_small_tasks_are_the_papers():
    small = {name for name in expand_tasks(["glue++"]) if is_small(get_task(name))}
    assert small == {
        *("rte", "mrpc", "stsb", "cola"),
        *("rotten_tomatoes", "wic", "cb", "boolq", "copa"),
    }


def test_glue_is_eight_tasks_and_glue_plus_plus_sixteen():
    groups = task_groups()
    assert groups["glue"] == ("rte", "mrpc", "stsb", "cola", "sst2", "qnli", "qqp", "mnli")
    assert len(groups["glue++"]) == 16 and "scitail" not in groups["glue++"]
    assert groups["c-glue"] == ("rte", "mrpc", "stsb", "qnli", "qqp", "mnli")


def test_groups_expand_in_order_and_a_repeated_task_counts_once():
    names = expand_tasks(["cola", "glue_small", "toy_order"])
    assert names == ["cola", "rte", "mrpc", "stsb", "toy_order"]


@pytest.mark.parametrize(
    "wrong, meant", [("sts-b", "stsb"), ("RTE", "rte"), ("glu", "glue"), ("rotten", "rotten")]
)
def test_an_unknown_task_is_told_the_nearest_name(wrong, meant):
    with pytest.raises(UserError, match=rf"unknown task '{wrong}'; did you mean '{meant}"):
        expand_tasks([wrong])


def test_a_row_survives_json():
    for spec in known_tasks().values():
        assert TaskSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_class_names_stand_in_the_order_of_the_published_numbers():
    import pyarrow.parquet

    root = shared_data()
    checked = set()
    for spec in known_tasks().values():
        path = root / spec.folder / f"{spec.dev_splits[0]}.parquet"
        metadata = pyarrow.parquet.read_schema(path).metadata if path.is_file() else {}
        if b"huggingface" not in (metadata or {}) or spec.kind in ("regression", "ranking"):
            continue
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        names = features[spec.label].get("names")
        if names and set(names) == set(spec.labels):
            assert tuple(names) == spec.labels, spec.name
            checked.add(spec.name)
    assert {"rte", "mrpc", "qnli", "qqp", "mnli", "cola", "cb", "boolq", "wic"} <= checked
