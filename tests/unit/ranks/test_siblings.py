"""Ranks under a real mpirun (hydra) of which one ends before they have met."""

from ds_moe_mtl.ranks.statuses import HUNG
from tests.support.launch import ROOT, launch

SCRIPT = ROOT / "tests/support/siblings.py"


def test_a_rank_that_waits_for_one_that_has_gone_ends_with_what_it_started_and_says_so():
    run = launch([SCRIPT, "gone"], 2, "mpirun", time_limit=60)
    assert run.returncode == HUNG | 9, run.text  # hydra joins the statuses of all ranks
    lines = [line for line in run.stderr.splitlines() if line.startswith("lost: ")]
    assert len(lines) == 1 and "1 of 2 ranks of this machine ended before" in lines[0], run.text


def test_ranks_that_all_come_are_left_alone():
    run = launch([SCRIPT, "here"], 2, "mpirun", time_limit=60)
    assert run.returncode == 0 and run.stdout.count("met") == 2, run.text
