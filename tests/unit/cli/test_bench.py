"""ds-moe-mtl bench: all contestants in one call, its picture, and its mistakes."""

import json

import pytest

from ds_moe_mtl.benchmark.contestants import CONTESTANTS
from ds_moe_mtl.cli import main
from ds_moe_mtl.config import dump_config
from tests.support.pictures import share_of_ink
from tests.support.tiny import tiny_config, write_tiny


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = write_tiny(tmp_path_factory.mktemp("tiny"))
    (folder / "run.yaml").write_text(dump_config(tiny_config(folder)))
    return folder


def test_all_contestants_are_timed_in_one_call(tiny, capsys, tmp_path):
    pytest.importorskip("accelerate", reason="the Trainer needs it: pip install '.[bench]'")
    files = tmp_path / "found.json", tmp_path / "found.png"
    arguments = ["--rounds", "2", "--output", str(files[0]), "--plot", str(files[1])]
    assert main(["bench", "throughput", str(tiny / "run.yaml"), *arguments]) == 0
    text = capsys.readouterr().out
    assert "No existing process group" not in text and "stock_no_drop" in text
    assert "no MFU: no published peak is known of cpu" in text
    (found,) = json.loads(files[0].read_text())
    assert set(found["step"]) == set(CONTESTANTS)
    assert set(found["model"]) == set(CONTESTANTS) - {"trainer"}
    assert found["step"]["mt_dense"]["ratio"] == 1
    for row in found["step"].values():
        parts = [row[f"{part}_ms"] for part in ("data", "forward", "backward", "optimizer")]
        assert all(part > 0 for part in parts) and row["peak_bytes"] > 0
        assert row["all_to_all_ms"] == 0  # one rank
        assert row["mfu"] is None and row["utilisation"] > 0
    assert [line for line in text.splitlines() if line.startswith("warning: ")] == [
        f"warning: {warning}" for warning in found["warnings"]
    ]
    assert share_of_ink(files[1]) > 0.01


def test_ranks_share_experts_and_count_their_exchanges(tiny, capsys):
    arguments = ["--rounds", "2", "--ranks", "2", "--only", "mt_tag,stock_no_drop", "--json"]
    assert main(["bench", str(tiny / "run.yaml"), *arguments]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert list(found["step"]) == ["mt_dense", "mt_tag", "mt_tag_ep2"]
    assert "unequal tokens" in found["left_out"]["stock_no_drop"]
    assert (
        found["step"]["mt_tag_ep2"]["all_to_all_ms"] > 0 == found["step"]["mt_tag"]["all_to_all_ms"]
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--ranks", "1,x"], "--ranks = '1,x'"),
        (["--rounds", "1"], "--rounds = 1"),
        (["--only", "mt_tag,ours"], "--only names 'ours'"),
        (["model.kind=dense"], "model.kind"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(tiny, capsys, arguments, words):
    status = main(["bench", str(tiny / "run.yaml"), *arguments])
    errors = capsys.readouterr().err.strip().splitlines()
    assert status == 2 and len(errors) == 1 and words in errors[0], errors
