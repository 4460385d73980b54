"""A tiny real encoder, tiny real data and a run over them, for tests of the whole path."""

import csv
import json
import random
from pathlib import Path

import torch
from torch import nn

from ds_moe_mtl.config import RunConfig
from ds_moe_mtl.models.token_level.direct_calls import routed_ffns

COLOURS = ["red", "green", "blue"]
WORDS = [
    *COLOURS,
    *("one", "two", "three", "four", "five", "cat", "dog", "bird", "fish", "runs", "sleeps"),
    *("sings", "flies", "the", "a", "is", "not", "was", "and", "big", "small", "old", "new"),
    *("here", "there", "up", "down", "left", "right"),
]
GATE_STD = 0.3
BERT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
"""The shape of a tiny BERT, for transformers' configuration."""


def write_encoder(folder: Path, layers: int = 2, seed: int = 0) -> Path:
    """Write a randomly initialised BERT of width 32 with a word tokenizer; return its folder."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join([*specials, *WORDS]) + "\n")
    tokenizer = BertTokenizerFast(str(vocabulary), model_max_length=64)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(specials) + len(WORDS),
        max_position_embeddings=64,
        initializer_range=0.1,
        **{**BERT, "num_hidden_layers": layers},
    )
    BertModel(config).save_pretrained(folder)
    return folder


def write_data(folder: Path, rows: int = 60, seed: int = 0) -> list[dict]:
    """Write three small tasks as CSV files and return their rows for `tasks`."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(seed)
    tasks = []
    for name, columns, kind in (
        ("colour", ("text",), "classification"),
        ("same", ("first", "second"), "classification"),
        ("amount", ("first", "second"), "regression"),
    ):
        path = folder / f"{name}.csv"
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([*columns, "label"])
            for _ in range(rows):
                texts = [" ".join(draw.choices(WORDS, k=draw.randint(2, 14))) for _ in columns]
                writer.writerow([*texts, _label(name, texts)])
        tasks.append(
            {
                "name": name,
                "train": str(path),
                "text": list(columns),
                "label": "label",
                "kind": kind,
                "dev_fraction": 0.3,
            }
        )
    return tasks


def _label(name: str, texts: list[str]) -> str | float:
    words = [set(text.split()) for text in texts]
    if name == "colour":
        return "coloured" if words[0] & set(COLOURS) else "plain"
    shared = len(words[0] & words[1])
    return round(shared / 3, 3) if name == "amount" else ("yes" if shared else "no")


def write_tiny(folder: Path, layers: int = 2) -> Path:
    """Write a tiny encoder and tiny data into `folder`, once, and return it."""
    if not (folder / "tasks.json").exists():
        write_encoder(folder / "encoder", layers)
        (folder / "tasks.json").write_text(json.dumps(write_data(folder / "data")))
    return folder


def tiny_config(folder: Path, **sections: dict) -> RunConfig:
    """Return a run over what `write_tiny` wrote, dropout 0, fp32; sections override it."""
    encoder = folder / "encoder"
    values = {
        "run": {"dir": str(folder / "run")},
        "data": {"cache": str(folder / "cache")},
        "tasks": json.loads((folder / "tasks.json").read_text()),
        "mixture": {},
        "model": {"kind": "mt_tag", "encoder": str(encoder), "dropout": 0.0},
        "moe": {"gate_scale": "preserve"},
        "train": {"steps": 4, "batch_size": 6, "lr": 1e-3, "log_every": 1},
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section} if isinstance(section, dict) else section
    return RunConfig.model_validate(values)


def spread_gates(network: nn.Module, std: float = GATE_STD, seed: int = 1) -> None:
    """Draw the gates with a large spread: skewed loads, clear margins between experts."""
    generator = torch.Generator().manual_seed(seed)
    for ffn in routed_ffns(network):
        for name, weight in ffn.moe.gate.wg.named_parameters():
            spread = 8.0 if name == "vectors" else std
            weight.data = spread * torch.randn(weight.shape, generator=generator).to(weight)


def differ_experts(network: nn.Module, std: float = 0.05, seed: int = 2) -> None:
    """Make the copied experts differ, so that a wrong route shows in the output."""
    generator = torch.Generator().manual_seed(seed)
    for ffn in routed_ffns(network):
        for parameter in ffn.moe.experts.parameters():
            parameter.data += std * torch.randn(parameter.shape, generator=generator).to(parameter)
