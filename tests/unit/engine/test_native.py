"""DeepSpeed's JSON is read by DeepSpeed before a run starts; what it refuses is one line."""

import json

import pytest

from ds_moe_mtl.config import UserError, resolve_deepspeed
from ds_moe_mtl.engine.native import check_native
from tests.support.paths import ROOT
from tests.support.tiny import tiny_config, write_tiny

REFUSED = {
    "sparse_gradients": ({"sparse_gradients": True}, "'sparse_gradients' flag would be ignored"),
    "graph_harvesting": ({"graph_harvesting": True}, "Graph harvesting has been removed"),
    "zero": ({"zero_optimization": {"stage": 1, "mics_shard_size": 2}}, "MiCS ZeRO-3 sharding"),
    "type": (
        {"zero_optimization": {"stage": 1, "allgather_bucket_size": "big"}},
        "allgather_bucket_size: Input should be a valid integer",
    ),
    "monitor": (
        {"csv_monitor": {"enabled": True, "folder": "x"}},
        "csv_monitor.folder: Extra inputs are not permitted",
    ),
    "data type": ({"communication_data_type": "fp99"}, "Invalid communication_data_type"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("native"))


def resolved(folder, more, ranks):
    native = json.loads((ROOT / "ds_configs/deepspeed/zero1.json").read_text())
    path = folder / "native.json"
    path.write_text(json.dumps(native | more))
    config = tiny_config(folder, deepspeed=str(path))
    return resolve_deepspeed(config, ranks), config


@pytest.mark.parametrize("ranks", [1, 3])
def test_what_is_shipped_is_taken_for_any_number_of_ranks(folder, ranks):
    check_native(*resolved(folder, {}, ranks))


@pytest.mark.parametrize("name", REFUSED)
def test_keys_that_deepspeed_dropped_or_does_not_know_are_one_line(folder, name):
    more, words = REFUSED[name]
    with pytest.raises(UserError) as raised:
        check_native(*resolved(folder, more, 1))
    assert words in str(raised.value) and "native.json: DeepSpeed" in str(raised.value)
    assert "\n" not in str(raised.value)
