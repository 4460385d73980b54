"""run.elastic: a run that goes on with other ranks than it began with, and trains the same.

The examples of a step are counted over all ranks and dealt anew, checkpoints are reshaped; what
has to follow the ranks is moe.ep_size. What would train otherwise on other ranks is refused.
"""

from typing import Any

from ds_moe_mtl.config.errors import UserError
from ds_moe_mtl.config.levers import SPARSE_KINDS

AUTO = "auto"


def fitting_ep_size(ep_size: int, num_experts: int, world_size: int) -> int:
    """Return the largest size up to ep_size that divides the experts and the ranks.

    It is ep_size itself where that divides both.
    """
    sizes = range(1, ep_size + 1)
    return max(each for each in sizes if num_experts % each == 0 and world_size % each == 0)


def fit_to_ranks(config, world_size: int) -> tuple[Any, str]:
    """Return the configuration as it trains on so many ranks, and a line of what is another; "".

    config: a RunConfig. Without run.elastic, and for a model without experts, it comes back as it
    is.
    """
    moe = config.moe
    if not config.run.elastic or config.model.kind not in SPARSE_KINDS:
        return config, ""
    size = fitting_ep_size(moe.ep_size, moe.num_experts, world_size)
    if size == moe.ep_size:
        return config, ""
    line = (
        f"run.elastic: moe.ep_size = {moe.ep_size} does not divide the number of ranks, "
        f"{world_size}: {size} on these, where a rank holds {moe.num_experts // size} of "
        f"{moe.num_experts} experts, not {moe.num_experts // moe.ep_size}"
    )
    return config.model_copy(update={"moe": moe.model_copy(update={"ep_size": size})}), line


def elastic_conflict(config) -> str | None:
    """Return the line that refuses a run's run.elastic; None where it keeps the training's meaning.

    config: a RunConfig.
    """
    if not config.run.elastic:
        return None
    run, train, moe = config.run, config.train, config.moe
    why = {
        "run.resume": (run.resume != AUTO, "a restart would not continue from its last step", AUTO),
        "train.save_every": (
            train.save_every == 0,
            "a run that loses a host would begin again",
            "a number of steps",
        ),
        "train.average_from": (
            train.average_from is not None,
            "the mean is kept by rank, and is not reshaped",
            "null",
        ),
    }
    if config.model.kind in SPARSE_KINDS:
        of_rank = "it is taken over each rank's own tokens, and other ranks would train another"
        why |= {
            "moe.dispatch": (
                moe.dispatch != "dropless",
                "what is dropped depends on each rank's own tokens",
                "dropless",
            ),
            "moe.exchange": (
                moe.exchange != "flat",
                "the ranks that are left may lie on hosts that have nothing to gather",
                "flat",
            ),
            "moe.load_balance_loss": (moe.load_balance_loss > 0, of_rank, "0"),
            "moe.router_z_loss": (moe.router_z_loss > 0, of_rank, "0"),
        }
    for key, (conflicts, because, allowed) in why.items():
        if conflicts:
            section, name = key.split(".")
            value = getattr(getattr(config, section), name)
            return f"run.elastic = true with {key} = {value}: {because}; allowed: {allowed}"
    return None


def check_elastic(values: dict[str, Any], config) -> None:
    """Raise UserError for what DeepSpeed's JSON, as it stands, fixes and the ranks may change.

    DeepSpeed's own elasticity is refused in every run: it chooses a batch by itself.
    """
    section = values.get("elasticity")
    if isinstance(section, dict) and section.get("enabled"):
        raise UserError(
            "elasticity.enabled = true: DeepSpeed would choose another batch than "
            "train.batch_size; allowed: run.elastic=true, which keeps it on fewer ranks"
        )
    micro = values.get("train_micro_batch_size_per_gpu", AUTO)
    if config.run.elastic and micro != AUTO:
        raise UserError(
            f"train_micro_batch_size_per_gpu = {micro} with run.elastic = true: it is "
            'train.batch_size over the ranks, of which there may be fewer; allowed: "auto"'
        )
