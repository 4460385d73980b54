"""The float32 weights that a rank updates, and how the module's weights are made from them.

ZeRO 1 and 2 keep a flat float32 partition a group on each rank; the module has its cast, gathered
from all ranks. At stage 0 (fp32 only) the module's weights are themselves what is updated.
"""

from collections.abc import Iterable, Sequence

import torch


def own_weights(engine) -> list[torch.Tensor]:
    """Return the float32 weights that this rank updates: one tensor a group, or a parameter."""
    if engine.zero_optimization():
        return [flat.data for flat in engine.optimizer.single_partition_of_fp32_groups]
    return [p.data for group in engine.optimizer.param_groups for p in group["params"]]


def publish(
    engine, weights: Sequence[torch.Tensor] | None = None, groups: Iterable[int] | None = None
) -> None:
    """Make the module's weights on every rank those of own_weights; a collective call under ZeRO.

    weights: in their place, tensors of the same shapes. groups: of ZeRO, those alone.
    """
    mine = own_weights(engine)
    weights = mine if weights is None else weights
    if not engine.zero_optimization():
        for own, weight in zip(mine, weights, strict=True):
            own.copy_(weight)
        return
    from deepspeed.runtime.utils import all_gather_dp_groups

    zero = engine.optimizer
    chosen = list(range(len(mine)) if groups is None else groups)
    for number in chosen:
        rank = torch.distributed.get_rank(zero.real_dp_process_group[number])
        zero.parallel_partitioned_bit16_groups[number][rank].data.copy_(weights[number])
    all_gather_dp_groups(
        groups_flat=[zero.bit16_groups_flat[number] for number in chosen],
        partitioned_param_groups=[zero.parallel_partitioned_bit16_groups[n] for n in chosen],
        dp_process_group=[zero.real_dp_process_group[number] for number in chosen],
        start_alignment_factor=zero.nccl_start_alignment_factor,
        allgather_bucket_size=zero.allgather_bucket_size,
    )


@torch.no_grad()
def add_to_weights(engine, changes: Iterable[tuple[torch.nn.Parameter, torch.Tensor]]) -> None:
    """Add a float32 change to each parameter, on the rank or ranks that update it.

    changes: the same on all ranks, of parameters in expert groups. A collective call under ZeRO:
    the module's weights are gathered anew.
    """
    if not engine.zero_optimization():
        for parameter, change in changes:
            parameter.add_(change.to(parameter.dtype))
        return
    zero = engine.optimizer
    for parameter, change in changes:
        mapping = parameter._hp_mapping
        if mapping is None:  # another rank's
            continue
        whole, own = mapping.lp_fragment_address, mapping.hp_fragment_address
        flat = zero.single_partition_of_fp32_groups[mapping.param_group_index].data
        piece = change.reshape(-1)[whole.start : whole.start + whole.numel]
        flat.narrow(0, own.start, own.numel).add_(piece.to(flat.device))
    publish(
        engine,
        groups=[n for n, group in enumerate(zero.optimizer.param_groups) if group.get("moe")],
    )
