"""A run's YAML and overrides become one configuration, or one line that says why not."""

import os

import pytest
import yaml

from ds_moe_mtl.config import (
    DEFAULT_EXPERIMENT,
    OwnTask,
    UserError,
    differing_keys,
    dump_config,
    load_config,
)

SMALLEST = "run: {dir: runs/x}\ntasks: [rte]\ntrain:\n  steps: 10\n"


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a YAML into the current folder and return its name."""
    monkeypatch.chdir(tmp_path)

    def write(text, name="run.yaml"):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return name

    return write


def test_nothing_but_a_folder_tasks_and_a_length_is_required(write):
    config = load_config(write(SMALLEST))
    assert (config.run.dir, config.tasks, config.train.steps) == ("runs/x", ("rte",), 10)
    assert (config.model.kind, config.moe.num_experts, config.train.lr) == ("mt_tag", 4, 1e-4)


def test_no_yaml_means_the_embedded_experiment():
    assert load_config() == load_config(DEFAULT_EXPERIMENT)
    assert load_config().data.root == "embedded"


def test_a_shipped_experiment_is_found_by_its_bare_name_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config("glue_small_mttag_minilm").tasks == ("rte", "mrpc", "stsb", "cola")
    assert load_config("ds_configs/experiments/glue_mttag_minilm.yaml").tasks == ("glue",)


def test_exponents_without_a_point_are_numbers_and_yes_is_text(write):
    config = load_config(write(SMALLEST + "  lr: 5e-5\nmodel: {encoder: yes}\n"))
    assert config.train.lr == 5e-5
    assert config.model.encoder == "yes"


def test_a_length_on_the_command_line_replaces_the_yamls_other_one(write):
    epochs = write(SMALLEST.replace("steps: 10", "epochs: 3"), "epochs.yaml")
    for name, override, found in (
        (write(SMALLEST), "train.epochs=2", (None, 2.0)),
        (epochs, "train.steps=6", (6, None)),
        (epochs, "train.steps=null", (None, 3.0)),
    ):
        train = load_config(name, [override]).train
        assert (train.steps, train.epochs) == found
    with pytest.raises(UserError, match="are both set"):
        load_config(epochs, ["train.steps=6", "train.epochs=2"])
    with pytest.raises(UserError, match="are both set"):
        load_config(write(SMALLEST + "  epochs: 2\n"))


def test_own_data_is_evaluated_once_a_pass_unless_the_yaml_says(write):
    own = "tasks=[{name: x, train: run.yaml, text: t, label: l}]"
    name = write(SMALLEST)
    assert [load_config(name, each).eval_every for each in ([], [own])] == [0, "epoch"]
    assert load_config(name, [own, "train.eval_every=0"]).eval_every == 0
    with pytest.raises(UserError, match="train.select = dev_loss without train.eval_every"):
        load_config(name, ["train.select=dev_loss"])
    assert load_config(name, [own, "train.select=dev_loss"]).train.select == "dev_loss"


def test_overrides_take_yaml_values_lists_and_items(write):
    overrides = [
        "train.lr=2e-5",
        "train.steps=null",
        "train.epochs=3",
        "tasks=[rte, cola]",
        "tasks.1=mrpc",
        "train.betas.1=0.98",
        "model.pooler=true",
        "data.root=embedded",
    ]
    config = load_config(write(SMALLEST), overrides)
    assert config.tasks == ("rte", "mrpc")
    assert (config.train.lr, config.train.steps, config.train.epochs) == (2e-5, None, 3)
    assert config.train.betas == (0.9, 0.98)
    assert config.model.pooler is True


def test_the_last_of_two_overrides_of_a_key_holds(write):
    assert load_config(write(SMALLEST), ["train.steps=5", "train.steps=7"]).train.steps == 7


def test_an_own_task_is_one_row_and_its_files_become_absolute(write, tmp_path):
    (tmp_path / "a.csv").write_text("t,l\nx,y\n")
    row = "{name: mine, train: a.csv, text: t, label: l}"
    (task,) = load_config(write(SMALLEST.replace("[rte]", f"[{row}]"))).tasks
    assert isinstance(task, OwnTask)
    assert (task.train, task.text, task.dev_fraction) == (str(tmp_path / "a.csv"), ("t",), 0.1)


def test_a_tilde_is_a_home_folder_wherever_a_path_stands(write, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "data").mkdir()
    paths = {"run.dir": "~/x", "run.resume": "~/x/y", "data.cache": "~/c", "model.encoder": "~/e"}
    paths["data.root"] = "~/data"
    config = load_config(write(SMALLEST), [f"{key}={path}" for key, path in paths.items()])
    for key, path in paths.items():
        section, name = key.split(".")
        assert getattr(getattr(config, section), name) == path.replace("~", str(tmp_path))


def test_files_are_looked_for_here_then_beside_the_yaml_then_in_the_repository(
    write, tmp_path, monkeypatch
):
    there = tmp_path / "there"
    there.mkdir()
    (there / "mine.json").write_text("{}")
    text = SMALLEST + "deepspeed: mine.json\n"
    yaml_path = write(text, "there/run.yaml")
    assert load_config(yaml_path).deepspeed == str(there / "mine.json")
    (tmp_path / "mine.json").write_text("{}")
    assert load_config(yaml_path).deepspeed == str(tmp_path / "mine.json")
    assert os.path.isabs(load_config(write(SMALLEST)).deepspeed)


def test_a_finished_run_loads_where_its_files_are_gone(write):
    text = SMALLEST + "deepspeed: /gone/ds.json\ndata: {root: /gone}\n"
    config = load_config(write(text), check_files=False)
    assert (config.deepspeed, config.data.root) == ("/gone/ds.json", "/gone")


def test_the_configuration_cannot_be_changed_after_it_was_checked(write):
    config = load_config(write(SMALLEST))
    with pytest.raises(ValueError, match="frozen"):
        config.train.steps = 20


def test_a_dumped_configuration_loads_to_itself(write):
    config = load_config(write(SMALLEST), ["train.betas=[0.8, 0.9]", "data.root=embedded"])
    assert load_config(write(dump_config(config), "again.yaml")) == config
    assert "keep_checkpoints" in yaml.safe_load(dump_config(config))["train"]


def test_differing_keys_are_named_in_dotted_form(write):
    one = load_config(write(SMALLEST))
    other = load_config(write(SMALLEST), ["train.lr=1e-5", "moe.num_experts=8", "tasks=[cola]"])
    assert differing_keys(one, other) == ["tasks", "moe.num_experts", "train.lr"]
    assert differing_keys(one, one) == []


def test_the_default_list_of_an_index_is_the_schemas(write):
    with pytest.raises(UserError, match="train.betas.2 is no item of train.betas"):
        load_config(write(SMALLEST), ["train.betas.2=0.5"])
