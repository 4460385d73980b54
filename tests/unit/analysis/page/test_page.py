"""The page as a whole: one file that fetches nothing, whose texts are inert and numbers right."""

import base64
import hashlib
import json
import re
import shutil

import pytest

from ds_moe_mtl.cli import main
from tests.support.pages import Parsed
from tests.support.runs import write_run

SCRIPT = "<script>alert(1)</script>"
BREAKOUT = '"><img src=x onerror=alert(2)>{{ 7*7 }}</title></style>'


def page_of(*arguments, capsys):
    """Return (page, its numbers) of a report."""
    assert main(["report", *map(str, arguments), "--json"]) == 0
    numbers = json.loads(capsys.readouterr().out)
    with open(numbers["page"], encoding="utf-8") as file:
        html = file.read()
    return html, Parsed(html), numbers


def test_a_page_is_one_file_that_fetches_nothing_and_forbids_it(tmp_path, capsys):
    html, page, _ = page_of(write_run(tmp_path / "run", ["rte", "mrpc"]), capsys=capsys)
    assert page.fetched() == [] and not page.of("script") and not page.of("iframe")
    assert html.startswith("<!DOCTYPE html>") and "@import" not in html and "url(" not in html
    policy = page.of("meta")[1]["content"]
    style = re.search(r"<style>(.*?)</style>", html, re.S)[1]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert "default-src 'none'" in policy and f"style-src 'sha256-{digest}'" in policy
    assert not [values for _, values in page.tags if "style" in values]  # the policy forbids them
    assert {values["lang"] for values in page.of("html")} == {"en"}


@pytest.mark.parametrize("text", [SCRIPT, BREAKOUT])
def test_texts_of_data_and_names_are_inert(tmp_path, capsys, text):
    run = write_run(tmp_path / "run", ["rte", text], classes=(text, "b"), notes=(text,))
    (run / "environment.json").write_text(json.dumps({"device": text, "world_size": 1}))
    html, page, _ = page_of(
        run, write_run(tmp_path / text.replace("/", "_"), ["rte"]), capsys=capsys
    )
    assert not page.of("script") and not page.of("img") and page.fetched() == []
    assert not [key for _, values in page.tags for key in values if key.startswith("on")]
    assert page.words.count(" ".join(text.split())) >= 5 and "49" not in page.words.split()
    assert text not in html


def test_the_numbers_are_those_of_results_json(tmp_path, capsys):
    run = write_run(tmp_path / "run", ["rte", "mrpc", "cola"])
    _, page, numbers = page_of(run, capsys=capsys)
    results = json.loads((run / "results.json").read_text())["tasks"]
    for row in numbers["scores"]["rows"]:
        (score,) = row["scores"]
        assert score["value"] == results[row["task"]]["value"]
        assert score["low"] < score["value"] < score["high"]
        assert f"{score['value']:.1f} {score['low']:.1f} to {score['high']:.1f}" in page.words
    mean = numbers["scores"]["mean"]["scores"][0]["value"]
    assert mean == pytest.approx(sum(r["value"] for r in results.values()) / 3)
    assert numbers["runs"][0]["tasks"] == results


def test_sixty_tasks_one_task_and_one_step_give_small_pages(tmp_path, capsys):
    names = [f"a_long_name_of_a_task_of_the_gym_{number}" for number in range(60)]
    many = write_run(tmp_path / "many", names, steps=400, layers=12, experts=4)
    html, page, numbers = page_of(many, capsys=capsys)
    assert len(html) < 3_000_000 and all(name in page.words for name in names)
    assert len(numbers["runs"][0]["routing"]["by_routes"]["order"]) == 60
    one = write_run(tmp_path / "one", ["rte"])
    assert "One task has no other" in page_of(one, capsys=capsys)[1].words
    step = write_run(tmp_path / "step", ["rte", "mrpc"], steps=1, every=1)
    html, page, _ = page_of(step, capsys=capsys)
    assert "nan" not in html.lower() and "1 step, complete" in page.words


def test_an_unfinished_run_and_one_without_predictions_say_what_they_lack(tmp_path, capsys):
    run = write_run(tmp_path / "run", ["rte"])
    (run / "dev_predictions.npz").unlink()
    words = page_of(run, capsys=capsys)[1].words
    assert "no intervals, the run has no dev_predictions.npz" in words
    (run / "results.json").unlink()
    words = page_of(run, capsys=capsys)[1].words
    assert "100 steps, not complete" in words and "there are no final scores" in words


def test_single_task_runs_are_one_run_with_the_tasks_of_its_parts(tmp_path, capsys):
    parts = {name: write_run(tmp_path / "run" / name, [name], kind="single") for name in "ab"}
    results = {n: json.loads((p / "results.json").read_text()) for n, p in parts.items()}
    tasks = {name: part["tasks"][name] for name, part in results.items()}
    whole = {**results["a"], "tasks": tasks}
    (tmp_path / "run/results.json").write_text(json.dumps(whole))
    _, page, numbers = page_of(tmp_path / "run", capsys=capsys)
    assert [row["task"] for row in numbers["scores"]["rows"]] == ["a", "b"]
    assert all(row["scores"][0]["low"] is not None for row in numbers["scores"]["rows"])
    assert numbers["picture"] is None and "Expert load" not in page.words


def test_a_kind_of_task_that_the_page_does_not_know_has_its_scores(tmp_path, capsys):
    from dataclasses import replace

    from ds_moe_mtl.evaluation.predictions import read_predictions, write_predictions

    run = write_run(tmp_path / "run", ["rte", "new"])
    known = read_predictions(run)
    write_predictions(run, {**known, "new": replace(known["new"], kind="of_tomorrow")})
    _, page, numbers = page_of(run, capsys=capsys)
    assert "Of a task of kind of_tomorrow the page shows its scores alone." in page.words
    assert "run: no interval for new." in page.words
    assert [row["scores"][0]["low"] is None for row in numbers["scores"]["rows"]] == [False, True]


def test_runs_of_one_name_are_told_apart_and_mistakes_are_one_line(tmp_path, capsys):
    runs = [write_run(tmp_path / side / "run", ["rte"]) for side in ("left", "right")]
    words = page_of(*runs, "--output", tmp_path / "both.html", capsys=capsys)[1].words
    assert "left/run" in words and "right/run" in words and (tmp_path / "both.png").exists()
    dense = write_run(tmp_path / "dense", ["rte"], kind="mt_dense")
    for arguments, message in (
        ([dense, "--experts"], "no run of mt_switch, mt_tag among dense"),
        ([runs[0], runs[0]], "named twice"),
        ([runs[0], "--output", tmp_path / "a.png"], "ends in .html"),
        ([runs[0], "--features", tmp_path / "none.csv"], "cannot be read"),
        ([runs[0], "--no-data", "--experts"], "one of them"),
    ):
        assert main(["report", *map(str, arguments)]) == 2
        said = capsys.readouterr().err
        assert message in said and len(said.splitlines()) == 1
    shutil.rmtree(tmp_path / "left")
    assert main(["report", str(tmp_path / "left/run")]) == 2
    assert "no metrics.jsonl" in capsys.readouterr().err
