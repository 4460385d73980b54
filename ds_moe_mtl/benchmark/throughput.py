"""Sparse against FLOP-matched dense, stock DeepSpeed and a plain Trainer, alternated in one run.

Two tables: the model alone (forward + backward of the plain network, on one rank) and the whole
training step on DeepSpeed's engine. Every contestant sees every batch, in an order that turns from
round to round; the Trainer draws its own.
"""

import os
from collections.abc import Callable, Sequence
from statistics import median

import torch

from ds_moe_mtl.benchmark.allocations import AllocationMeter
from ds_moe_mtl.benchmark.contestants import SHARED, STOCK, TRAINER, of_kind
from ds_moe_mtl.benchmark.doubts import doubts
from ds_moe_mtl.benchmark.hf_trainer import TrainerSteps
from ds_moe_mtl.benchmark.rounds import Times, alternate
from ds_moe_mtl.benchmark.rows import About, Rates
from ds_moe_mtl.benchmark.steps import EngineSteps, ModelSteps, Step
from ds_moe_mtl.benchmark.stopwatch import WINDOW, Stopwatch
from ds_moe_mtl.benchmark.workload import Workload, find_workload
from ds_moe_mtl.config import RunConfig
from ds_moe_mtl.config.levers import conflict
from ds_moe_mtl.models import MultiTaskNetwork
from ds_moe_mtl.models.attention.choice import UNPADDED
from ds_moe_mtl.models.encoder import PackedEncoder
from ds_moe_mtl.planner.cards import card_of
from ds_moe_mtl.ranks.machine import device_name, gpu_facts
from ds_moe_mtl.ranks.rendezvous import Ranks

WARM_UP = 2
"""Rounds that are run and not counted."""

PRODUCTS = 4
"""Products that a rate is measured by."""

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PARTS = ("data", "forward", "backward", "optimizer")


def contest(
    config: RunConfig,
    ranks: Ranks,
    device,
    contestants: Sequence[str],
    rounds: int,
    clock: str,
    shape: str | None,
    load: float | None,
) -> dict[str, object]:
    """Return {"model", "step"}: rows by contestant, and what they stand on. A collective call.

    A row holds medians and quartiles in ms, the parts of a step, examples and real tokens a second,
    peak bytes of tensors, the ratio of its time to mt_dense's, and two utilisations: FLOPs of the
    real tokens / time over the card's published peak ("mfu", None for a card that is not in
    planner.cards) and over the rate of a product of random numbers of the FFN's shape, measured in
    every round ("utilisation"). "warnings" says which figures are to be doubted (doubts.py).

    On a CPU a round is one step of each. On a GPU it is WINDOW steps without a wait, timed by CUDA
    events as a whole; then the same steps once more with events between the parts. `data` is the
    building of the batch in the foreground; a run builds it ahead, so on a GPU only what the step
    before leaves of it counts. clock "cpu" counts this process's CPU time: on one thread what the
    wall clock shows on an idle machine. load: the machine's before the command did anything.
    """
    workload = find_workload(config, shape, lambda line: None)
    watch = Stopwatch(device, clock)
    names, left_out = _who(contestants, config, ranks.world_size)
    windows, build = _windows(workload, ranks, WARM_UP + rounds, device, clock)
    about = About(workload, ranks.world_size, windows, WARM_UP)
    tokens = median(about.tokens)
    card = card_of(torch.cuda.get_device_name(device)) if watch.on_gpu else None
    found = _circumstances(config, ranks, device) | {
        "attention": _attention(workload, device),
        "encoder": shape or workload.plan.source.resolved,
        "random_weights": workload.random,
        "clock": "cuda events" if watch.on_gpu else clock,
        "rounds": rounds,
        "steps_a_round": len(windows[0]),
        "tokens_a_rank": tokens,
        "peak_gflops": _gflops(card.peak(config.train.precision) if card else None),
        "left_out": left_out,
        "load_at_start": load,
    }
    peak = None if found["peak_gflops"] is None else 1e9 * found["peak_gflops"]
    probe = _product(workload, tokens, device, watch)
    if ranks.world_size == 1:
        alone = [name for name in names if name != TRAINER]
        times, products = _time_models(workload, alone, windows, device, watch, probe)
        found["model"] = about.rows(times, ("forward", "backward"), Rates(median(products), peak))
    times, products, more = _time_steps(
        workload, names, windows, build, ranks, device, watch, probe
    )
    found["product_gflops"] = _gflops(median(products))
    found["step"] = about.rows(times, PARTS, Rates(median(products), peak))
    for name, row in found["step"].items():
        row["peak_bytes"], share = more[name]
        row["all_to_all_ms"] = share * row["ms"]
    return found | {"warnings": doubts(found)}


def _circumstances(config: RunConfig, ranks: Ranks, device) -> dict:
    return {
        "ranks": ranks.world_size,
        "device": device_name(device) if device.type == "cuda" else device.type,
        "gpu": gpu_facts(device) if device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
        "cores": len(os.sched_getaffinity(0)),
        "torch": torch.__version__,
        "precision": config.train.precision,
        "batch_size": config.train.batch_size,
    }


def _gflops(rate: float | None) -> float | None:
    return None if rate is None else rate / 1e9


def _attention(workload: Workload, device) -> str:
    """Return the attention that the run's encoder takes there."""
    train = workload.config.train
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        encoder = PackedEncoder(workload.transformer())
    encoder.use_kernels(train.encoder_kernels)
    return encoder.attention_on(device, DTYPES[train.precision])


def _who(
    contestants: Sequence[str], config: RunConfig, world_size: int
) -> tuple[list[str], dict[str, str]]:
    """Return who takes part, and why the others do not."""
    names, left_out = list(contestants), {}
    if "mt_dense" not in names:
        names.insert(0, "mt_dense")
    if world_size > 1:
        for name in set(names) & {*STOCK}:
            names.remove(name)
            left_out[name] = "the stock layer aborts with unequal tokens a rank"
        shared = config.moe.model_copy(update={"ep_size": world_size})
        if "mt_tag" in names and config.moe.num_experts % world_size == 0 and not conflict(shared):
            names.insert(names.index("mt_tag") + 1, f"{SHARED}{world_size}")
    return names, left_out


def _windows(
    workload: Workload, ranks: Ranks, count: int, device, clock: str
) -> tuple[list[list[Step]], list[float]]:
    """Return this rank's steps by round, and the mean seconds of building one in each round."""
    padded = _attention(workload, device) not in UNPADDED
    loader = workload.plan.super_batches(ranks.rank, ranks.world_size, padded, device.index)
    host = Stopwatch(torch.device("cpu"), clock)
    size, position = WINDOW[device.type], loader.order.start
    windows, seconds = [], []
    for _ in range(count):
        window, began = [], host.mark()
        for _ in range(size):
            micro_batches, examples, position = loader.build(position)
            window.append((micro_batches, examples))
        windows.append(window)
        seconds.append(host.seconds(began, host.mark()) / size)
    return windows, seconds


def _network(workload: Workload, name: str) -> MultiTaskNetwork:
    network = workload.network()
    if name in STOCK:
        from ds_moe_mtl.moe.stock import to_stock

        to_stock(network, STOCK[name])
    return network


def _time_models(
    workload, names, windows, device, watch, probe
) -> tuple[dict[str, Times], list[float]]:
    train = workload.config.train
    steppers = {}
    for name in names:
        network = _network(of_kind(workload, name, 1), name)
        network = network.to(device, DTYPES[train.precision]).train()
        if name in STOCK:
            from ds_moe_mtl.moe.stock import join_groups

            join_groups(network)
        steppers[name] = ModelSteps(network, train.loss_scaling)

    def ready(window: Sequence[Step]) -> list[Step]:
        return [([batch.to(device) for batch in batches], count) for batches, count in window]

    return alternate(steppers, windows, watch, probe, ready)


def _time_steps(workload, names, windows, build, ranks, device, watch, probe):
    """Return each contestant's times, the products' rates, and (tensors' peak bytes, share of
    all-to-all) by contestant."""
    steppers, meters = {}, {}
    for name in names:
        if name == TRAINER:
            steppers[name] = TrainerSteps(workload, ranks.world_size, device)
            meters[name] = steppers[name].meter
        else:
            own = of_kind(workload, name, ranks.world_size)
            meters[name] = AllocationMeter(device)
            with meters[name].measured():
                network = _network(own, name)
                steppers[name] = EngineSteps(network, own.plan, ranks.world_size, device)
                del network
        _metered(steppers[name], windows[0][0], watch, meters[name])  # the moments
    times, products = alternate(steppers, windows, watch, probe)
    for name in names:
        if name != TRAINER:
            _add_building(times[name], build, ahead=device.type == "cuda")
    more = {}
    for name in names:
        meters[name].peak = 0
        _metered(steppers[name], windows[-1][-1], watch, meters[name])
        share = _all_to_all_share(steppers[name], windows[-1][-1], watch)
        more[name] = meters[name].peak, share
    if TRAINER in steppers:
        steppers[TRAINER].close()
    return times, products, more


def _add_building(times: Times, build: Sequence[float], ahead: bool) -> None:
    """Count the building of batches; ahead: but what the step before hides of it."""
    for i, (split, seconds) in enumerate(zip(times.splits, build, strict=True)):
        split.data = max(0.0, seconds - (times.whole[i] if ahead else 0.0))
        times.whole[i] += split.data


def _metered(stepper, step: Step, watch: Stopwatch, meter: AllocationMeter) -> None:
    """Take a step in which memory is counted; the Trainer counts by itself, in its own thread."""
    if isinstance(stepper, TrainerSteps):
        stepper.metered = True
        stepper.step(step, watch)
        stepper.metered = False
        return
    with meter.measured():
        stepper.step(step, watch)


def _all_to_all_share(stepper, step: Step, watch: Stopwatch) -> float:
    """Return the share of one traced step that this rank spends in all-to-all, waiting and all."""
    from ds_moe_mtl.planner.traffic import ALL_TO_ALL

    if isinstance(stepper, TrainerSteps) or stepper.world_size == 1:
        return 0.0
    with torch.profiler.profile() as profile:
        total = stepper.step(step, watch).total
    spent = [
        max(event.cpu_time_total, event.device_time_total)
        for event in profile.key_averages()
        if event.key == ALL_TO_ALL
    ]
    return sum(spent) / 1e6 / total


def _product(workload: Workload, tokens: float, device, watch: Stopwatch) -> Callable[[], float]:
    """Return a function that measures the FLOPs a second of one product of the FFN's shape.

    Its rows are a step's tokens, its numbers random: of ones a GPU draws less power, so its clock
    is higher than in any training step.
    """
    hidden, inner = workload.shape.hidden, workload.shape.intermediate
    dtype, rows = DTYPES[workload.config.train.precision], max(1, int(tokens))
    generator = torch.Generator().manual_seed(0)
    shapes = (rows, hidden), (hidden, inner)
    a, b = (torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes)
    torch.mm(a, b)

    def rate() -> float:
        watch.wait()
        began = watch.mark()
        for _ in range(PRODUCTS):
            torch.mm(a, b)
        ended = watch.mark()
        watch.wait()
        return PRODUCTS * 2 * rows * hidden * inner / max(watch.seconds(began, ended), 1e-9)

    return rate
