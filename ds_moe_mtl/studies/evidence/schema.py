"""A study as data, ds_configs/studies/*.yaml: which systems are compared on what, in stages."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field, ValidationError
from pydantic import model_validator as _model_validator

from ds_moe_mtl.config.complaint import complaint
from ds_moe_mtl.config.document import parse_yaml
from ds_moe_mtl.config.errors import UserError
from ds_moe_mtl.config.files import REPOSITORY, displayed, locate, read_text
from ds_moe_mtl.config.section import CountOrZero, Name, Section, Seed, Text

STUDIES = REPOSITORY / "ds_configs" / "studies"

_tuple = BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)
Lines = Annotated[tuple[Text, ...], _tuple]
SomeLines = Annotated[tuple[Text, ...], Field(min_length=1), _tuple]


class Stage(Section):
    """Runs that are planned together: every system, data variant, point of the grid and seed."""

    seeds: Annotated[tuple[Seed, ...], Field(min_length=1), _tuple]
    grid: Mapping[str, SomeLines] = {}  # values by dotted key
    # The earlier stage whose best point each system takes; one that it does not have takes none.
    tuned: Text | None = None
    systems: SomeLines | None = None  # null: all
    best: CountOrZero = 0  # and so many others, the best by mean score in the stage `of`
    of: Text | None = None
    data: SomeLines | None = None  # null: all variants
    set: Lines = ()  # overrides of this stage's runs; they replace those of data and system
    # An earlier stage, with whose models the runs begin: each system and seed with its own, of the
    # data variant of the same name or of the only one there. A system that the earlier stage does
    # not have begins with the encoder.
    start: Text | None = None


class Study(Section):
    """What ds-moe-mtl study runs: overrides over one experiment, by system and by data variant."""

    about: Text
    experiment: Text  # a YAML of a run
    set: Lines = ()  # overrides of every run
    # Overrides by name; an item that is the name of an earlier system stands for its overrides.
    systems: Mapping[Name, Lines]
    data: Mapping[Name, Lines] = {"all": ()}
    baseline: Text  # the system that the others are compared with
    stages: Annotated[Mapping[Name, Stage], Field(min_length=1)]
    output: Text | None = None  # null: docs/evidence/<name>.jsonl

    @_model_validator(mode="after")
    def _names_are_known(self) -> "Study":
        _known("baseline", (self.baseline,), self.systems)
        earlier: list[str] = []
        for name, stage in self.stages.items():
            where = f"stages.{name}"
            _known(f"{where}.systems", stage.systems or (), self.systems)
            _known(f"{where}.data", stage.data or (), self.data)
            for key in ("seeds", "systems", "data"):
                values = getattr(stage, key) or ()
                if len(set(values)) < len(values):
                    raise ValueError(f"{where}.{key} has one twice; allowed: each once")
            for key, values in stage.grid.items():
                if len(set(values)) < len(values):
                    raise ValueError(f"{where}.grid.{key} has one twice; allowed: each once")
            for key in ("tuned", "of", "start"):
                if getattr(stage, key) is not None:
                    _known(f"{where}.{key}", (getattr(stage, key),), earlier)
            if (stage.of is None) != (stage.best == 0):
                raise ValueError(f"{where}: best and of go together")
            if stage.best and stage.systems is None:
                raise ValueError(f"{where}: best = {stage.best} needs systems, those beside them")
            if stage.grid and stage.tuned is not None:
                raise ValueError(f"{where}: grid and tuned; allowed: one of them")
            for key in ("tuned", "of"):
                there = getattr(stage, key)
                if there is not None:
                    variants = self.variants(self.stages[there])
                    _known(f"{where}.data ({key}: {there})", self.variants(stage), variants)
            tuned = self.stages.get(stage.tuned)
            if tuned is not None and (tuned.best or not tuned.grid):
                what = "only the best systems of another stage" if tuned.best else "no grid"
                raise ValueError(
                    f"{where}.tuned: {stage.tuned} has {what}; allowed: a stage with a grid, "
                    f"without best"
                )
            self._check_keys(where, stage)
            if stage.start is not None:
                self._check_start(where, stage, self.stages[stage.start])
            earlier.append(name)
        for name in self.systems:
            self.overrides_of(name)
        return self

    def _check_start(self, where: str, stage: Stage, begun: Stage) -> None:
        """Raise ValueError where a stage's runs do not each have one model to begin with."""
        its = f"(start: {stage.start})"
        if begun.grid:
            raise ValueError(f"{where}.start: {stage.start} has a grid; allowed: a stage without")
        _known(f"{where}.seeds {its}", stage.seeds, begun.seeds)
        if len(self.variants(begun)) > 1:
            _known(f"{where}.data {its}", self.variants(stage), self.variants(begun))

    def _check_keys(self, where: str, stage: Stage) -> None:
        """Raise ValueError for keys of a stage's runs that the study itself sets."""
        own = {"run.seed": "the stages' seeds", "run.dir": "--runs"}
        if stage.start is not None:
            own["start.model"] = f"{where}.start"
        data = [self.data[name] for name in self.variants(stage)]
        lines = (self.set, stage.set, *data, *map(self.overrides_of, self.systems_of(stage)))
        for item in (*stage.grid, *(item for each in lines for item in each)):
            if key_of(item) in own:
                raise ValueError(f"{item} with {own[key_of(item)]}; allowed: one of them")

    def variants(self, stage: Stage) -> tuple[str, ...]:
        """Return the names of a stage's data variants."""
        return stage.data or tuple(self.data)

    def systems_of(self, stage: Stage) -> tuple[str, ...]:
        """Return the names of the systems that a stage may have."""
        return tuple(self.systems) if stage.systems is None or stage.best else stage.systems

    def begins_others(self, stage: str) -> bool:
        """Whether a later stage begins with a stage's models."""
        return any(each.start == stage for each in self.stages.values())

    def overrides_of(self, system: str) -> tuple[str, ...]:
        """Return a system's overrides, those of the systems it names first."""
        found: list[str] = []
        for item in self.systems[system]:
            if "=" in item:
                found.append(item)
                continue
            before = list(self.systems)[: list(self.systems).index(system)]
            _known(f"systems.{system}", (item,), before)
            found += self.overrides_of(item)
        return tuple(found)


def key_of(override: str) -> str:
    """Return the key of section.key=value."""
    return override.partition("=")[0].strip()


def shipped_studies() -> list[str]:
    """Return the names of the studies in ds_configs/studies."""
    return sorted(path.stem for path in STUDIES.glob("*.yaml"))


def load_study(name: str) -> tuple[str, Study]:
    """Return a study's name and what it is; name: a shipped one's, or a YAML's path.

    Raises UserError for one that is not there or cannot be read.
    """
    file = STUDIES / f"{name}.yaml"
    if not file.is_file():
        file = locate(name, (Path.cwd(), REPOSITORY)) if name.endswith(".yaml") else None
    if file is None or not file.is_file():
        shipped = ", ".join(shipped_studies())
        raise UserError(f"unknown study {name!r}; allowed: {shipped}, or a YAML's path")
    source = displayed(file)
    document = parse_yaml(read_text(file), source)
    try:
        return file.stem, Study.model_validate(document.values)
    except ValidationError as error:
        line = document.lines

        def place(*keys: str) -> str:
            return next((f"{source}:{line[key]}" for key in keys if key in line), source)

        raise UserError(complaint(error, Study, place)) from None


def _known(where: str, names: Sequence, allowed: Collection) -> None:
    for name in names:
        if name not in allowed:
            listed = ", ".join(map(str, allowed)) or "none here"
            raise ValueError(f"{where}: {name!r}; allowed: {listed}")
