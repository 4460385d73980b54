"""What is shipped in ds_configs loads, resolves, and is described as it is."""

import re

import pytest
import yaml

from ds_moe_mtl.config import load_config, resolve_deepspeed
from ds_moe_mtl.config.complaint import known_keys
from ds_moe_mtl.config.load import EXPERIMENTS
from ds_moe_mtl.config.schema import RunConfig

SHIPPED = sorted(path.stem for path in EXPERIMENTS.glob("*.yaml"))
NAMED = {
    "embedded_mttag_minilm",
    *(f"glue_small_{kind}_minilm" for kind in ("single", "dense", "switch", "mttag")),
    *(
        f"glue_{kind}_{encoder}"
        for kind in ("dense", "switch", "mttag")
        for encoder in ("minilm", "bert_base", "bert_large")
    ),
    "gluepp_mttag_bert_large",
    "crossfit_router_bart",
    "crossfit_router_minilm",
    "own_files",
}


def test_every_experiment_of_the_design_is_there():
    assert set(SHIPPED) >= NAMED


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_experiment_loads_and_resolves_on_two_cpu_ranks(name):
    config = load_config(EXPERIMENTS / f"{name}.yaml")
    assert config.run.dir == f"runs/{name}"
    native = resolve_deepspeed(config, world_size=2)
    assert native["train_batch_size"] == config.train.batch_size


def test_the_small_sisters_differ_in_the_model_alone():
    sisters = [
        load_config(f"glue_small_{k}_minilm") for k in ("single", "dense", "switch", "mttag")
    ]
    kinds = [sister.model.kind for sister in sisters]
    assert kinds == ["single", "mt_dense", "mt_switch", "mt_tag"]
    for sister in sisters:
        assert (sister.tasks, sister.train) == (sisters[0].tasks, sisters[0].train)
        assert (sister.mixture, sister.run.seed) == (sisters[0].mixture, sisters[0].run.seed)


def test_the_readme_describes_every_key_with_its_default(root):
    text = (root / "ds_configs" / "README.md").read_text(encoding="utf-8").partition("## Keys")[2]
    described = dict(re.findall(r"^\| `([\w.]+)` \| (.*?) \|", text, re.MULTILINE))
    sections = {"run", "data", "mixture", "model", "start", "moe", "router", "train"}
    keys = [key for key in known_keys(RunConfig.model_json_schema()) if key not in sections]
    assert list(described) == keys
    defaults = {key: default_of(key) for key in keys}
    assert {key: yaml.safe_load(text.strip("`")) for key, text in described.items()} == defaults


def default_of(key):
    """Return a key's default as YAML reads it; "required" where there is none."""
    section, _, leaf = key.partition(".")
    field = RunConfig.model_fields[section]
    if leaf:
        field = field.annotation.model_fields[leaf]
    if field.is_required():
        return "required"
    return list(field.default) if isinstance(field.default, tuple) else field.default
