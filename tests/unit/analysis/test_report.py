"""A run's course: what metrics.jsonl says, and a picture of it."""

import json
from pathlib import Path

import pytest

from ds_moe_mtl.analysis.report import draw_report, read_course
from ds_moe_mtl.cli import main
from tests.support.pictures import share_of_ink


def rows(steps, layers=2, experts=3):
    for step in steps:
        row = {"step": step, "loss": 1 / step, "loss/rte": 2 / step, "lr": 0.1, "grad_norm": 1.0}
        for layer in range(layers):
            shares = [0.5, 0.3, 0.2] if layer == 0 else [1.0, 0.0, 0.0]
            row |= {f"load/{layer}/{e}": share for e, share in enumerate(shares[:experts])}
        yield row | ({"dev/rte": 50.0 + step} if step % 20 == 0 else {})


def test_series_keep_their_own_steps_and_loads_their_places():
    course = read_course(list(rows([10, 20, 30])), "run")
    assert course.named("dev/")["rte"][0].tolist() == [20]
    assert course.series["loss"][1].tolist() == [1 / 10, 1 / 20, 1 / 30]
    assert course.loads_SLE.shape == (3, 2, 3)
    assert course.loads_SLE[1, 0].tolist() == [0.5, 0.3, 0.2]


def test_balance_is_one_for_even_loads_and_zero_for_one_expert():
    even = [{"step": 1, **{f"load/1/{e}": 0.25 for e in range(1, 5)}}]
    assert read_course(even, "run").balance()["entropy"] == 1.0
    one = [{"step": 1, "load/1/1": 1.0, "load/1/2": 0.0}]
    assert read_course(one, "run").balance() == {
        "step": 1,
        "largest": 100.0,
        "least": 0.0,
        "entropy": 0.0,
    }
    assert read_course([{"step": 1, "loss": 1.0}], "run").balance() is None


@pytest.mark.parametrize("is_sparse", [True, False])
def test_the_picture_is_drawn_for_sparse_and_dense_runs(tmp_path, is_sparse):
    found = [
        {k: v for k, v in row.items() if is_sparse or "load" not in k} for row in rows([1, 20])
    ]
    draw_report(read_course(found, "run"), tmp_path / "report.png")
    assert share_of_ink(tmp_path / "report.png") > 0.01


def test_the_command_reports_an_unfinished_run_and_refuses_what_is_none(tmp_path, capsys):
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows([10, 20])))
    assert main(["report", str(tmp_path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["last"]["dev/rte"] == 70.0 and told["balance"]["largest"] == 100.0
    assert share_of_ink(Path(told["picture"])) > 0.01
    assert main(["report", str(tmp_path / "none")]) == 2
    assert "no metrics.jsonl" in capsys.readouterr().err


def test_many_curves_have_a_legend_that_does_not_name_them(tmp_path):
    import warnings

    names = [f"a_task_with_a_long_name_{number}" for number in range(60)]
    found = [{"step": s, **{f"loss/{name}": 1 / s for name in names}} for s in (1, 2)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of a layout that has no room for its axes
        draw_report(read_course(found, "run"), tmp_path / "report.png")
    assert share_of_ink(tmp_path / "report.png") > 0.01
