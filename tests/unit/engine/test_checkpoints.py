"""Folders of checkpoints: whole or not there, while they are removed and replaced too."""

import shutil

import pytest

from ds_moe_mtl.engine.checkpoints import (
    REMOVING,
    SAVING,
    damage,
    finish,
    list_checkpoints,
    remove,
    settle_removal,
)


def written(folder, step, text="weights"):
    """Write a checkpoint of one file and return its place."""
    aside, final = folder / SAVING / f"step_{step:08d}", folder / f"step_{step:08d}"
    aside.mkdir(parents=True)
    (aside / "weights.pt").write_text(text)
    finish(aside, final, {"step": step})
    shutil.rmtree(folder / SAVING)
    return final


def test_a_checkpoint_of_the_same_step_takes_the_place_of_the_one_before(tmp_path):
    written(tmp_path, 4, "before")
    final = written(tmp_path, 4, "after")
    assert damage(final) == "" and (final / "weights.pt").read_text() == "after"
    assert list(tmp_path.iterdir()) == [final]


def test_a_removed_checkpoint_leaves_nothing(tmp_path):
    kept, old = written(tmp_path, 8), written(tmp_path, 4)
    remove(old)
    assert list_checkpoints(tmp_path) == [kept] == list(tmp_path.iterdir())


@pytest.mark.parametrize("left", ["whole", "without a file", "without a manifest", "replaced"])
def test_a_removal_that_was_killed_is_ended_and_costs_no_whole_checkpoint(tmp_path, left):
    old = written(tmp_path, 4)
    aside = old.rename(tmp_path / REMOVING)
    if left == "without a file":
        (aside / "weights.pt").unlink()
    elif left == "without a manifest":
        (aside / "manifest.json").unlink()
    elif left == "replaced":
        shutil.copytree(aside, old)
    assert REMOVING not in [path.name for path in list_checkpoints(tmp_path)]
    settle_removal(tmp_path)
    assert list(tmp_path.iterdir()) == ([old] if left in ("whole", "replaced") else [])
    assert all(damage(path) == "" for path in list_checkpoints(tmp_path))
    settle_removal(tmp_path)
