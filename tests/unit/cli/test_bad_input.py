"""What train.py and ds-moe-mtl say to a mistake: one line on stderr, status 2, nothing written."""

import csv
import shutil

import pytest
from safetensors.torch import load_file, save_file

from ds_moe_mtl.cli import main
from ds_moe_mtl.cli.train import main as train
from ds_moe_mtl.config import dump_config
from tests.support.encoders import tiny_encoder
from tests.support.tiny import tiny_config, write_tiny


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = write_tiny(tmp_path_factory.mktemp("tiny"))
    (folder / "run.yaml").write_text(dump_config(tiny_config(folder)))
    bad = folder / "bad"
    bad.mkdir()
    for name, rows in {
        "labels": [("red cat", "yes"), ("dog", "no")],
        "other": [("red cat", "yes"), ("dog", "maybe")],
        "blank": [(" ", "yes"), ("", "no")],
        "none": [],
        "nan": [("red cat", "yes"), ("dog", "nan")],
    }.items():
        with (bad / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *rows])
    write_bad_encoders(folder)
    return folder


def write_bad_encoders(folder):
    names = ("convbert", "prefix", "pointer", "small")
    for name in names:
        shutil.copytree(folder / "encoder", folder / name)
    tiny_encoder("convbert").save_pretrained(folder / "convbert")
    tiny_encoder("bert", vocab_size=20).save_pretrained(folder / "small")
    weights = folder / "prefix" / "model.safetensors"
    state = {f"module.{name}": value for name, value in load_file(weights).items()}
    save_file(state, weights, {"format": "pt"})
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    (folder / "pointer" / "model.safetensors").write_text(pointer)
    (folder / "lfs").mkdir()
    (folder / "lfs" / "config.json").write_text(pointer)


def task(folder, train_file, dev="null"):
    dev = dev if dev == "null" else folder / "bad" / f"{dev}.csv"
    path = folder / "bad" / f"{train_file}.csv"
    return f"tasks=[{{name: own, train: {path}, dev: {dev}, text: text, label: label}}]"


CASES = {
    "unknown task": (lambda f: ["tasks=[rtee]"], ["rtee", "rte"]),
    "an encoder that is none": (lambda f: ["model.encoder=no/such"], ["model.encoder", "no/such"]),
    "a folder that is no encoder": (lambda f: [f"model.encoder={f}/bad"], ["no config.json"]),
    "an encoder that attends to neighbours": (
        lambda f: [f"model.encoder={f}/convbert"],
        ["model.encoder", "ConvBertModel", "packed sequences differ by"],
    ),
    "weights behind a prefix": (
        lambda f: [f"model.encoder={f}/prefix"],
        ["lack its weights", "module.embeddings"],
    ),
    "a pointer in place of weights": (
        lambda f: [f"model.encoder={f}/pointer"],
        ["git-lfs pointer"],
    ),
    "a tokenizer larger than the encoder": (
        lambda f: [f"model.encoder={f}/small"],
        ["tokenizer", "embedding 20 rows"],
    ),
    "a task's own length": (
        lambda f: [
            task(f, "labels").replace(
                "label}", "label, max_length: 65, dev_fraction: 0.5, dev_by: text}"
            )
        ],
        ["'own'", "max_length = 65", "64"],
    ),
    "a pooler that is not there": (
        lambda f: ["model.pooler=true", "train.max_length=900"],
        ["train.max_length", "900"],
    ),
    "a label outside the set": (lambda f: [task(f, "labels", "other")], ["maybe", "row"]),
    "an empty text column": (lambda f: [task(f, "blank", "labels")], ["text", "blank.csv"]),
    "an empty split": (lambda f: [task(f, "none", "labels")], ["none.csv"]),
    "a missing file": (lambda f: [task(f, "nowhere")], ["nowhere.csv", "no such file"]),
    "a data root without the set": (
        lambda f: ["tasks=[rte]", f"data.root={f}/bad"],
        ["rte", "bad"],
    ),
    "more in a batch than it holds": (lambda f: ["train.accumulation=9"], ["train.batch_size"]),
    "an implementation that cannot run": (lambda f: ["moe.impl=cuda"], ["cuda"]),
    "fp16 on a CPU": (lambda f: ["train.precision=fp16"], ["fp16", "CPU"]),
    "16 bit at stage 0": (
        lambda f: ["train.precision=bf16", "deepspeed=ds_configs/deepspeed/zero0.json"],
        ["stage = 0"],
    ),
    "experts that cannot be shared": (
        lambda f: ["moe.ep_size=3"],
        ["moe.num_experts", "moe.ep_size"],
    ),
    "an ep_size that does not divide the world": (lambda f: ["moe.ep_size=2"], ["ep_size"]),
    "a run folder whose name is too long": (
        lambda f: [f"run.dir={f}/{'x' * 300}"],
        ["/xxx", "File name too long"],
    ),
    "a run folder below a file": (lambda f: [f"run.dir={f}/run.yaml/x"], ["Not a directory"]),
    "two YAMLs": (lambda f: [str(f / "run.yaml")], ["two YAML files"]),
    "an option": (lambda f: ["--fast"], ["--fast"]),
    "a key twice": (
        lambda f: ["train.lr=1e-4", "train.lr=1e-5"],
        ["train.lr is given twice (train.lr=1e-4, train.lr=1e-5)"],
    ),
    "a gate of no model": (
        lambda f: ["start.gate=same"],
        ["start.gate = same without start.model"],
    ),
    "a hook that is not there": (lambda f: ["hooks=json:Hook"], ["hooks: json:Hook", "no Hook"]),
    "a hook that is none": (
        lambda f: ["hooks=json:JSONDecoder"],
        ["json:JSONDecoder has no before_step", "ds_moe_mtl.training.hooks.Hook"],
    ),
    "a hook of no module": (lambda f: ["hooks=nosuch.module:Hook"], ["cannot be imported"]),
    "a class called nan": (
        lambda f: [task(f, "nan")],
        ["label 'nan'", "a class needs another name"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_one_line_and_status_2(tiny, tmp_path, capsys, name):
    arguments, words = CASES[name]
    run = tmp_path / "run"
    own = arguments(tiny)
    folder = [] if any(word.startswith("run.dir=") for word in own) else [f"run.dir={run}"]
    status = train([str(tiny / "run.yaml"), *folder, *own])
    errors = capsys.readouterr().err.strip().splitlines()
    assert status == 2, errors
    assert len(errors) == 1 and errors[0].startswith("error: "), errors
    assert all(word in errors[0] for word in words), errors[0]
    assert not (run / "checkpoints").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nonsense"], "unknown command 'nonsense'"),
        (["predict", "{tiny}", "--task", "x"], "is not a model folder"),
        (["evaluate", "{tiny}", "--limit", "0"], "argument --limit: 0; allowed: a whole number"),
        (["evaluate", "{tiny}"], "is not a model folder"),
        (["routes"], "the following arguments are required: folder"),
        (["evaluate", "{tiny}", "--data", "x"], "unrecognized arguments: --data x"),
        (["bench", "--round", "3"], "unrecognized arguments: --round"),
        (["crossfit", "tune", "direct", "--out", "x"], "arguments are required: --output"),
        (["plan", "{tiny}/run.yaml", "train.lr=1", "train.lr=2"], "train.lr is given twice"),
        (["study"], "no study is named; allowed: diverse, "),
        (["compare", "{tiny}/no", "--", "{tiny}"], "/no: no such run; allowed: "),
        (["predict", "{tiny}/lfs", "--task", "x"], "config.json is a git-lfs pointer"),
    ],
)
def test_commands_refuse_in_one_line(tiny, capsys, arguments, words):
    try:
        status = main([argument.replace("{tiny}", str(tiny)) for argument in arguments])
    except SystemExit as exit_:
        status = exit_.code
    errors = capsys.readouterr().err.strip().splitlines()
    assert status == 2 and len(errors) == 1 and words in errors[0], errors


@pytest.mark.parametrize(
    "name", ["train", "evaluate", "predict", "routes", "bench", "plan", "tasks"]
)
def test_every_command_has_help_with_an_example(capsys, name):
    try:
        assert main([name, "--help"]) == 0
    except SystemExit as exit_:
        assert exit_.code == 0
    assert "example" in capsys.readouterr().out


def test_tasks_lists_every_task_and_group(capsys):
    assert main(["tasks"]) == 0
    text = capsys.readouterr().out
    assert "rte " in text and "group glue:" in text and "wic" in text
