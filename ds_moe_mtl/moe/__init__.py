"""The DeepSpeed edge: the only code that knows DeepSpeed's MoE."""

from ds_moe_mtl.moe.convert import to_deepspeed
from ds_moe_mtl.moe.gate import TaskGate
from ds_moe_mtl.moe.layer import TaskMoE

__all__ = ["TaskGate", "TaskMoE", "to_deepspeed"]
