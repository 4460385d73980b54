"""Commands whose output finds no room: one line that names it, status 2, and nothing is left."""

import subprocess
import sys

import pytest

from ds_moe_mtl.cli import main
from tests.support.disk import files_up_to
from tests.support.exported import write_model, write_source
from tests.support.launch import ROOT


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("full")
    return write_model(write_source(folder / "source", "bert"), folder / "model")


@pytest.mark.parametrize(
    "words",
    [
        ["remove", "MODEL", "--task", "same", "--output", "OUT"],
        ["export", "MODEL", "--to", "huggingface", "--output", "OUT"],
    ],
    ids=lambda words: words[0],
)
def test_a_folder_that_finds_no_room_is_told_in_one_line_and_gone(model, tmp_path, capsys, words):
    out = tmp_path / "out"
    places = {"MODEL": str(model), "OUT": str(out)}
    with files_up_to(10_000):
        status = main([places.get(word, word) for word in words])
    said = capsys.readouterr().err.splitlines()
    assert status == 2 and said[-1] == f"error: {out}: File too large", said
    assert not out.exists()


@pytest.mark.parametrize("word", ["tasks", "--help", "--version"])
def test_what_is_printed_finds_no_room(word):
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "ds_moe_mtl", word]
        run = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert run.returncode == 2
    more = ", or a file that is written" if "or a file" in run.stderr else ""  # as it buffers
    assert run.stderr == f"error: standard output{more}: No space left on device\n"


@pytest.mark.parametrize("name", ["difference", "difference.xyz"])
def test_a_picture_of_no_known_format_is_refused_before_the_work(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["compare", "a", "--plot", name, "--", "b"])
    assert (
        ended.value.code == 2 and "allowed: a name with .png, .pdf, .svg" in capsys.readouterr().err
    )
