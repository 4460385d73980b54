"""A run knows its data: continued or started again, it is refused where the rows have changed."""

import json
import shutil
from pathlib import Path

import pytest

from ds_moe_mtl.cli.train import main
from ds_moe_mtl.config import dump_config
from ds_moe_mtl.training.contents import data_changes
from tests.support.tiny import tiny_config, write_tiny


class Run:
    """A run of two steps that has ended, its data and its YAML, all in one folder."""

    def __init__(self, folder: Path, **sections) -> None:
        self.folder = folder
        write_tiny(folder)
        train = {"steps": 2, "save_every": 1, "keep_checkpoints": 2}
        self.config = tiny_config(folder, train=train, **sections)
        self.yaml = folder / "run.yaml"
        self.yaml.write_text(dump_config(self.config))
        self.path = folder / "run"

    def data(self, task: str) -> Path:
        return self.folder / f"data/{task}.csv"

    def unfinish(self) -> None:
        """Leave the run as a kill after its first step does."""
        (self.path / "results.json").unlink()
        shutil.rmtree(self.path / "checkpoints/step_00000002")

    def start(self, capsys) -> tuple[int, str, str]:
        """Return (status, stdout, stderr) of the run started again."""
        capsys.readouterr()
        status = main([str(self.yaml)])
        said = capsys.readouterr()
        return status, said.out, said.err


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    run = Run(tmp_path_factory.mktemp("trained"))
    assert main([str(run.yaml)]) == 0
    return run


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the ended run in a place of its own."""
    shutil.copytree(trained.folder, tmp_path / "copy")
    for file in (tmp_path / "copy").rglob("*"):
        if file.name in ("config.yaml", "tasks.json"):
            file.write_text(file.read_text().replace(str(trained.folder), str(tmp_path / "copy")))
    return Run(tmp_path / "copy")


def swap(path: Path, one: str, other: str) -> None:
    """Exchange two labels in a CSV file."""
    path.write_text(
        path.read_text()
        .replace(f",{one}\n", ",\0\n")
        .replace(f",{other}\n", f",{one}\n")
        .replace(",\0\n", f",{other}\n")
    )


def test_the_same_data_is_the_same_run_wherever_its_tokens_are(run, capsys):
    shutil.rmtree(run.folder / "cache")
    status, out, err = run.start(capsys)
    assert status == 0 and out.startswith(f"{run.path} is complete already") and not err
    assert "note:" not in out.split("\n\n")[0]
    run.unfinish()
    status, out, _ = run.start(capsys)
    assert status == 0 and "continuing" in out and "could not be compared" not in out


@pytest.mark.parametrize("is_finished", [True, False])
def test_swapped_labels_are_refused_with_the_task_and_what_to_do(run, capsys, is_finished):
    if not is_finished:
        run.unfinish()
    before = sorted(run.path.rglob("*"))
    swap(run.data("colour"), "plain", "coloured")
    status, _, err = run.start(capsys)
    assert status == 2 and err.count("\n") == 1
    assert "colour (train rows, dev rows)" in err and "same" not in err
    for way in ("put the data back", "set another run.dir", "run.resume=never"):
        assert way in err
    assert sorted(run.path.rglob("*")) == before
    swap(run.data("colour"), "plain", "coloured")
    assert run.start(capsys)[0] == 0


def test_other_class_names_and_one_row_more_are_refused(run, capsys):
    text = run.data("same").read_text()
    run.data("same").write_text(text.replace(",no\n", ",never\n"))
    with run.data("amount").open("a") as file:
        file.write("a new row,of two texts,0.25\n")
    status, _, err = run.start(capsys)
    assert status == 2
    assert "same (classes no, yes then and never, yes now); amount (train rows" in err


def test_what_is_of_before_data_was_recorded_goes_on_and_says_so(run, capsys):
    results = json.loads((run.path / "results.json").read_text())
    del results["data"]
    (run.path / "results.json").write_text(json.dumps(results))
    status, out, _ = run.start(capsys)
    assert status == 0 and "is of before data was recorded: it was not compared" in out
    run.unfinish()
    manifest = run.path / "checkpoints/step_00000001/manifest.json"
    values = json.loads(manifest.read_text())
    del values["identity"]["data"]
    manifest.write_text(json.dumps(values))
    status, out, _ = run.start(capsys)
    assert status == 0 and "continuing" in out
    assert "step_00000001 is of before data was recorded: it could not be compared" in out


def test_a_finished_run_whose_data_cannot_be_read_says_that_it_was_not_compared(run, capsys):
    run.data("colour").write_text("text,label\n")
    status, out, _ = run.start(capsys)
    assert status == 0 and "is complete already" in out
    assert "note: the run's data could not be compared" in out and "the file has no rows" in out


def test_another_configuration_is_told_before_other_data(run, capsys):
    swap(run.data("colour"), "plain", "coloured")
    run.yaml.write_text(run.yaml.read_text().replace("limit_examples: null", "limit_examples: 9"))
    status, _, err = run.start(capsys)
    assert status == 2 and "different: train.limit_examples" in err


def test_the_second_stage_takes_a_head_by_the_names_of_its_classes(run, capsys):
    text = run.data("same").read_text()
    values = dump_config(tiny_config(run.folder, start={"model": str(run.path)}))
    run.yaml.write_text(values.replace(f"dir: {run.path}", f"dir: {run.folder}/second"))
    run.data("same").write_text(text.replace(",no\n", ",never\n"))
    status, _, err = run.start(capsys)
    assert status == 2 and "'no' there only, 'never' here only; allowed: start.head=new" in err


def test_changes_are_told_by_task():
    one = {"train": "1", "dev": "2", "classes": ["a", "b"]}
    two = {**one, "dev": "3"}
    assert data_changes({"t": one}, {"t": one}) == ""
    assert data_changes({"t": one, "u": one}, {"t": two}) == "t (dev rows); u (only there)"
    assert data_changes({"t": one}, {"t": {**one, "classes": ["b", "a"]}}) == (
        "t (classes a, b then and b, a now)"
    )
