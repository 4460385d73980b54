"""A plan (benchmark/planning.py's report) as lines that a person reads."""

from collections.abc import Callable

GIB, KIB = 2**30, 2**10

Say = Callable[[str], None]


def show(plan: dict, say: Say) -> None:
    """Say the plan as a person reads it."""
    model, counts, flops, batch = (
        plan[key] for key in ("model", "parameters", "flops_a_token", "batch")
    )
    random = ", random weights" if model["random_weights"] else ""
    say(f"{model['kind']} on {model['encoder']}{random}, {model['precision']}")
    parts = ", ".join(
        f"{name} {counts[name]:,}" for name in ("shared", "experts", "gates", "heads")
    )
    say(f"weights: {counts['total']:,} ({parts}); active for a token {counts['active']:,}")
    parts = ", ".join(
        f"{name} {flops[name] / 1e6:,.2f}"
        for name in ("projections", "attention", "ffn", "gates", "heads", "merge")
        if name != "merge" or flops[name]
    )
    say(
        f"MFLOPs a token: forward {flops['forward'] / 1e6:,.2f} ({parts}), "
        f"backward {flops['backward'] / 1e6:,.2f}"
    )
    say(
        f"a step: {batch['examples']} examples on {batch['ranks']} ranks, "
        f"{batch['tokens_a_rank']:,.0f} real tokens a rank, "
        f"{flops['step'] * batch['tokens_a_rank'] / 1e9:,.1f} GFLOPs a rank"
    )
    say("\nGiB a rank at the fullest moment of a step (* this configuration, + advised)")
    names = ("weights", "gradients", "optimizer", "activations", "buffers")
    say(
        "   ZeRO  ep"
        + "".join(f"{name:>12}" for name in (*names, "peak"))
        + f"{'moment':>11}{'a2a MiB':>9}{'fits':>6}"
    )
    for row in plan["memory"]:
        fits = {None: "", True: "yes", False: "no"}[row["fits"]]
        say(
            f"{_marks(row)} {row['zero_stage']:>4}{row['ep_size']:>4}"
            + "".join(f"{row[name] / GIB:>12.3f}" for name in (*names, "peak"))
            + f"{row['phase']:>11}{row['sent_bytes'] / 2**20:>9.1f}{fits:>6}"
        )
    say(f"\n{plan['advice']}")
    _show_cost(plan, say)
    if plan["calibrated"] is not None:
        _show_calibrated(plan, say)


def _marks(row: dict) -> str:
    return ("*" if row["chosen"] else " ") + ("+" if row["advised"] else " ")


def _show_cost(plan: dict, say: Say) -> None:
    machine = plan["machine"]
    share = machine["share"]
    reached = "sustained" if share else "at the peak, of which products reach what their shape does"
    nics = machine["nics"]
    cards = "a GPU" if nics is None else f"a network card, {nics} a node"
    say(
        f"\nCost model for {machine['gpus']} GPUs, {machine['per_node']} a node: "
        f"{machine['flops'] / 1e12:,.4g} TFLOPs/s {reached}, memory "
        f"{machine['memory'] / 1e9:,.4g} GB/s, NVLink {machine['nvlink'] / 1e9:,.4g} GB/s, network "
        f"{machine['network'] / 1e9:,.4g} GB/s {cards}, {1e6 * machine['latency']:.3g} us a "
        f"message, {1e6 * machine['host_wait']:.3g} us where the host waits in a layer"
    )
    say(plan["formula"])
    say(
        "\nms a step; network: what crosses nodes of the column before it\n   ZeRO  ep   compute"
        "  reduction   network  all-to-all   network  optimizer     total  hierarchical"
    )
    for row in plan["memory"]:
        cost = row["cost_flat"]
        say(
            f"{_marks(row)} {row['zero_stage']:>4}{row['ep_size']:>4}"
            f"{1e3 * cost['compute']:>10.2f}{1e3 * cost['reduction']:>11.2f}"
            f"{1e3 * cost['reduction_network']:>10.2f}{1e3 * cost['all_to_all']:>12.2f}"
            f"{1e3 * cost['all_to_all_network']:>10.2f}{1e3 * cost['optimizer']:>11.2f}"
            f"{1e3 * cost['total']:>10.2f}{1e3 * row['cost_hierarchical']:>14.2f}"
        )
    _show_exchanges(plan, say)


def _show_exchanges(plan: dict, say: Say) -> None:
    """Say which exchange is cheaper, for every ep_size that has both."""
    exchanges = {row["ep_size"]: row["exchange"] for row in plan["memory"]}
    for ep_size, exchange in sorted(exchanges.items()):
        if exchange is None:
            continue
        below = exchange["hierarchical_below"]
        pays = "at any size" if below is None else f"below {below / KIB:,.1f}"
        say(
            f"all-to-all, ep_size {ep_size}: {exchange['cheaper']} is cheaper; a rank brings "
            f"{exchange['bytes'] / KIB:,.1f} KiB, hierarchical pays "
            f"{'at no size' if below == 0 else pays}"
        )


def _show_calibrated(plan: dict, say: Say) -> None:
    found, chosen = plan["calibrated"], next(row for row in plan["memory"] if row["chosen"])
    parts = ("forward", "backward", "optimizer", "total")
    say(
        f"\nOn this machine, {plan['batch']['ranks']} ranks, {found['clock']} clock, medians of "
        f"{found['predicted']['rounds']} rounds, ms a step"
    )
    say(f"{'':<12}" + "".join(f"{part:>11}" for part in parts) + f"{'peak, GiB':>11}")
    for name, peak in (("predicted", chosen["peak"]), ("measured", None)):
        row = found[name]
        if row is None:
            continue
        peak = row.get("peak", peak)
        say(
            f"{name:<12}"
            + "".join(f"{1e3 * row[part]:>11.0f}" for part in parts)
            + f"{peak / GIB:>11.3f}"
        )
    row = found["measured"]
    if row is not None:
        time_off = found["predicted"]["total"] / row["total"] - 1
        say(
            f"predicted / measured - 1: step {100 * time_off:+.1f}%, peak "
            f"{100 * (chosen['peak'] / row['peak'] - 1):+.1f}% "
            f"(resident, imports and kept blocks included: {row['resident'] / GIB:.2f} GiB)"
        )
