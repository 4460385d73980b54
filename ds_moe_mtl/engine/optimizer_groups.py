"""Parameter groups in the form that DeepSpeed's MoE needs, and what a task router wants.

DeepSpeed splits experts off by a group's name: a group without a name is a KeyError, and two
groups of one name merge silently, the last weight decay winning. So each group has its own name.
"""

from torch import nn

from ds_moe_mtl.models.task_level.task_router import ROUTER_GROUP, VECTORS_GROUP

GATES_GROUP = "gates"


def parameter_groups(
    model: nn.Module, weight_decay: float, betas: tuple[float, float], gate_momentum: bool
) -> list[dict]:
    """Return Adam's groups: decayed weights; biases and norms; gates; task router; task vectors.

    Gates have no weight decay. With gate_momentum False their first moment has no memory (beta1 =
    0), so that a gate whose task is absent from a step does not move (appendix A.4 of
    "Sparsely Activated MoE are Robust Multi-Task Learners" sees them moved by Adam's moments).
    """
    decayed, others, gates, router, vectors = [], [], [], [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if name == "router.vectors":
            vectors.append(parameter)
        elif name.startswith("router."):
            router.append(parameter)
        elif ".wg." in name:
            gates.append(parameter)
        elif parameter.dim() >= 2:
            decayed.append(parameter)
        else:
            others.append(parameter)
    gate_betas = tuple(betas) if gate_momentum else (0.0, betas[1])
    groups = [
        {"name": "weights", "params": decayed, "weight_decay": weight_decay},
        {"name": "biases_and_norms", "params": others, "weight_decay": 0.0},
        {"name": GATES_GROUP, "params": gates, "weight_decay": 0.0, "betas": gate_betas},
        {"name": ROUTER_GROUP, "params": router, "weight_decay": weight_decay},
        {"name": VECTORS_GROUP, "params": vectors, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
