"""Every mistake is one line: the place, the key, the bad value, and what is allowed."""

import pytest

from ds_moe_mtl.config import UserError, load_config

GOOD = """\
run:
  dir: runs/x
tasks: [rte]
moe:
  num_experts: 4
train:
  steps: 10
"""
TASKS = (
    "a list of 1 or more, each a name of letters, digits and _+- or a section with the keys name, "
    "hub, hub_config, train, dev, dev_fraction, dev_by, test, text, label, separate, kind, labels, "
    "separator, options, answer_start, longest_answer, metric, metrics, max_length, prefix, "
    "class_weights, loss_weight, sampling_weight, threshold or a section with the keys name, "
    "metric, metrics, max_length, prefix, class_weights, loss_weight, sampling_weight"
)
LINE = "command line: "
SECTIONS = "run, data, tasks, mixture, model, start, moe, train, router, deepspeed, track, hooks"

BAD_OVERRIDES = {
    "train.lrr=1": LINE + "unknown key train.lrr; nearest known key: train.lr",
    "lr=1": LINE + "unknown key lr; nearest known key: train.lr",
    "train.num_experts=1": (
        LINE + "unknown key train.num_experts; nearest known key: moe.num_experts"
    ),
    "trian.lr=1": LINE + "unknown key trian; nearest known key: train",
    "zzz.a=1": LINE + f"unknown key zzz; the sections are {SECTIONS}",
    "run.own=1": LINE
    + "unknown key run.own; the keys of run are dir, seed, resume, extend, elastic",
    "run.qqq=1": LINE
    + "unknown key run.qqq; the keys of run are dir, seed, resume, extend, elastic",
    "train.lr=fast": LINE + "train.lr = 'fast'; allowed: a number above 0",
    "train.lr=0": LINE + "train.lr = 0; allowed: a number above 0",
    "train.lr=.inf": LINE + "train.lr = inf; allowed: a number above 0",
    "train.lr=true": LINE + "train.lr = True; allowed: a number above 0",
    "train.lr=[1, 2]": LINE + "train.lr = [1, 2]; allowed: a number above 0",
    "train.lr.x=1": LINE + "train.lr = {'x': 1}; allowed: a number above 0",
    "train.batch_size=1.5": (
        LINE + "train.batch_size = 1.5; allowed: a whole number at least 1 and at most 1000000"
    ),
    "train.precision=bf8": LINE + "train.precision = 'bf8'; allowed: one of fp32, bf16, fp16",
    "model.pooler=yes": LINE + "model.pooler = 'yes'; allowed: true or false",
    "model.dropout=1": LINE + "model.dropout = 1; allowed: a number at least 0 and below 1",
    "train.betas=[1, 2]": (
        LINE + "train.betas.0 = 1; allowed: a number at least 0 and below 1 (and 1 more)"
    ),
    "train.betas=0.9": (
        LINE + "train.betas = 0.9; allowed: a list of 2, each a number at least 0 and below 1"
    ),
    "run.dir=": LINE + "run.dir = None; allowed: text",
    "tasks=[]": LINE + f"tasks = (); allowed: {TASKS}",
    "tasks=rte": LINE + f"tasks = 'rte'; allowed: {TASKS}",
    "tasks=[a b]": LINE + f"tasks.0 = 'a b'; allowed: {TASKS.partition('each ')[2]}",
    "train.batch_size.0=1": LINE
    + "train.batch_size = {'0': 1}; allowed: a whole number at least 1 and at most 1000000",
    "tasks.0.train=a.csv": LINE + "tasks.0.train: tasks.0 = 'rte' has no keys of its own",
    "tasks=[{name: x, train: a.csv, text: t}]": LINE
    + "tasks.0.label is missing; allowed: text or a list of 2 or more, each text",
    "tasks=[{name: x, train: a.csv, text: t, lable: l}]": (
        LINE + "unknown key tasks.0.lable; nearest known key: tasks.0.label (and 1 more)"
    ),
    "tasks=[{name: x, train: a.csv, text: t, label: l}]": (
        LINE + "tasks.0.train = 'a.csv': no such file or folder; "
        "allowed: a file: csv, tsv, jsonl, parquet, conll or bio"
    ),
    "tasks.3=cola": (
        LINE + "tasks.3 is no item of tasks; allowed: tasks.0 to tasks.0, or the whole list, "
        "as in tasks=[...]"
    ),
    "tasks=[rte, rte]": LINE + "tasks names 'rte' twice; allowed: each task once",
    "train.eval_every=epochs": (
        LINE + "train.eval_every = 'epochs'; allowed: a whole number at least 0 or epoch or null"
    ),
    "train.eval_every=-1": (
        LINE + "train.eval_every = -1; allowed: a whole number at least 0 or epoch or null"
    ),
    "train.batch_size=2000000": (
        LINE + "train.batch_size = 2000000; allowed: a whole number at least 1 and at most 1000000"
    ),
    "run.seed=4294967296": (
        LINE + "run.seed = 4294967296; allowed: a whole number at least 0 and at most 4294967295"
    ),
    "train.threads=100000": (
        LINE + "train.threads = 100000; allowed: a whole number at least 1 and at most 1024 or null"
    ),
    "mixture.temperature=1e-300": (
        LINE + "mixture.temperature = 1e-300; allowed: a number at least 0.1"
    ),
    "train.lr=-1": LINE + "train.lr = -1; allowed: a number above 0",
    "train.lr=.nan": LINE + "train.lr = nan; allowed: a number above 0",
    "train.steps=0": LINE + "train.steps = 0; allowed: a whole number at least 1 or null",
    "tasks=[{name: x, train: folder.csv, text: t, label: l}]": (
        LINE + "tasks.0.train = 'folder.csv': not a file; "
        "allowed: a file: csv, tsv, jsonl, parquet, conll or bio"
    ),
    "run.dir=~nobody_at_all/x": (LINE + "run.dir = '~nobody_at_all/x': no such home"),
    "train.steps=null": LINE + "train.steps and train.epochs are both unset; "
    "set exactly one of them",
    "train.warmup=11": "command line and run.yaml:7: train.warmup = 11 is longer than "
    "train.steps = 10",
    "train.warmup=1.5": LINE + "train.warmup = 1.5; allowed: a share of the steps below 1, "
    "or a whole number of steps",
    "train.accumulation=200": LINE + "train.batch_size = 128 is smaller than "
    "train.accumulation = 200; allowed: at least one example each",
    "moe.ep_size=3": "command line and run.yaml:5: moe.num_experts = 4 is not divisible "
    "by moe.ep_size = 3; "
    "allowed: an ep_size that divides num_experts",
    "moe.exchange=hierarchical": LINE + "moe.exchange = hierarchical with moe.ep_size = 1: "
    "rows are gathered where several hosts have several ranks each; allowed: flat, or an ep_size "
    "from 4 on",
    "deepspeed=no.json": LINE + "deepspeed = 'no.json': no such file or folder; "
    "allowed: a file, DeepSpeed's JSON",
    "data.root=run.yaml": LINE + "data.root = 'run.yaml': not a folder; "
    "allowed: a folder, embedded, or null for the Hub",
    "data.root=~nobody_at_all/x": LINE + "data.root = '~nobody_at_all/x': no such file or folder; "
    "allowed: a folder, embedded, or null for the Hub",
    "data.root=nowhere": LINE + "data.root = 'nowhere': no such file or folder; "
    "allowed: a folder, embedded, or null for the Hub",
    "train.lr": LINE + "'train.lr' sets nothing; allowed: section.key=value, as in train.lr=1e-4",
    "train.=1": LINE + "'train.=1' names no key; allowed: section.key=value",
    "=1": LINE + "'=1' names no key; allowed: section.key=value",
    "train={}": LINE + "train is a section; set one of its keys, as in train.steps=...",
    "train.lr=[": "command line, train.lr: not valid YAML: expected the node content, "
    "but found '<stream end>'",
}

BAD_FILES = {
    "": f"run.yaml: is empty; allowed: the sections {SECTIONS}",
    "# only a comment\n": f"run.yaml: is empty; allowed: the sections {SECTIONS}",
    "- a\n- b\n": f"run.yaml: is not a mapping of sections; allowed: the sections {SECTIONS}",
    GOOD + "  lr: 1\n  lr: 2\n": "run.yaml:9: train.lr is given twice; the first is on line 8",
    GOOD + "  lr: fast\n": "run.yaml:8: train.lr = 'fast'; allowed: a number above 0",
    GOOD + "  lrr: 1\n": "run.yaml:8: unknown key train.lrr; nearest known key: train.lr",
    GOOD + "\ttabs: 1\n": (
        "run.yaml:8: not valid YAML: found character '\\t' that cannot start any token"
    ),
    GOOD + "? [a]\n: 1\n": "run.yaml:8: a key must be plain text",
    GOOD + "model: !!python/object:os.system {}\n": (
        "run.yaml:8: not valid YAML: could not determine a constructor for the tag "
        "'tag:yaml.org,2002:python/object:os.system'"
    ),
    GOOD + "model: &a {kind: *a}\n": "run.yaml:8: nested too deeply or too large for a run",
    GOOD + "---\n": "run.yaml:8: not valid YAML: but found another document",
    "tasks: [rte]\ntrain: {steps: 1}\n": (
        "run.yaml: run is missing; allowed: a section with the keys dir, seed, resume, extend, "
        "elastic"
    ),
    "run:\ntasks: [rte]\ntrain: {steps: 1}\n": (
        "run.yaml:1: run = None; allowed: a section with the keys dir, seed, resume, extend, "
        "elastic"
    ),
}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(GOOD)
    (tmp_path / "folder.csv").mkdir()
    return tmp_path


@pytest.mark.parametrize("override", BAD_OVERRIDES)
def test_a_bad_override_is_told_in_one_line(override):
    with pytest.raises(UserError) as error:
        load_config("run.yaml", [override])
    assert str(error.value) == BAD_OVERRIDES[override]


@pytest.mark.parametrize("text", BAD_FILES)
def test_a_bad_file_is_told_in_one_line(here, text):
    (here / "run.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        load_config("run.yaml")
    assert str(error.value) == BAD_FILES[text]


@pytest.mark.parametrize(
    "path, line",
    {
        "glue_small_mtag_minilm.yaml": "glue_small_mtag_minilm.yaml: no such file; nearest shipped "
        "one: ds_configs/experiments/glue_small_mttag_minilm.yaml",
        "qqqqqqqq": "qqqqqqqq: no such file; allowed: the YAML of a run",
        "x" * 5000: "x" * 5000 + ": no such file; allowed: the YAML of a run",
        ".": ".: is a folder, not a file; allowed: the YAML of a run",
        "bytes.yaml": "bytes.yaml: not a text file (UTF-8)",
    }.items(),
)
def test_a_path_that_is_no_yaml_is_told_in_one_line(here, path, line):
    (here / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError) as error:
        load_config(path)
    assert str(error.value) == line
