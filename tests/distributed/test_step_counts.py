"""What a training step costs beside arithmetic, held at what was reached (docs/gpu.md)."""

import json
from pathlib import Path

import pytest
import torch

from tests.support.counts import count_steps
from tests.support.launch import ROOT, run_ranks
from tests.support.steps import train_tiny
from tests.support.tiny import write_tiny

# ranks, model.kind, implementation -> operators at most, launches, host reads, collectives.
# On a CPU a host also reads: the counts of experts, three times a layer (torch), and the range of
# gate ids, twice (triton). The kernels' own read is of the step before.
REACHED = {
    (1, "mt_dense", "torch"): (1058, 0, 1, 0),
    (1, "mt_dense", "triton"): (825, 4, 1, 0),
    (1, "mt_tag", "torch"): (1823, 0, 1 + 2 * 3, 0),
    (1, "mt_tag", "triton"): (915, 29, 1 + 2 * 2, 0),
    (2, "mt_tag", "torch"): (2184, 0, 1 + 2 * 3, 8),
    (2, "mt_tag", "triton"): (1465, 29, 1 + 2 * 2, 8),
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("counts"))


@pytest.fixture(scope="module")
def counted(tiny):
    found = {}
    for ranks in (1, 2):
        cases = [(kind, impl) for of, kind, impl in REACHED if of == ranks]
        asked = [{"kind": kind, "kernels": impl} for kind, impl in cases]
        counts = run_ranks(count_steps, str(tiny), asked, ranks=ranks, time_limit=240)[0]
        found |= {(ranks, *case): of for case, of in zip(cases, counts, strict=True)}
    return found


@pytest.mark.parametrize("case", REACHED, ids=str)
def test_a_step_asks_for_no_more_than_was_reached(counted, case):
    operators, launches, host_reads, collectives = REACHED[case]
    found = counted[case]
    assert found["operators"] <= operators
    assert (found["launches"], found["host_reads"]) == (launches, host_reads)
    assert found["collectives"] == collectives
    assert found["synchronisations"] == found["walks"] == 0


def with_and_without_overlap(folder: str, stages: list[int]) -> list[list[dict]]:
    """Return both runs of each stage, as train_tiny does."""
    found = []
    for stage in stages:
        native = json.loads((ROOT / f"ds_configs/deepspeed/zero{stage}.json").read_text())
        runs = []
        for overlap in (False, True):
            sizes = {"overlap_comm": overlap, "reduce_bucket_size": 5000}  # several buckets
            native["zero_optimization"] |= sizes
            path = Path(folder) / f"overlap{torch.distributed.get_rank()}.json"
            path.write_text(json.dumps(native))
            sections = {"moe": {"ep_size": 2}, "train": {"precision": "bf16", "steps": 3}}
            runs.append(train_tiny(folder, sections, path))
        found.append(runs)
    return found


def test_reduction_beside_the_backward_pass_changes_no_number(tiny):
    """DeepSpeed's overlap_comm; gradients are then reduced in the order of the backward pass."""
    for plain, overlapped in run_ranks(with_and_without_overlap, str(tiny), [1, 2], ranks=2)[0]:
        for key in ("loss", "grad_norm"):
            assert [r.get(key) for r in plain["rows"]] == [r.get(key) for r in overlapped["rows"]]
        for name, tensor in plain["state"].items():
            assert torch.equal(tensor, overlapped["state"][name]), name
