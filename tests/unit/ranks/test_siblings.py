"""Ranks under a real mpirun (hydra) of which one ends before they have met."""

import subprocess
import sys

import pytest

from ds_moe_mtl.ranks.siblings import LINE
from ds_moe_mtl.ranks.statuses import HUNG
from tests.support.launch import ROOT, launch

SCRIPT = ROOT / "tests/support/siblings.py"


@pytest.mark.parametrize(("way", "its"), [("gone", 2), ("killed", 9)])
def test_a_rank_whose_sibling_has_gone_ends_with_what_it_started_and_says_so(way, its):
    run = launch([SCRIPT, way], 2, "mpirun", time_limit=60)
    assert not run.timed_out and "went on" not in run.stdout, run.text
    if "CLEANING UP REMAINING PROCESSES" in run.text:  # hydra ends them itself, now and then
        assert run.returncode == its, run.text
    else:
        assert run.returncode == HUNG | its and run.stderr.count(LINE) == 1, run.text


@pytest.mark.parametrize(("way", "number", "status"), [("here", 2, 0), ("mistaken", 1, 2)])
def test_ranks_that_wait_or_have_met_a_mistake_are_left_alone(way, number, status):
    run = launch([SCRIPT, way], 2, "mpirun", time_limit=60)
    assert run.returncode == status and run.stdout.count("went on") == number, run.text
    assert LINE not in run.stderr


def test_what_asks_mpi_for_the_address_ends_with_its_rank():
    rank = (
        "import os, subprocess, sys\n"
        "subprocess.Popen([*sys.argv[1:], 'localhost', '1', '1', str(os.getpid())])\n"
        "os.kill(os.getpid(), 9)\n"
    )
    address = [sys.executable, ROOT / "ds_moe_mtl/ranks/mpi_address.py"]
    words = [sys.executable, "-c", rank, *address]
    ended = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == -9 and ended.stdout == "", ended  # read until both have ended
