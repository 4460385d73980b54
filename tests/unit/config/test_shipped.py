"""What is shipped in ds_configs loads, resolves, and is described as it is."""

import re

import pytest
import yaml

from ds_moe_mtl.config import load_config, resolve_deepspeed
from ds_moe_mtl.config.complaint import known_keys
from ds_moe_mtl.config.load import EXPERIMENTS
from ds_moe_mtl.config.schema import RunConfig
from ds_moe_mtl.config.task_rows import KnownTask, OwnTask
from ds_moe_mtl.tasks.metrics import OWN_KINDS, metrics_of

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
    text = text.partition("## Rows of tasks")[0]
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


def test_the_list_of_rows_keys_is_the_schemas_and_that_of_metrics_the_codes():
    text = (EXPERIMENTS.parent / "README.md").read_text()
    rows = text.partition("## Rows of tasks")[2].partition("### Kinds")[0]
    listed = [line.split("|")[1:4] for line in rows.splitlines() if line.startswith("| `")]
    names = {name: cell for cell, *_ in listed for name in re.findall(r"`(\w+)`", cell)}
    assert names.keys() == OwnTask.model_fields.keys()
    starred = {name for name, cell in names.items() if "*" in cell}
    assert starred == KnownTask.model_fields.keys()
    for cell, default, _ in listed:
        for name in re.findall(r"`(\w+)`", cell):
            field = OwnTask.model_fields[name]
            value = "required" if field.is_required() else field.default
            assert yaml.safe_load(default.strip()) == value, name
    metrics = text.partition("## Metrics")[2]
    for kind in OWN_KINDS:
        (line,) = [line for line in metrics.splitlines() if line.startswith(f"| {kind} ")]
        assert all(re.search(rf"\b{metric}\b", line) for metric in metrics_of(kind)), kind
