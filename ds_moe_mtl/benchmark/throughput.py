"""Sparse against FLOP-matched dense, stock DeepSpeed and a plain Trainer, alternated in one run.

Two tables: the model alone (forward + backward of the plain network, on one rank) and the whole
training step on DeepSpeed's engine. Every contestant sees every batch, in an order that turns from
round to round; the Trainer draws its own.
"""

from collections.abc import Sequence
from statistics import median, quantiles

import torch

from ds_moe_mtl.benchmark.allocations import AllocationMeter
from ds_moe_mtl.benchmark.contestants import STOCK, TRAINER
from ds_moe_mtl.benchmark.hf_trainer import TrainerSteps
from ds_moe_mtl.benchmark.steps import CLOCKS, EngineSteps, Split, Step, now
from ds_moe_mtl.benchmark.workload import Workload, find_workload, levers_of
from ds_moe_mtl.config import RunConfig
from ds_moe_mtl.config.levers import conflict
from ds_moe_mtl.models import MultiTaskNetwork
from ds_moe_mtl.models.attention.choice import PACKED_FLASH, packed_attention
from ds_moe_mtl.models.losses import network_inputs
from ds_moe_mtl.models.task_fit import head_specs
from ds_moe_mtl.planner.flops import count_flops
from ds_moe_mtl.planner.levers import NO_LEVERS
from ds_moe_mtl.ranks.machine import device_name, gpu_facts
from ds_moe_mtl.ranks.rendezvous import Ranks
from ds_moe_mtl.training.step import training_loss

SHARED = "mt_tag_ep"
"""MT-TaG with its experts over all ranks; added where there are several and they divide them."""

WARM_UP = 2
"""Rounds that are run and not counted."""

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
) -> dict[str, object]:
    """Return {"model", "step"}: rows by contestant, and what they stand on. A collective call.

    A row holds medians and quartiles in ms, the parts of a step, examples and real tokens a second,
    model FLOPs utilisation (FLOPs of the real tokens / time / the rate of a product of the FFN's
    shape measured in every round), peak bytes of tensors, and the ratio of its time to mt_dense's.
    `data` is the building of the batch in the foreground; a run builds it ahead, so on a GPU only
    what the step before leaves of it counts. The parts of a step are timed apart, each to the end
    of the GPU's work. clock "cpu" counts this process's CPU time: on one thread what the wall clock
    shows on an idle machine.
    """
    workload = find_workload(config, shape, lambda line: None)
    tick = CLOCKS[clock]
    names, left_out = _who(contestants, config, ranks.world_size)
    size = workload.shape.hidden // workload.shape.heads
    attention = packed_attention(device, DTYPES[config.train.precision], size)
    padded = attention != PACKED_FLASH
    batches, build = _batches(workload, ranks, WARM_UP + rounds, tick, padded, device.index)
    tokens = median(sum(batch.num_tokens for batch in step[0]) for step in batches)
    products = [_product_rate(workload, tokens, device, tick) for _ in batches]
    found = {
        "ranks": ranks.world_size,
        "device": device_name(device) if device.type == "cuda" else device.type,
        "gpu": gpu_facts(device) if device.type == "cuda" else None,
        "attention": attention,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "precision": config.train.precision,
        "encoder": shape or workload.plan.source.resolved,
        "random_weights": workload.random,
        "clock": clock,
        "rounds": rounds,
        "batch_size": config.train.batch_size,
        "tokens_a_rank": tokens,
        "product_gflops": median(products) / 1e9,
        "left_out": left_out,
    }
    about = _About(workload, ranks.world_size, batches, median(products))
    if ranks.world_size == 1:
        alone = [name for name in names if name != TRAINER]
        times = _time_models(workload, alone, batches, device, tick)
        found["model"] = about.rows(times, ("forward", "backward"))
    times, memory, shares = _time_steps(workload, names, batches, build, ranks, device, tick)
    found["step"] = about.rows(times, PARTS)
    for name, row in found["step"].items():
        row["peak_bytes"] = memory[name]
        row["all_to_all_ms"] = shares[name] * row["ms"]
    return found


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


def _batches(
    workload: Workload, ranks: Ranks, count: int, clock, padded: bool, gpu: int | None
) -> tuple[list[Step], list[float]]:
    """Return so many steps of this rank, and the seconds that building each of them took."""
    loader = workload.plan.super_batches(ranks.rank, ranks.world_size, padded, gpu)
    position, steps, seconds = loader.order.start, [], []
    for _ in range(count):
        began = clock()
        micro_batches, examples, position = loader.build(position)
        seconds.append(clock() - began)
        steps.append((micro_batches, examples))
    return steps, seconds


def _of_kind(workload: Workload, name: str, world_size: int) -> Workload:
    if name.startswith(SHARED):
        return workload.of_kind("mt_tag", world_size)
    return workload.of_kind("mt_switch" if name in STOCK else name)


def _network(workload: Workload, name: str) -> MultiTaskNetwork:
    network = workload.network()
    if name in STOCK:
        from ds_moe_mtl.moe.stock import to_stock

        to_stock(network, STOCK[name])
    return network


def _time_models(workload, names, batches, device, clock) -> dict[str, list[Split]]:
    dtype = DTYPES[workload.config.train.precision]
    networks = {}
    for name in names:
        network = _network(_of_kind(workload, name, 1), name)
        networks[name] = network.to(device, dtype).train()
        if name in STOCK:
            from ds_moe_mtl.moe.stock import join_groups

            join_groups(network)
    times: dict[str, list[Split]] = {name: [] for name in names}
    for number, (micro_batches, examples) in enumerate(batches):
        for name in _turn(names, number):
            network, split = networks[name], Split()
            for batch in micro_batches:
                batch = batch.to(device)
                began = now(device, clock)
                outputs = network(**network_inputs(batch))
                scaling = workload.config.train.loss_scaling
                _, loss = training_loss(network, outputs, batch, 1 / examples, scaling)
                forward = now(device, clock)
                loss.backward()
                split.forward += forward - began
                split.backward += now(device, clock) - forward
            times[name].append(split)
            network.zero_grad()
    return times


def _time_steps(workload, names, batches, build, ranks, device, clock):
    """Return each contestant's splits, its tensors' peak bytes, and its all-to-all share."""
    steppers, meters = {}, {}
    for name in names:
        if name == TRAINER:
            steppers[name] = TrainerSteps(workload, ranks.world_size, device)
            meters[name] = steppers[name].meter
            continue
        own = _of_kind(workload, name, ranks.world_size)
        meters[name] = AllocationMeter(device)
        with meters[name].measured():
            network = _network(own, name)
            steppers[name] = EngineSteps(network, own.plan, ranks.world_size, device)
            del network
    times: dict[str, list[Split]] = {name: [] for name in names}
    for number, step in enumerate(batches):
        for name in _turn(names, number):
            if number:
                split = _step(steppers[name], step, clock)
            else:  # the first step makes the moments
                split = _metered(steppers[name], step, clock, meters[name])
            if name != TRAINER:
                ahead = split.total if device.type == "cuda" else 0.0
                split.data = max(0.0, build[number] - ahead)
            times[name].append(split)
    memory, shares = {}, {}
    for name in names:
        meters[name].peak = 0
        _metered(steppers[name], batches[-1], clock, meters[name])
        memory[name] = meters[name].peak
        shares[name] = _all_to_all_share(steppers[name], batches[-1], device)
    if TRAINER in steppers:
        steppers[TRAINER].close()
    return times, memory, shares


def _step(stepper, step: Step, clock) -> Split:
    return stepper.step(clock) if isinstance(stepper, TrainerSteps) else stepper.step(step, clock)


def _metered(stepper, step: Step, clock, meter: AllocationMeter) -> Split:
    if isinstance(stepper, TrainerSteps):
        return stepper.step(clock, metered=True)
    with meter.measured():
        return stepper.step(step, clock)


def _all_to_all_share(stepper, step: Step, device) -> float:
    """Return the share of one traced step that this rank spends in all-to-all, waiting and all."""
    from ds_moe_mtl.planner.traffic import ALL_TO_ALL

    if isinstance(stepper, TrainerSteps) or stepper.world_size == 1:
        return 0.0
    with torch.profiler.profile() as profile:
        total = stepper.step(step).total
    spent = [
        max(event.cpu_time_total, event.device_time_total)
        for event in profile.key_averages()
        if event.key == ALL_TO_ALL
    ]
    return sum(spent) / 1e6 / total


def _turn(names: Sequence[str], number: int) -> Sequence[str]:
    """Return the names in an order that changes from round to round."""
    place = number % len(names)
    return (*names[place:], *names[:place])


def _product_rate(workload: Workload, tokens: float, device, clock) -> float:
    """Return the FLOPs a second of one product of the FFN's shape over a step's tokens."""
    hidden, inner = workload.shape.hidden, workload.shape.intermediate
    dtype = DTYPES[workload.config.train.precision]
    rows = max(1, int(tokens))
    a, b = torch.ones(rows, hidden, dtype=dtype), torch.ones(hidden, inner, dtype=dtype)
    a, b = a.to(device), b.to(device)
    torch.mm(a, b)
    began = now(device, clock)
    for _ in range(4):
        torch.mm(a, b)
    return 4 * 2 * rows * hidden * inner / max(now(device, clock) - began, 1e-9)


class _About:
    """What turns times into rows: tokens, examples, FLOPs, the machine's product rate."""

    def __init__(self, workload: Workload, world_size: int, batches, rate: float) -> None:
        self.workload, self.world_size, self.rate = workload, world_size, rate
        self.tokens = [sum(batch.num_tokens for batch in step[0]) for step in batches]
        squared = sum(
            float(batch.cu_seqlens.diff().double().square().sum())
            for step in batches
            for batch in step[0]
        )
        self.attended = squared / max(sum(self.tokens), 1)
        sequences = sum(batch.num_sequences for step in batches for batch in step[0])
        self.sequences_a_token = sequences / max(sum(self.tokens), 1)
        calls = [batch for step in batches for batch in step[0]]
        self.tasks = sum(len(batch.task_ids_B.unique()) for batch in calls) / len(calls)
        self.call_tokens = sum(self.tokens) / len(calls)

    def rows(self, times: dict[str, list[Split]], parts: Sequence[str]) -> dict[str, dict]:
        """Return a row a contestant."""
        counted = range(WARM_UP, len(self.tokens))
        batch_size = self.workload.config.train.batch_size
        rows = {}
        for name, splits in times.items():
            totals = [1e3 * splits[i].total for i in counted]
            low, middle, high = quantiles(totals, n=4)
            tokens = median(self.tokens[i] for i in counted)
            rows[name] = {
                "ms": middle,
                "quartiles_ms": [low, high],
                **{
                    f"{part}_ms": 1e3 * median(getattr(splits[i], part) for i in counted)
                    for part in parts
                },
                "examples_per_s": 1e3 * batch_size / middle,
                "tokens_per_s": 1e3 * tokens * self.world_size / middle,
                "utilisation": self._flops(name) * tokens / (middle / 1e3) / self.rate,
                "ratio": median(splits[i].total / times["mt_dense"][i].total for i in counted),
            }
        return rows

    def _flops(self, name: str) -> float:
        """Return the model's operations a token, forward and backward."""
        config, specs = self.workload.config, self.workload.plan.specs
        hidden = self.workload.shape.hidden
        heads = [((3 if head.spans else 1) * hidden, head.outputs) for head in head_specs(specs)]
        experts = 0 if name in ("mt_dense", TRAINER) else config.moe.num_experts
        levers = NO_LEVERS
        if experts and name not in STOCK:
            kind = _of_kind(self.workload, name, 1).config
            levers = levers_of(kind, self.workload.shape, self.tasks, self.call_tokens)
        return count_flops(
            self.workload.shape,
            self.attended,
            experts,
            int(experts > 0),
            heads,
            self.sequences_a_token,
            levers,
        ).step
