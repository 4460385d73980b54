"""A guard that every run meets: whether this DeepSpeed is one whose insides are known.

What each name is for stands in the table of ds_moe_mtl.engine.
"""

import dis
from importlib import import_module
from types import FunctionType

from ds_moe_mtl.config import UserError
from ds_moe_mtl.moe.version import check_deepspeed_version

ZERO = "deepspeed.runtime.zero.stage_1_and_2:DeepSpeedZeroOptimizer"

CONTRACT: dict[str, tuple[str, ...]] = {
    ZERO: (
        *("step", "get_grad_norm_direct", "setup_buckets", "reduce_ipg_grads"),
        *("reduce_ready_partitions_and_remove_grads", "averaged_gradients", "all_grad_tensors"),
        *("params_in_partition", "scaled_global_norm", "_global_grad_norm", "_update_scale"),
        *("clip_grad", "overflow", "loss_scale", "loss_scaler", "dynamic_loss_scale"),
        *("bit16_groups", "bit16_groups_flat", "parallel_partitioned_bit16_groups"),
        *("single_partition_of_fp32_groups", "optimizer", "dp_process_group"),
        *("real_dp_process_group", "nccl_start_alignment_factor", "allgather_bucket_size"),
        *("_lazy_init_hp_params_optimizer_state", "_hp_optimizer_states_linked"),
    ),
    "deepspeed.runtime.engine:DeepSpeedEngine": (
        *("checkpoint_engine", "skipped_steps", "global_steps", "global_samples", "param_names"),
        *("zero_optimization", "fp16_enabled", "is_gradient_accumulation_boundary"),
        *("get_global_grad_norm", "monitor"),
    ),
    "deepspeed.monitor.monitor:MonitorMaster": ("write_events",),
    "deepspeed.runtime.config": ("DeepSpeedConfig",),
    "deepspeed.runtime.checkpoint_engine.checkpoint_engine:CheckpointEngine": ("load",),
    "deepspeed.runtime.fp16.loss_scaler:DynamicLossScaler": ("raise_error_at_min_scale",),
    "deepspeed.runtime.fp16.loss_scaler:LossScaler": ("loss_scale",),
    "deepspeed.runtime.zero.config:ZeroStageEnum": ("optimizer_states",),
    "deepspeed.runtime.utils": ("all_gather_dp_groups",),
    "deepspeed.utils.tensor_fragment:tensor_fragment": (
        *("lp_fragment_address", "hp_fragment_address", "hp_fragment", "param_group_index"),
    ),
    "deepspeed.utils.tensor_fragment:fragment_address": ("start", "numel"),
    "deepspeed.ops": ("__compatible_ops__",),
    "deepspeed.moe.layer:MoE": ("set_deepspeed_parallelism",),
    "deepspeed.moe.sharded_moe:MOELayer": ("_set_ep_group", "ep_group", "l_aux", "exp_counts"),
    "deepspeed.moe.sharded_moe:TopKGate": ("_set_ep_group", "ep_group"),
    "deepspeed.moe.experts:Experts": ("deepspeed_experts",),
    "torch": ("compile",),
    "torch.distributed.distributed_c10d": ("_world", "_set_pg_timeout"),
}
"""Names by the module, or module:class, that has them."""


def check_contract() -> None:
    """Raise UserError, one line, where DeepSpeed's version or one of its names is not known."""
    try:
        check_deepspeed_version()
    except RuntimeError as error:
        raise UserError(str(error)) from None
    for home, names in CONTRACT.items():
        for name in _missing(home, names):
            package = import_module(home.partition(".")[0])
            raise UserError(
                f"{package.__name__} {package.__version__} has no {home}.{name}, which this "
                f"package replaces or relies on (ds_moe_mtl.engine says what for); allowed: "
                f"deepspeed 0.19.8 with torch 2.13, or releases that have it"
            )


def _missing(home: str, names: tuple[str, ...]) -> list[str]:
    module, _, class_name = home.partition(":")
    try:
        owner = import_module(module)
        owner = getattr(owner, class_name) if class_name else owner
    except (ImportError, AttributeError):
        return list(names)
    absent = {name for name in names if not hasattr(owner, name)}
    if absent and isinstance(owner, type):
        absent -= _instance_names(owner, absent)
    return [name for name in names if name in absent]


def _instance_names(owner: type, wanted: set[str]) -> set[str]:
    """Return those of `wanted` that a class declares or its methods assign: what instances have."""
    found: set[str] = set()
    for each in owner.__mro__:
        found.update(wanted.intersection(vars(each).get("__annotations__", ())))
        for method in vars(each).values():
            uses = method.__code__.co_names if isinstance(method, FunctionType) else ()
            if (wanted - found).intersection(uses):
                found.update(
                    step.argval
                    for step in dis.get_instructions(method)
                    if step.opname == "STORE_ATTR" and step.argval in wanted
                )
    return found
