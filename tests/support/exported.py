"""A model folder with tasks of every shape and random weights, as a trained run leaves one."""

import json
from pathlib import Path

import torch

from ds_moe_mtl.models.description import save_folder
from ds_moe_mtl.training.model_files import model_files
from ds_moe_mtl.training.network import new_network
from ds_moe_mtl.training.plan import make_plan, task_specs
from tests.support.families import KINDS, tiny
from tests.support.shapes import write_shapes
from tests.support.tiny import differ_experts, spread_gates, tiny_config, write_tiny


def write_source(folder: Path, kind: str = "bert") -> Path:
    """Write a tiny encoder and six tasks into `folder`, one with a prefix, and return it.

    kind: a row of tests.support.families, over the tokenizer of a tiny BERT.
    """
    write_tiny(folder, layers=3)
    if kind != "bert":
        ids = json.loads((folder / "encoder/config.json").read_text())
        own = {name: ids[name] for name in ("vocab_size", "pad_token_id")}
        if kind == "mpnet":
            own["pad_token_id"] = 1  # its code knows no other
        longest = KINDS[kind].more.get("max_position_embeddings", 66)
        encoder = tiny(kind, **own, max_position_embeddings=longest)
        encoder.save_pretrained(folder / "encoder")
    tasks = json.loads((folder / "tasks.json").read_text())
    if len(tasks) == 3:
        tasks[0]["prefix"] = "the big "
        tasks += write_shapes(folder / "shapes")
        (folder / "tasks.json").write_text(json.dumps(tasks))
    return folder


def write_model(source: Path, output: Path, zero_gates: bool = False, **sections: dict) -> Path:
    """Write a model over what `write_source` wrote: experts that differ, gates with clear margins.

    zero_gates: every token takes the first expert. sections: of the configuration.
    """
    plan = make_plan(config := tiny_config(source, **sections), task_specs(config), lambda line: 0)
    torch.manual_seed(0)
    network, sha256 = new_network(plan)
    spread_gates(network, std=0.0 if zero_gates else 1.0)
    differ_experts(network)
    for head in network.heads.linears:
        torch.nn.init.normal_(head.weight, std=0.5)
        torch.nn.init.normal_(head.bias, std=0.5)
    files = model_files(network, plan, sha256)
    save_folder(output, files.description, network.state_dict(), files.tokenizer)
    return output
