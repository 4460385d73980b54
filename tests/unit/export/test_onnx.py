"""A task as an ONNX graph: onnxruntime gives what the model gives, at every batch and length."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from ds_moe_mtl.cli import main
from ds_moe_mtl.export.onnx import PACKAGES, export_onnx, task_graph
from ds_moe_mtl.export.source import open_source
from tests.support.exported import write_model, write_source

MISSING = [package for package in PACKAGES if find_spec(package) is None]
installed = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return write_source(tmp_path_factory.mktemp("source"))


@installed
def test_a_sparse_graph_keeps_experts_and_gate_and_its_int8_is_told(source, tmp_path):
    moe = {"gate_scale": "paper", "num_experts": 2, "layers": [2]}
    folder = write_model(source, tmp_path / "m", moe=moe)
    said = []
    opened = open_source(folder, None, None, None, None)
    export_onnx(opened, "marks", tmp_path / "out", False, True, said.append)
    about = json.loads((tmp_path / "out/export.json").read_text())
    assert about["how"] == "it keeps its experts and its gate" and about["exact"]
    assert about["agreement"]["largest_difference"] < 1e-5
    small = about["int8"]
    assert 0 < small["bytes"] < small["bytes_before"] and small["times_as_fast"] > 0
    assert small["agreement"]["rows"] == about["agreement"]["rows"]
    assert [line for line in said if line.startswith("int8: ")][-1].count("times as fast") == 1


def test_a_graph_of_a_gated_encoder_with_local_layers_holds_at_other_sizes(tmp_path):
    """The graph that is written as ONNX is torch.export's, which needs no further package."""
    moe = {"gate_scale": "paper", "num_experts": 2, "layers": [1]}
    source = write_source(tmp_path / "source", "modernbert")
    opened = open_source(write_model(source, tmp_path / "m", moe=moe), None, None, None, None)
    graph, how, exact = task_graph(opened, opened.model.task("colour"), False)
    assert exact and "keeps its experts" in how

    def rows(batch, length):
        generator = torch.Generator().manual_seed(length)
        ids_BS = torch.randint(5, 36, (batch, length), generator=generator)
        mask_BS = torch.ones_like(ids_BS)
        mask_BS[-1, length // 2 :] = 0
        return ids_BS, mask_BS

    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    with torch.no_grad():
        program = torch.export.export(
            graph, rows(2, 9), dynamic_shapes=(axes, axes), strict=False
        ).module()
        for size in ((3, 17), (5, 4)):
            torch.testing.assert_close(program(*rows(*size)), graph(*rows(*size)))


@installed
def test_a_dense_graph_is_compared_on_random_tokens_where_there_are_no_dev_rows(source, tmp_path):
    folder = write_model(source, tmp_path / "m", model={"kind": "mt_dense"})
    description = json.loads((folder / "config.json").read_text())
    for row in description["tasks"]:
        row["train_file"] = str(tmp_path / "gone.csv")
    (folder / "config.json").write_text(json.dumps(description))
    said = []
    opened = open_source(folder, None, None, None, None)
    export_onnx(opened, "same", tmp_path / "out", False, False, said.append)
    about = json.loads((tmp_path / "out/export.json").read_text())
    assert about["random_rows"]["rows"] == 100
    assert about["random_rows"]["largest_difference"] < 1e-5
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "export.json",
        "model.onnx",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    shutil.rmtree(tmp_path / "out")


@pytest.mark.skipif(not MISSING, reason="all packages are installed")
def test_an_absent_package_is_one_line(source, tmp_path, capsys):
    folder = write_model(source, tmp_path / "m", model={"kind": "mt_dense"})
    words = ["export", str(folder), "--to", "onnx", "--task", "same"]
    assert main([*words, "--output", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert f"needs the package {MISSING[0]}" in err and len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()
