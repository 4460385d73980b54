"""What a run is: typed, validated once at the edge."""

from ds_moe_mtl.config.deepspeed import resolve_deepspeed
from ds_moe_mtl.config.errors import Diverged, RankError, SeveralErrors, Unmet, UserError
from ds_moe_mtl.config.load import (
    DEFAULT_EXPERIMENT,
    EXPERIMENTS,
    differing_keys,
    dump_config,
    load_config,
    plain_values,
)
from ds_moe_mtl.config.schema import RunConfig
from ds_moe_mtl.config.task_rows import KnownTask, OwnTask

__all__ = [
    "DEFAULT_EXPERIMENT",
    "EXPERIMENTS",
    "Diverged",
    "KnownTask",
    "OwnTask",
    "RankError",
    "RunConfig",
    "SeveralErrors",
    "Unmet",
    "UserError",
    "differing_keys",
    "dump_config",
    "load_config",
    "plain_values",
    "resolve_deepspeed",
]
