"""What train.cuda_graphs goes with: a recorded pass takes no decision and waits for nothing."""

from ds_moe_mtl.config.levers import SPARSE_KINDS


def graphs_conflict(config) -> str | None:
    """Return the line that refuses a run's train.cuda_graphs; None where it may be recorded.

    config: a RunConfig.
    """
    if not config.train.cuda_graphs:
        return None
    train, moe = config.train, config.moe
    why = {
        "train.fill_tokens": (train.fill_tokens == 1, "no shape comes again", "1024, say"),
        "train.precision": (
            train.precision == "fp32",
            "attention in fp32 pads by the batch's lengths",
            "bf16, fp16",
        ),
        "train.accumulation": (
            train.accumulation > 1,
            "gradients stand where the next micro-batch writes its own",
            "1",
        ),
        "train.activation_checkpointing": (
            train.activation_checkpointing,
            "its second run is not recorded",
            "false",
        ),
        "model.kind": (config.model.kind == "task_moe", "routes are the batch's", "other kinds"),
    }
    if config.model.kind in SPARSE_KINDS:
        why |= {
            "moe.ep_size": (moe.ep_size > 1, "the host waits for the sizes of an exchange", "1"),
            "moe.dispatch": (moe.dispatch != "dropless", "the host reads the counts", "dropless"),
            "moe.combine": (moe.combine != "top1", "mixtures are of the batch's tasks", "top1"),
            "moe.route_by": (moe.route_by != "token", "sequences are the batch's", "token"),
            "moe.jitter": (moe.jitter > 0, "only the fused layer is recorded", "0"),
            "moe.load_balance_loss": (
                moe.load_balance_loss > 0,
                "the host waits for the routed tokens",
                "0",
            ),
            "moe.router_z_loss": (
                moe.router_z_loss > 0,
                "the host waits for the routed tokens",
                "0",
            ),
            "moe.expert_dropout": (moe.expert_dropout > 0, "the host reads the counts", "0"),
            "moe.tied_steps": (moe.tied_steps > 0, "experts part within the run", "0"),
            "moe.impl": (moe.impl == "torch", "the host reads the counts", "auto, triton, cuda"),
        }
    for key, (conflicts, because, allowed) in why.items():
        if conflicts:
            section, name = key.split(".")
            value = getattr(getattr(config, section), name)
            value = str(value).lower() if isinstance(value, bool) else value
            return f"train.cuda_graphs = true with {key} = {value}: {because}; allowed: {allowed}"
    return None
