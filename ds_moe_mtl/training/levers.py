"""What levers of the sparse layer do beside a training step; nothing where none is on."""

from ds_moe_mtl.config import RunConfig
from ds_moe_mtl.models.token_level.tied import tied_share


def before_step(engine, config: RunConfig, step: int) -> None:
    """Make the optimizer ready for a step, counted from 0.

    While experts are tied each of their copies gets 1 / sqrt(E) of the FFN's gradient: so does
    Adam's eps, and the update is the dense one.
    """
    moe = config.moe
    if not moe.tied_steps:
        return
    share = tied_share(moe.num_experts) if step < moe.tied_steps else 1.0
    for group in engine.optimizer.param_groups:
        if group.get("moe"):  # DeepSpeed's mark of a group of experts
            group["eps"] = share * config.train.eps
