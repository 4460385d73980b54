"""train.profile: which steps are traced, and where the trace lies."""

import json

import torch
from torch.profiler import record_function

from ds_moe_mtl.tracking.trace import SKIPPED, WARM_UP, StepTrace


def traced(folder, steps: int, run: int) -> list[str]:
    """Return what a run of `run` steps said, traced for `steps` of them."""
    said: list[str] = []
    trace = StepTrace(steps, folder, 0, said.append)
    for step in range(run):
        with record_function(f"step {step}"):
            torch.ones(4, 4) @ torch.ones(4, 4)
        trace.step()
    trace.close()
    return said


def test_the_trace_holds_the_steps_asked_for_and_its_path_is_said(tmp_path):
    said = traced(tmp_path, steps=2, run=8)
    path = tmp_path / "trace_rank0.json"
    assert said == [f"trace: {path}"]
    names = {event.get("name") for event in json.loads(path.read_text())["traceEvents"]}
    first = SKIPPED + WARM_UP
    assert {f"step {first}", f"step {first + 1}", "aten::mm"} <= names
    assert f"step {first + 2}" not in names and "step 0" not in names


def test_a_run_shorter_than_its_trace_leaves_what_it_has(tmp_path):
    assert len(traced(tmp_path, steps=50, run=4)) == 1
    assert (tmp_path / "trace_rank0.json").exists()


def test_nothing_is_traced_by_default(tmp_path):
    assert traced(tmp_path, steps=0, run=3) == []
    assert list(tmp_path.iterdir()) == []
