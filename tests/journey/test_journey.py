"""From three tables to transformers' pipeline, by the commands alone."""

import csv
import json
import random
import subprocess
from pathlib import Path

import pytest

from ds_moe_mtl.evaluation import MultiTaskModel
from tests.support.launch import rank_environ
from tests.support.tiny import COLOURS, WORDS, write_encoder

JOURNEY = Path(__file__).with_name("journey.sh")


def _write(path: Path, header: list[str], rows: list[list]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


def _tables(folder: Path, rows: int = 80) -> None:
    draw = random.Random(1)

    def text() -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(2, 12)))

    reviews = [text() for _ in range(rows)]
    stars = [[review, 5 if set(review.split()) & set(COLOURS) else 1] for review in reviews]
    _write(folder / "stars.csv", ["review", "stars"], stars)
    tickets = [[text(), draw.choice(["hardware", "billing"])] for _ in range(rows)]
    _write(folder / "tickets.csv", ["subject", "team"], tickets)
    pairs = [[text(), text(), round(draw.random(), 2)] for _ in range(rows)]
    _write(folder / "pairs.csv", ["first", "second", "likeness"], pairs)


@pytest.fixture(scope="module")
def journey(tmp_path_factory):
    """The folder after the whole way."""
    folder = tmp_path_factory.mktemp("journey")
    write_encoder(folder / "encoder")
    _tables(folder)
    run = subprocess.run(
        [str(JOURNEY), str(folder), str(folder / "encoder")],
        env=rank_environ({"HF_HUB_OFFLINE": "1"}),
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    return folder


def test_every_way_gives_the_same_answers(journey):
    rows = list(csv.DictReader((journey / "stars.csv").open(newline="")))
    model = MultiTaskModel.from_pretrained(journey / "runs/mine", "cpu")
    mine = model.predict("stars", [row["review"] for row in rows], return_probabilities=True)
    told = [json.loads(line) for line in (journey / "answers.jsonl").read_text().splitlines()]
    outside = json.loads((journey / "outside.json").read_text())
    assert len(mine) == len(told) == len(outside) == len(rows)
    for answer, row, other in zip(mine, told, outside, strict=True):
        assert answer["label"] == row["predicted_stars"] == other["label"]
        assert row["predicted_stars_probability"] == pytest.approx(answer["probability"], abs=1e-5)
        assert other["score"] == pytest.approx(answer["probability"], abs=1e-5)
    results = json.loads((journey / "runs/mine/results.json").read_text())
    for name, result in results["tasks"].items():
        again = model.evaluate(name, None)
        assert again["value"] == pytest.approx(result["value"], abs=1e-3), name
    exported = json.loads((journey / "exported/export.json").read_text())["tasks"]
    assert all(found["other_answers"] in (0, None) for found in exported.values())
    assert "<html" in (journey / "page.html").read_text()
