"""doctor --distributed on two real ranks: what it tells, and the faults that it finds."""

import json
import os
import time

import torch

from ds_moe_mtl.ranks.checkup import check_up
from ds_moe_mtl.ranks.clocks import MOST_SKEW
from ds_moe_mtl.ranks.rendezvous import rendezvous
from tests.support.launch import launch, run_ranks


def look(case: str) -> dict:
    """Return what a checkup finds where rank 1 has another torch, or a clock that is ahead."""
    ranks = rendezvous(os.environ)
    versions = {"torch": "2.13.0"}
    right_time = time.time
    if ranks.rank == 1 and case == "versions":
        versions["torch"] = "2.12.1"
    if ranks.rank == 1 and case == "clock":
        time.time = lambda: right_time() + 3 * MOST_SKEW
    found = check_up(ranks, torch.device("cpu"), versions)
    time.time = right_time
    return {"hosts": [row["host"] for row in found.ranks], "faults": list(found.faults)}


def look_at_all() -> list[dict]:
    return [look(case) for case in ("well", "versions", "clock")]


def test_other_versions_and_other_clocks_are_faults_on_every_rank():
    everyones = run_ranks(look_at_all, ranks=2)
    assert everyones[0] == everyones[1]
    well, versions, clock = everyones[0]
    assert well["faults"] == [] and len(well["hosts"]) == 2
    assert len(versions["faults"]) == len(clock["faults"]) == 1
    assert "torch differs: rank 1 on" in versions["faults"][0]
    assert "rank 1 on" in clock["faults"][0] and "its clock is +3.0 s" in clock["faults"][0]


def test_the_command_prints_a_row_a_rank_and_both_speeds():
    run = launch(["-m", "ds_moe_mtl", "doctor", "--distributed", "--json"], 2, "fork")
    assert run.returncode == 0, run.text
    told = json.loads(run.stdout.strip().splitlines()[-1])
    assert [row["rank"] for row in told["ranks"]] == ["0", "1"] and told["faults"] == []
    assert min(told["bytes_per_s"].values()) > 0
