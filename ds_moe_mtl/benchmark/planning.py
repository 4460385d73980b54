"""The plan of a run before it runs: weights, FLOPs, memory, traffic, step time, and what fits."""

from dataclasses import dataclass

from ds_moe_mtl.benchmark.workload import BatchSizes, Workload, batch_sizes, levers_of
from ds_moe_mtl.config import UserError
from ds_moe_mtl.config.deepspeed import (
    SPARSE_KINDS,
    STAGES,
    UPDATE_PIECE,
    resolve_deepspeed,
    updates_in_one_pass,
)
from ds_moe_mtl.config.levers import conflict
from ds_moe_mtl.models.task_fit import head_specs
from ds_moe_mtl.planner.cost import FORMULA, Machine, sent_bytes, step_cost
from ds_moe_mtl.planner.flops import Flops, Parameters, count_flops, count_parameters
from ds_moe_mtl.planner.levers import NO_LEVERS, Levers
from ds_moe_mtl.planner.memory import Peak, activation_bytes, peak_bytes, split_weights

GIB = 2**30
ROOM = 0.9
"""Share of a GPU's memory that a plan may fill: the allocator's fragments and the context."""

DEFAULT_BUCKET = 500_000_000
"""DeepSpeed's reduce_bucket_size where its JSON has none."""


@dataclass
class RunOnPaper:
    """A workload on so many ranks, with what can be counted of it."""

    workload: Workload
    machine: Machine
    sizes: BatchSizes
    parameters: Parameters
    flops: Flops
    stage: int
    bucket: int
    offloads: bool  # the optimizer to the host
    piece: int | None  # weights of a piece of the update; None: DeepSpeed's own update
    on_gpu: bool
    levers: Levers

    @property
    def sparse(self) -> bool:
        return self.workload.config.model.kind in SPARSE_KINDS

    @property
    def tokens(self) -> float:
        """Real tokens a rank and step."""
        return self.sizes.mean.real * self.sizes.micro_batches

    def ep_sizes(self) -> list[int]:
        """Return the sizes that divide experts and ranks and go with the run's levers."""
        moe = self.workload.config.moe
        experts = moe.num_experts if self.sparse else 1
        return [
            size
            for size in range(1, experts + 1)
            if experts % size == 0
            and self.machine.gpus % size == 0
            and not conflict(moe.model_copy(update={"ep_size": size}))
        ]

    def stages(self) -> list[int]:
        """Return the ZeRO stages that run: 16 bits need stage 1 or 2."""
        fp32 = self.workload.config.train.precision == "fp32"
        return [stage for stage in STAGES if stage or fp32]

    def peak(self, stage: int, ep_size: int) -> Peak:
        """Return a rank's fullest moment."""
        config, shape = self.workload.config, self.workload.shape
        activations = activation_bytes(
            shape,
            self.sizes.most,
            config.train.precision,
            self.sparse,
            config.model.dropout,
            ep_size,
            config.train.activation_checkpointing,
            self.on_gpu,
            self.levers,
        )
        return peak_bytes(
            shape,
            split_weights(self.parameters),
            stage,
            self.machine.gpus,
            ep_size,
            config.train.precision,
            activations,
            self.sizes.most,
            self.bucket,
            self.offloads,
            self.piece,
            self.levers,
            config.train.average_from is not None,
        )

    def sent(self, ep_size: int) -> float:
        """Return the all-to-all bytes a rank sends in a step, routes being uniform."""
        config, shape = self.workload.config, self.workload.shape
        return sent_bytes(
            self.tokens,
            self.levers.sparse(shape),
            shape.hidden,
            config.train.precision,
            config.moe.num_experts,
            ep_size,
        )

    def cost(self, stage: int, ep_size: int, hierarchical: bool = False):
        """Return the cost model's step."""
        config, shape = self.workload.config, self.workload.shape
        return step_cost(
            self.flops.step,
            self.tokens,
            self.levers.sparse(shape),
            shape.hidden,
            split_weights(self.parameters),
            stage,
            ep_size,
            config.train.precision,
            self.machine,
            hierarchical,
        )


def on_paper(workload: Workload, machine: Machine, gpu: bool) -> RunOnPaper:
    """Return a workload with its counts. gpu: attention is fused there, its scores never kept, and
    in 16 bits it has no pads.

    Raises UserError where the ranks cannot be had (batch, ep_size).
    """
    config, plan, shape = workload.config, workload.plan, workload.shape
    deepspeed = resolve_deepspeed(config, machine.gpus, "cuda" if gpu else "cpu")
    zero = deepspeed["zero_optimization"]
    bucket = zero.get("reduce_bucket_size", DEFAULT_BUCKET)
    if not isinstance(bucket, int | float):
        raise UserError(f"{config.deepspeed}: reduce_bucket_size = {bucket!r}; allowed: a number")
    sparse = config.model.kind in SPARSE_KINDS
    experts = config.moe.num_experts if sparse else 0
    gates = len(plan.specs) if config.model.kind == "mt_tag" else int(sparse)
    heads = [
        ((3 if head.spans else 1) * shape.hidden, head.outputs) for head in head_specs(plan.specs)
    ]
    sizes = batch_sizes(plan, machine.gpus)
    if gpu and config.train.precision != "fp32":
        sizes = sizes.unpadded()
    heads_a_token = sizes.sequences / max(sizes.mean.real, 1.0)
    levers = levers_of(config, shape, sizes.tasks, sizes.mean.real) if sparse else NO_LEVERS
    return RunOnPaper(
        workload,
        machine,
        sizes,
        count_parameters(shape, experts, gates, heads, config.model.pooler, levers),
        count_flops(shape, sizes.attended, experts, gates, heads, heads_a_token, levers),
        zero["stage"],
        int(bucket) * (2 if zero.get("overlap_comm") else 1),
        gpu and zero.get("offload_optimizer", {}).get("device") == "cpu",
        UPDATE_PIECE["cuda" if gpu else "cpu"] if updates_in_one_pass(deepspeed) else None,
        gpu,
        levers,
    )


def advice(paper: RunOnPaper, stage: int, memory: float | None) -> str:
    """Return one sentence: whether expert parallelism helps this run, and why.

    memory: bytes of a GPU, None where it is not known.
    """
    sizes = [size for size in paper.ep_sizes() if size > 1]
    if not paper.sparse:
        return "Expert parallelism: the model has no experts."
    forbidden = conflict(paper.workload.config.moe.model_copy(update={"ep_size": 2}), "moe.")
    if not sizes and forbidden:
        return f"Expert parallelism: none possible; {forbidden.partition('; allowed')[0]}."
    if not sizes:
        return (
            f"Expert parallelism: none possible; no ep_size above 1 divides both "
            f"{paper.workload.config.moe.num_experts} experts and {paper.machine.gpus} ranks."
        )
    alone = paper.peak(stage, 1).total
    rows = {size: (paper.peak(stage, size).total, paper.cost(stage, size).total) for size in sizes}
    cost = paper.cost(stage, 1).total
    if memory is not None and alone > ROOM * memory:
        fitting = [size for size, (peak, _) in rows.items() if peak <= ROOM * memory]
        if fitting:
            return (
                f"Expert parallelism helps: ep_size 1 needs {alone / GIB:.2f} GiB a rank, above "
                f"{100 * ROOM:.0f}% of {memory / GIB:.1f} GiB; ep_size {fitting[0]} needs "
                f"{rows[fitting[0]][0] / GIB:.2f}."
            )
        return (
            f"Expert parallelism is not enough: ep_size {sizes[-1]} still needs "
            f"{rows[sizes[-1]][0] / GIB:.2f} GiB a rank of {memory / GIB:.1f}; take more ranks, "
            f"smaller micro-batches (train.accumulation), checkpointing or offload."
        )
    best = min(rows, key=lambda size: rows[size][1])
    peak, seconds = rows[best]
    saved = (alone - peak) / GIB
    sent = paper.sent(best) / 2**20
    if seconds < 0.98 * cost:
        return (
            f"Expert parallelism helps by the cost model: ep_size {best} takes "
            f"{1e3 * seconds:.1f} ms a step against {1e3 * cost:.1f}, because the experts' "
            f"gradients go round fewer ranks, and saves {saved:.2f} GiB a rank."
        )
    fits = "everything fits without it" if memory is not None else "unless memory is short"
    return (
        f"Expert parallelism does not help here, {fits}: ep_size {best} would save {saved:.2f} of "
        f"{alone / GIB:.2f} GiB a rank and send {sent:,.1f} MiB a rank and step "
        f"({1e3 * seconds:.1f} ms a step against {1e3 * cost:.1f} by the cost model)."
    )


def report(paper: RunOnPaper, memory: float | None, calibrated: dict | None) -> dict:
    """Return the plan as plain values: what `ds-moe-mtl plan --json` prints."""
    config, shape = paper.workload.config, paper.workload.shape
    flops = paper.flops
    rows = []
    for stage in paper.stages():
        for ep_size in paper.ep_sizes():
            if stage == 0 and ep_size > 1 and config.train.clip > 0:
                continue  # refused by train.py: the norm is not exact there
            peak, flat = paper.peak(stage, ep_size), paper.cost(stage, ep_size)
            rows.append(
                {
                    "zero_stage": stage,
                    "ep_size": ep_size,
                    "chosen": (stage, ep_size) == (paper.stage, config.moe.ep_size),
                    **peak._asdict(),
                    "peak": peak.total,
                    "fits": None if memory is None else peak.total <= ROOM * memory,
                    "sent_bytes": paper.sent(ep_size),
                    "cost_flat": flat._asdict() | {"total": flat.total},
                    "cost_hierarchical": paper.cost(stage, ep_size, hierarchical=True).total,
                }
            )
    return {
        "model": {
            "kind": config.model.kind,
            "encoder": paper.workload.plan.source.resolved,
            "random_weights": paper.workload.random,
            "shape": shape._asdict(),
            "precision": config.train.precision,
        },
        "parameters": paper.parameters._asdict() | {"total": paper.parameters.total},
        "flops_a_token": flops._asdict()
        | {"forward": flops.forward, "backward": flops.backward, "step": flops.step},
        "batch": {
            "examples": config.train.batch_size,
            "ranks": paper.machine.gpus,
            "tokens_a_rank": paper.tokens,
            "fullest_micro_batch": paper.sizes.most._asdict(),
            "attended": paper.sizes.attended,
        },
        "memory": rows,
        "advice": advice(paper, paper.stage, memory),
        "machine": paper.machine._asdict(),
        "formula": FORMULA,
        "calibrated": calibrated,
    }
