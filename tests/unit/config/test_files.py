"""Files and folders that are whole or not there, on a disk that takes no more too."""

import errno
from pathlib import Path

import pytest
from safetensors.torch import save_file
from torch import zeros

from ds_moe_mtl.config import UserError
from ds_moe_mtl.config.files import new_folder, write_json, write_text
from tests.support.disk import files_up_to


def test_a_file_that_cannot_be_written_is_as_it_was_and_its_error_names_it(tmp_path):
    path = tmp_path / "page.html"
    write_text(path, "before")
    with files_up_to(1000), pytest.raises(OSError) as told:
        write_text(path, "x" * 2000)
    assert (told.value.errno, told.value.filename) == (errno.EFBIG, str(path))
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def test_a_file_is_written_through_a_link_and_into_a_device(tmp_path):
    real, link = tmp_path / "real.json", tmp_path / "link.json"
    link.symlink_to(real)
    write_json(link, {"a": 1})
    assert link.is_symlink() and real.read_text() == '{\n  "a": 1\n}\n'
    with pytest.raises(OSError) as told:
        write_text(Path("/dev/full"), "x")
    assert (told.value.errno, told.value.filename) == (errno.ENOSPC, "/dev/full")


def test_text_that_utf8_cannot_say_is_no_end_of_a_page(tmp_path):
    write_text(tmp_path / "page", "a \ud800 b")
    assert (tmp_path / "page").read_text() == "a ? b"


def test_a_new_folder_is_gone_where_it_could_not_be_filled(tmp_path):
    with files_up_to(1000), pytest.raises(OSError) as told, new_folder(tmp_path / "new") as folder:
        (folder / "small").write_text("x")
        save_file({"w": zeros(1000)}, folder / "w.safetensors")  # its error is of its own class
    assert (told.value.errno, told.value.filename) == (errno.EFBIG, str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_an_empty_folder_that_was_there_stays_and_folders_above_a_new_one_go(tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    for place in (mine, tmp_path / "a/b/c"):
        with pytest.raises(ZeroDivisionError), new_folder(place) as folder:
            (folder / "sub").mkdir()
            (folder / "sub/file").touch()
            raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == [mine] and not any(mine.iterdir())


def test_a_name_as_long_as_may_be_is_written_and_a_missing_folder_is_told(tmp_path):
    write_text(tmp_path / ("n" * 250 + ".html"), "x")
    with pytest.raises(FileNotFoundError) as told:
        write_text(tmp_path / "nowhere/page", "x")
    assert (told.value.filename, told.value.strerror) == (
        str(tmp_path / "nowhere"),
        "no such folder",
    )


def test_a_folder_above_stays_where_another_process_has_put_something(tmp_path):
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "all/mine"):
        (tmp_path / "all/other").touch()
        raise ZeroDivisionError
    assert list((tmp_path / "all").iterdir()) == [tmp_path / "all/other"]


@pytest.mark.parametrize(
    ("taken", "what"),
    [("file", "not empty"), ("filled", "not empty"), ("dangling link", "a link")],
)
def test_a_place_that_is_taken_is_refused_and_left(tmp_path, taken, what):
    place = tmp_path / "place"
    if taken == "file":
        place.write_text("mine")
    elif taken == "filled":
        place.mkdir()
        (place / "mine").touch()
    else:
        place.symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=f"is {what}; allowed: a new folder"), new_folder(place):
        pass
    assert place.is_symlink() or place.exists()
