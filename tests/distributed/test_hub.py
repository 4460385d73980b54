"""train.py with encoder and data from a hub: a small one on this machine, over HTTP."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from tests.support.hub import hub
from tests.support.launch import ROOT, launch
from tests.support.tiny import WORDS, write_encoder

MINILM = "nreimers/MiniLMv2-L6-H384-distilled-from-BERT-Large"


def write_glue(folder: Path) -> None:
    """Write RTE and STS-B in the hub's layout: a card that names the files, and parquet."""
    card = {"configs": []}
    for name, labels in (("rte", [0, 1]), ("stsb", [0.5, 4.0])):
        files = []
        for split, rows in (("train", 24), ("validation", 8)):
            texts = [f"{WORDS[n]} {WORDS[-n]}" for n in range(rows)]
            table = pa.table(
                {
                    "sentence1": texts,
                    "sentence2": texts[::-1],
                    "label": [labels[n % 2] for n in range(rows)],
                    "idx": list(range(rows)),
                }
            )
            path = folder / name / f"{split}-00000-of-00001.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table, path)
            files.append({"split": split, "path": f"{name}/{split}-*"})
        card["configs"].append({"config_name": name, "data_files": files})
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump(card)}---\n")


def write_sets_of_others(folder: Path) -> list[dict]:
    """Write a set with class numbers and one of prompts in P3's form; return their rows of YAML."""
    from datasets import ClassLabel, Dataset, Features, Value

    topics = Features({"text": Value("string"), "topic": ClassLabel(names=["sport", "art"])})
    for split, rows in (("train", 20), ("test", 6)):
        texts = [f"{WORDS[n]} {WORDS[-n]}" for n in range(rows)]
        numbers = [n % 2 for n in range(rows)]
        table = Dataset.from_dict({"text": texts, "topic": numbers}, features=topics)
        path = folder / "someone/news/data" / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        table.to_parquet(path)
    prompts = [
        {
            "inputs_pretokenized": f"{WORDS[n]} is {WORDS[-n]}?",
            "targets_pretokenized": "\n" + ("yes" if n % 2 else "no"),
            "answer_choices": ["yes", "no"],
        }
        for n in range(20)
    ]
    path = folder / "someone/p3/prompts/train-00000-of-00001.parquet"
    path.parent.mkdir(parents=True)
    Dataset.from_list(prompts).to_parquet(path)
    files = [{"split": "train", "path": "prompts/train-*"}]
    card = {"configs": [{"config_name": "prompts", "data_files": files}]}
    (folder / "someone/p3/README.md").write_text(f"---\n{yaml.safe_dump(card)}---\n")
    p3 = {"text": "inputs_pretokenized", "label": "targets_pretokenized"}
    return [
        {
            **{"name": "news", "hub": "someone/news", "train": "train", "dev": "test"},
            **{"text": "text", "label": "topic"},
        },
        {
            **{"name": "prompts", "hub": "someone/p3", "hub_config": "prompts", "train": "train"},
            **{"dev_fraction": 0.2, "options": "answer_choices", **p3},
        },
    ]


def test_a_run_reads_encoder_and_data_from_the_hub_and_a_second_one_does_without_it(tmp_path):
    write_encoder(tmp_path / "hub/models" / MINILM)
    write_glue(tmp_path / "hub/datasets/nyu-mll/glue")
    others = write_sets_of_others(tmp_path / "hub/datasets")
    (tmp_path / "run.yaml").write_text(
        yaml.safe_dump(
            {
                "run": {"dir": str(tmp_path / "run")},
                "data": {"cache": str(tmp_path / "cache")},
                "tasks": ["rte", "stsb", *others],
                "model": {"kind": "mt_tag", "encoder": "minilm"},
                "train": {"steps": 2, "batch_size": 8, "log_every": 1},
            }
        )
    )
    environ = {"HF_HOME": str(tmp_path / "home"), "HF_DATASETS_CACHE": str(tmp_path / "home/data")}
    online = {
        name: "0" for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
    }
    script = [ROOT / "train.py", tmp_path / "run.yaml"]
    with hub(tmp_path / "hub") as url:
        first = launch(script, 1, "python", {**environ, **online, "HF_ENDPOINT": url})
    assert first.returncode == 0, first.text
    assert f"encoder {MINILM}" in first.stdout and "out of reach" not in first.text
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert results["tasks"]["rte"]["examples"] == 8 and results["encoder"]["name"] == MINILM
    assert results["tasks"]["news"]["examples"] == 6
    assert results["tasks"]["prompts"] == {**results["tasks"]["prompts"], "examples": 4}
    described = json.loads((tmp_path / "run/model/config.json").read_text())
    labels = {task["name"]: task["labels"] for task in described["tasks"]}
    assert labels["news"] == ["art", "sport"]  # by name, as a user's own are
    offline = {name: "1" for name in online}
    again = launch([*script, f"run.dir={tmp_path}/again"], 1, "python", {**environ, **offline})
    assert again.returncode == 0 and "out of reach" not in again.text, again.text
