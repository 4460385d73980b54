"""The paper's tables and what it takes to run them, as data: ds_configs/reproduce/*.yaml."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field, TypeAdapter

from ds_moe_mtl.config.document import parse_yaml
from ds_moe_mtl.config.errors import UserError
from ds_moe_mtl.config.files import REPOSITORY, displayed, read_text
from ds_moe_mtl.config.section import Count, Section, Text

REPRODUCE = REPOSITORY / "ds_configs" / "reproduce"

Lines = Annotated[
    tuple[Text, ...], BeforeValidator(lambda v: tuple(v) if isinstance(v, list) else v)
]


class Column(Section):
    """A task that rows are scored on, in full or from a sample of its training examples."""

    name: Text
    task: Text
    sample: Annotated[float, Field(gt=0, lt=1)] | None = None
    gate: Text | None = None  # that mt_tag models begin with; null: the task's own


class Row(Section):
    """A system: a mixture model (or an encoder alone), and what the paper prints of it."""

    name: Text
    mixture: Text | None = None
    encoder: Text | None = None
    gate: Text | None = None
    set: Lines = ()  # overrides of its fine-tuning
    paper: (
        Annotated[
            tuple[float | None, ...],
            BeforeValidator(lambda v: tuple(v) if isinstance(v, list) else v),
        ]
        | None
    ) = None
    small: float | None = None
    all: float | None = None
    over: Text | None = None  # the row that its averages are compared with; null: the first


class Table(Section):
    """One table of the paper."""

    title: Text
    source: Text
    digits: Count  # of the printed averages
    columns: Annotated[tuple[Column, ...], BeforeValidator(tuple)]
    averages: bool
    stand_in: Mapping[str, Text] = {}  # by budget: an encoder in place of the rows' own
    seeds: Mapping[str, Count] = {}  # by budget, in place of its own
    rows: Annotated[tuple[Row, ...], BeforeValidator(tuple)]
    oddities: Lines


class Budget(Section):
    """What is spent on each run of a table; see budgets.yaml."""

    about: Text
    tasks: Lines | None = None
    mixture_tasks: Lines | None = None
    mixture: Lines = ()
    finetune: Lines = ()
    single: Lines = ()
    by_task: Mapping[str, Lines] = {}
    seeds: Count = 1
    grid: Mapping[str, Lines] = {}


class Mixture(Section):
    """A stage-one run: a shipped experiment and its overrides."""

    experiment: Text
    set: Lines = ()


def table_names() -> list[str]:
    """Return the names of the tables that are shipped."""
    return sorted(path.stem for path in REPRODUCE.glob("table*.yaml"))


def load_table(name: str) -> Table:
    """Return a table by name. Raises UserError for one that is not shipped."""
    if name not in table_names():
        raise UserError(f"unknown table {name!r}; allowed: {', '.join(table_names())}")
    return Table.model_validate(_values(REPRODUCE / f"{name}.yaml"))


def load_budgets() -> dict[str, Budget]:
    """Return the budgets by name."""
    return TypeAdapter(dict[str, Budget]).validate_python(_values(REPRODUCE / "budgets.yaml"))


def load_mixtures() -> dict[str, Mixture]:
    """Return the stage-one runs by name."""
    return TypeAdapter(dict[str, Mixture]).validate_python(_values(REPRODUCE / "mixtures.yaml"))


def _values(file: Path) -> dict:
    return parse_yaml(read_text(file), displayed(file)).values
