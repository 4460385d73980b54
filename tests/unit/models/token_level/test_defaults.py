"""A default has one owner in the library, and the schema of runs agrees with it."""

import inspect
from dataclasses import fields

import pytest

from ds_moe_mtl.config.schema import MoeSection, RouterSection
from ds_moe_mtl.models import RoutingOptions, upcycle
from ds_moe_mtl.models.task_level.task_router import RouterOptions
from ds_moe_mtl.moe import TaskMoE


@pytest.mark.parametrize(
    ("options", "section", "others"),
    [
        (RoutingOptions, MoeSection, {"num_gates"}),  # follows from the tasks
        # layers: all of them, which the library says as (); frozen and seed follow from other keys.
        (RouterOptions, RouterSection, {"layers", "frozen", "seed"}),
    ],
)
def test_the_librarys_defaults_are_the_schemas(options, section, others):
    library = {field.name: field.default for field in fields(options) if field.name not in others}
    assert library == {name: section.model_fields[name].default for name in library}


def test_functions_take_the_options_defaults_and_experts_start_as_the_dense_model():
    defaults = RoutingOptions()
    assert defaults.gate_scale == "preserve"
    for function in (upcycle, TaskMoE.__init__):
        for name, parameter in inspect.signature(function).parameters.items():
            if name in ("num_experts", "gate_scale"):
                assert parameter.default == getattr(defaults, name), name
