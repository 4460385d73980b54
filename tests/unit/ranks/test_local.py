"""Ranks of this machine: one answer, one ending, the message of the one that failed."""

import time

import psutil
import pytest

from ds_moe_mtl.config import UserError
from ds_moe_mtl.ranks.local import on_ranks

WORKER = "tests.support.failing_worker"


@pytest.fixture(scope="module", autouse=True)
def from_the_root(root):
    """A worker is found from the folder in which its command runs, or on the path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        yield


def test_rank_zero_answers_for_all(tmp_path):
    found = on_ranks(WORKER, {"how": "nothing", "started": str(tmp_path / "pid")}, 2)
    assert found == {"sum": 2.0}


@pytest.mark.parametrize(
    ("how", "kind", "words"),
    [
        ("mistake", UserError, "rank 1 has no data; allowed: data"),
        ("error", RuntimeError, "rank 1 ended with status 1:"),
        ("signal", UserError, "rank 1 was ended by SIGKILL; is there memory enough?"),
    ],
)
def test_a_rank_that_fails_ends_those_that_wait_for_it_and_is_the_one_that_is_told(
    tmp_path, how, kind, words
):
    started = tmp_path / "pid"
    with pytest.raises(kind) as error:
        on_ranks(WORKER, {"how": how, "started": str(started)}, 2)
    late = time.time() - max(path.stat().st_mtime for path in tmp_path.glob("pid*"))
    assert late < 60  # a collective waits for half an hour
    assert str(error.value).startswith(words)
    assert "\n" not in str(error.value) or how == "error"
    assert ("KeyError: 'nonsense'" in str(error.value)) == (how == "error")
    pids = [int(path.read_text()) for path in tmp_path.glob("pid*")]
    assert len(pids) == 2 and not any(psutil.pid_exists(pid) for pid in pids)


def test_a_worker_that_is_no_module_is_told_with_what_python_says():
    with pytest.raises(RuntimeError, match="rank 0 ended with status 1:\n.*no.such"):
        on_ranks("no.such", {}, 1)
