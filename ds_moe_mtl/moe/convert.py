"""From the plain layer to DeepSpeed's and back: the same tensors under other names (moe.keys)."""

from collections.abc import Mapping

import torch
from torch import distributed as dist
from torch import nn

from ds_moe_mtl.models.token_level.moe_layer import MoELayer
from ds_moe_mtl.moe.hosts import HostGroups
from ds_moe_mtl.moe.keys import is_expert_key, plain_key
from ds_moe_mtl.moe.layer import TaskMoE


def to_deepspeed(model: nn.Module, ep_size: int = 1, hosts: HostGroups | None = None) -> nn.Module:
    """Return `model` with every MoELayer replaced by a TaskMoE, in place.

    With ep_size > 1 a rank keeps its own experts only: those of its place in its group of ep_size
    consecutive ranks. hosts: host_groups(ep_size, hosts_of_ranks()), to gather rows within hosts
    before they cross them; None: they travel at once. Raises ValueError where ep_size divides
    neither experts nor the world.
    """
    world_size = dist.get_world_size() if dist.is_initialized() else 1
    if world_size % ep_size:
        raise ValueError(f"ep_size = {ep_size} must divide the number of ranks, {world_size}")
    place = expert_place(ep_size)
    for holder, name, layer in moe_layers(model, MoELayer):
        moe = _task_moe(layer, ep_size, place)
        moe.deepspeed_moe.hosts = hosts
        setattr(holder, name, moe)
    return model


def expert_place(ep_size: int) -> int:
    """Return this rank's place among the ep_size consecutive ranks that share the experts."""
    return dist.get_rank() % ep_size if ep_size > 1 else 0


def expert_layout(model: nn.Module) -> tuple[int, int, int]:
    """Return (ep_size, this rank's place in its expert group, experts a rank); (1, 0, 0) if dense.

    The layers of one model share one layout.
    """
    layers = [layer for _, _, layer in moe_layers(model, TaskMoE)]
    if not layers:
        return 1, 0, 0
    return layers[0].ep_size, expert_place(layers[0].ep_size), layers[0].num_local_experts


def moe_layers(model: nn.Module, kind: type) -> list[tuple[nn.Module, str, nn.Module]]:
    """Return (parent, name, layer) of every layer of that class."""
    return [
        (module, name, child)
        for module in list(model.modules())
        for name, child in list(module.named_children())
        if isinstance(child, kind)
    ]


def has_moe_layers(model: nn.Module) -> bool:
    """Return whether the model has a TaskMoE layer."""
    return any(isinstance(module, TaskMoE) for module in model.modules())


def plain_state(model: nn.Module) -> dict[str, torch.Tensor] | None:
    """Return the whole model's state under plain keys on rank 0, and None on the other ranks.

    A collective call: the experts of the first expert group are sent to rank 0.
    """
    ep_size, place, local = expert_layout(model)
    rank = dist.get_rank() if dist.is_initialized() else 0
    state: dict[str, torch.Tensor] = {}
    experts: dict[str, torch.Tensor] = {}
    for key, tensor in model.state_dict().items():
        part = experts if is_expert_key(key) else state
        part[plain_key(key, place, local)] = tensor.detach()
    if ep_size > 1:
        experts = _gather_experts(experts, ep_size, rank, local, model)
    return {**state, **experts} if rank == 0 else None


def load_plain_state(model: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Load a whole plain state into DeepSpeed's form; each rank takes its own experts."""
    _, place, local = expert_layout(model)
    own = {key: state[plain_key(key, place, local)] for key in model.state_dict()}
    model.load_state_dict(own)


def _task_moe(layer: MoELayer, ep_size: int, place: int) -> TaskMoE:
    options = {**vars(layer.options)}
    num_experts, num_gates = options.pop("num_experts"), options.pop("num_gates")
    moe = TaskMoE(
        layer.hidden_size,
        layer.dense_expert(),
        num_experts,
        ep_size,
        num_gates=num_gates,
        **options,
    ).to(layer.gate.wg.weight)
    moe.train(layer.training)
    moe.deepspeed_moe.gate.wg.load_state_dict(layer.gate.wg.state_dict())
    if layer.shared is not None:
        moe.shared.load_state_dict(layer.shared.state_dict())
    local = moe.num_local_experts
    own = layer.experts[place * local : (place + 1) * local]
    for expert, source in zip(moe.deepspeed_moe.experts.deepspeed_experts, own, strict=True):
        expert.load_state_dict(source.state_dict())
    return moe


def _gather_experts(
    experts: dict[str, torch.Tensor], ep_size: int, rank: int, local: int, model: nn.Module
) -> dict[str, torch.Tensor]:
    """Send the experts of ranks 1 to ep_size - 1 to rank 0, tensor by tensor."""
    gathered = dict(experts)
    own_keys = [key for key in model.state_dict() if is_expert_key(key)]
    for source in range(1, ep_size):
        for key in own_keys:
            if rank == source:
                dist.send(experts[plain_key(key, source, local)].contiguous(), dst=0)
            elif rank == 0:
                tensor = torch.empty_like(experts[plain_key(key, 0, local)])
                dist.recv(tensor, src=source)
                gathered[plain_key(key, source, local)] = tensor
    return gathered
