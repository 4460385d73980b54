"""The paper's tables as data: printed averages follow from printed rows; every run loads."""

import pytest

from ds_moe_mtl.config import UserError, load_config
from ds_moe_mtl.studies.tables.compare import averages
from ds_moe_mtl.studies.tables.schema import load_budgets, load_mixtures, load_table, table_names
from ds_moe_mtl.tasks import get_task, is_small
from ds_moe_mtl.tasks.metrics import average_half_up

TABLES = [f"table{n}" for n in range(1, 9)]


def printed(name):
    return {row.name: row for row in load_table(name).rows}


def test_all_eight_tables_are_there_and_another_is_told():
    assert table_names() == TABLES
    with pytest.raises(UserError, match="'table9'; allowed: table1, table2"):
        load_table("table9")


@pytest.mark.parametrize("name", TABLES)
def test_printed_averages_are_those_of_the_printed_rows_rounded_half_up(name):
    table = load_table(name)
    for row in table.rows:
        if row.paper is None or not table.averages:
            continue
        columns = [column.name for column in table.columns]
        found = averages(table, dict(zip(columns, row.paper, strict=True)))
        # Sums of decimals are not exact in binary; the half that is rounded up must be.
        found = {key: round(value, 6) for key, value in found.items()}
        assert average_half_up([found["small"]], table.digits) == row.small, row.name
        assert average_half_up([found["all"]], table.digits) == row.all, row.name


@pytest.mark.parametrize("name", TABLES)
def test_every_run_of_a_table_is_shipped_and_its_columns_are_known(name):
    table, mixtures = load_table(name), load_mixtures()
    for row in table.rows:
        assert (row.mixture is None) != (row.encoder is None), row.name
        assert row.paper is None or len(row.paper) == len(table.columns)
        if row.mixture is not None:
            mixture = mixtures[row.mixture]
            config = load_config(mixture.experiment, mixture.set)
            assert config.model.kind in ("mt_dense", "mt_switch", "mt_tag")
    for column in table.columns:
        assert get_task(column.task).name == column.task


def test_small_tasks_of_a_table_are_small_by_their_published_size():
    table = load_table("table5")
    small = {column.task for column in table.columns if is_small(get_task(column.task))}
    assert len(small) == 9 and "boolq" in small and "multirc" not in small


def test_a_mean_needs_all_its_columns():
    table = load_table("table1")
    values = dict.fromkeys([column.name for column in table.columns], 50.0)
    assert averages(table, {**values, "MNLI": None}) == {"small": 50.0, "all": None}


def test_the_oddities_that_are_told_are_in_the_tables():
    mini, base = printed("table1")["MT-TaG"], printed("table4")["BERT-Base, MT-TaG"]
    assert mini.paper[:2] == base.paper[:2] == (81.1, 90.7)
    uniform, six = printed("table7")["Uniform"], printed("table8")["6 experts"]
    assert uniform.small == six.small and abs(uniform.all - six.all) < 0.011
    assert max(row.paper[0] for row in printed("table6").values() if row.paper) < 93.3
    for name in ("table1", "table2", "table3", "table4", "table6", "table7", "table8"):
        assert load_table(name).oddities, name


def test_rows_that_two_tables_share_are_the_same():
    tables = [printed(name) for name in TABLES]
    assert tables[0]["MT-TaG"].paper == tables[3]["MiniLM, MT-TaG"].paper
    assert tables[3]["BERT-Large, MT-TaG"].paper == tables[6]["Natural"].paper
    assert tables[6]["Natural"].paper == tables[7]["4 experts"].paper
    glue = tables[0]["MT-Dense"].paper
    assert tables[2]["MT-Dense, GLUE"].paper == glue[:3] + glue[5:]


def test_the_papers_grid_is_the_budget_paper():
    paper = load_budgets()["paper"]
    assert paper.grid["train.lr"] == ("5e-6", "1e-5", "2e-5", "5e-5", "1e-4")
    assert paper.grid["train.epochs"] == ("5", "10", "15", "20", "25", "30") and paper.seeds == 3


@pytest.mark.parametrize("name", ["smoke", "cpu", "gpu", "paper"])
def test_a_budgets_overrides_make_a_configuration_of_every_stage_and_task(name):
    budget = load_budgets()[name]
    for mixture in load_mixtures().values():
        load_config(mixture.experiment, [*mixture.set, *budget.mixture])
    tasks = budget.tasks or [column.task for t in TABLES for column in load_table(t).columns]
    assert set(budget.by_task) <= set(tasks)
    for task in dict.fromkeys(tasks):
        lines = [f"tasks=[{task}]", *budget.finetune, *budget.by_task.get(task, ())]
        tuned, single = (load_config("finetune", [*lines, *more]) for more in ((), budget.single))
        assert tuned.train.select == single.train.select == "dev_score"
        assert (single.train.steps or 0) >= (tuned.train.steps or 0)


def test_mt_dnns_recipe_is_shipped():
    config = load_config("glue_mtdnn_bert_large")
    assert (config.mixture.batching, config.train.epochs) == ("homogeneous", 5)
    assert (config.train.lr, config.train.warmup, config.train.clip) == (5e-5, 0.1, 1.0)
    assert not config.train.loss_scaling and config.deepspeed.endswith("zero1_adamax.json")
