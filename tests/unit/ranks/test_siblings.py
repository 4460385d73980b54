"""Ranks under a real mpirun (hydra) of which one ends before they have met."""

import subprocess
import sys

from ds_moe_mtl.ranks.statuses import HUNG
from tests.support.launch import ROOT, launch

SCRIPT = ROOT / "tests/support/siblings.py"


def test_a_rank_that_waits_for_one_that_has_gone_ends_with_what_it_started_and_says_so():
    run = launch([SCRIPT, "gone"], 2, "mpirun", time_limit=60)
    assert run.returncode == HUNG | 9, run.text  # hydra joins the statuses of all ranks
    lines = [line for line in run.stderr.splitlines() if line.startswith("lost: ")]
    assert len(lines) == 1 and "a rank of this machine ended before" in lines[0], run.text


def test_ranks_that_all_come_are_left_alone():
    run = launch([SCRIPT, "here"], 2, "mpirun", time_limit=60)
    assert run.returncode == 0 and run.stdout.count("met") == 2, run.text


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
