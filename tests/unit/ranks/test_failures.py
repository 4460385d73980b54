"""A rank's failure has a file of its own; a mistake that all tell has none."""

import errno

import pytest

from ds_moe_mtl.config import RankError, UserError
from ds_moe_mtl.ranks.failures import file_errors_told, kept_by_rank
from ds_moe_mtl.ranks.machine import emulates_bf16


@pytest.mark.parametrize("error", [ZeroDivisionError("by zero"), RankError("the disk is full")])
def test_a_failure_is_kept_with_its_traceback_and_goes_on(tmp_path, capsys, error):
    for _ in range(2):
        with pytest.raises(type(error)), kept_by_rank(tmp_path / "run", rank=3):
            raise error
    log = tmp_path / "run" / "logs" / "rank3.log"
    assert log.read_text().count(f"{type(error).__name__}: {error}") == 2
    assert "Traceback" in log.read_text()
    assert capsys.readouterr() == ("", "")  # what is shown is the error itself


def test_a_mistake_of_all_ranks_leaves_no_folder(tmp_path):
    with pytest.raises(UserError), kept_by_rank(tmp_path / "run", rank=0):
        raise UserError("train.lr = -1")
    assert not (tmp_path / "run").exists()


def test_a_processor_without_bf16_is_known_by_its_flags():
    assert emulates_bf16("fpu sse2 avx2 avx512f")
    assert not emulates_bf16("avx512f avx512_bf16") and not emulates_bf16("asimd bf16")
    assert not emulates_bf16("")  # nothing is said


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "RUN: No space left on device"),
        (OSError(errno.EIO, "Input/output error"), "RUN: Input/output error"),
        (
            PermissionError(errno.EACCES, "Permission denied", "/a/file"),
            "/a/file: Permission denied",
        ),
    ],
)
def test_an_error_of_a_file_becomes_one_line_that_names_it_or_the_runs_folder(
    tmp_path, error, line
):
    with pytest.raises(RankError) as told, file_errors_told(tmp_path):
        raise error
    assert told.value.lines == (line.replace("RUN", str(tmp_path)),)


def test_an_error_of_no_file_goes_on_as_it_is(tmp_path):
    with pytest.raises(ConnectionResetError), file_errors_told(tmp_path):
        raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
