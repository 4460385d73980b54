"""Golden losses: the first 20 steps of tiny runs of every kind, as they are recorded in losses/.

On the processor that recorded them (its name, extensions and torch's version are in the record)
losses, norms and the final weights are the same to the bit. On another one they are close: products
are summed in another order there, and in 16 bits each rounding may differ. `tests/golden/runs.py`
says how they are recorded again; a change of them needs a line in CHANGELOG.md.
"""

import json

import pytest

from tests.golden.runs import LOSSES, NAMES, processor, train_all

OTHER_PROCESSOR = {"fp32": {"rel": 1e-4}, "bf16": {"rel": 1e-2, "abs": 1e-2}}
"""What a loss may differ by on another processor. Between AVX2's and SSE's code of one processor
the largest relative difference was 2.4e-7 in fp32 and 1.6e-3 in bf16 (5.6e-2 of a loss of 0.01)."""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return train_all(tmp_path_factory.mktemp("golden"))


@pytest.mark.parametrize("name", NAMES)
def test_the_first_steps_are_those_of_the_record(name, found):
    recorded = json.loads((LOSSES / f"{name}.json").read_text())
    if recorded.pop("processor") == processor():
        assert found[name] == recorded
        return
    tolerance = OTHER_PROCESSOR[name.rpartition("_")[2]]
    for want, got in zip(_parts(recorded), _parts(found[name]), strict=True):
        assert got["loss"] == pytest.approx(want["loss"], **tolerance)


def _parts(record: dict) -> list[dict]:
    return list(record["tasks"].values()) if "tasks" in record else [record]
