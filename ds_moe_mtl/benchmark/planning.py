"""The plan of a run before it runs: weights, FLOPs, memory, traffic, step time, and what fits."""

from dataclasses import dataclass
from math import isfinite

from ds_moe_mtl.benchmark.advice import ROOM, advice, advised, ways_out
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
from ds_moe_mtl.planner.compute import Batch
from ds_moe_mtl.planner.cost import FORMULA, StepCost, Work, row_bytes, sent_bytes, step_cost
from ds_moe_mtl.planner.flops import Flops, Parameters, count_flops, count_parameters
from ds_moe_mtl.planner.levers import NO_LEVERS, Levers
from ds_moe_mtl.planner.memory import Peak, activation_bytes, peak_bytes, split_weights
from ds_moe_mtl.planner.network import Machine, has_hierarchy, hierarchy_pays_below

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
            flash=self.on_gpu and config.train.precision != "fp32" and not shape.relative,
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

    def work(self) -> Work:
        """Return what one rank does in a step, for the cost model."""
        config, sizes = self.workload.config, self.sizes
        return Work(
            self.workload.shape,
            self.flops,
            Batch(
                sizes.mean.real,
                sizes.sequences,
                sizes.places,
                sizes.micro_batches,
                sizes.places_within,
            ),
            split_weights(self.parameters),
            config.train.precision,
            config.moe.num_experts if self.sparse else 0,
            self.levers,
            config.model.dropout > 0,
            self.piece,
        )

    def cost(self, stage: int, ep_size: int, hierarchical: bool = False) -> StepCost:
        """Return the cost model's step."""
        return step_cost(self.work(), self.machine, stage, ep_size, hierarchical)

    def exchange(self, ep_size: int) -> dict | None:
        """Return which all-to-all of rows is cheaper by the cost model; None: there is but one.

        bytes: of rows that a rank brings into an exchange; hierarchical_below: how many it may be
        for the hierarchical one to be cheaper, None: any number.
        """
        if not has_hierarchy(ep_size, self.machine):
            return None
        size, most = row_bytes(self.work()), hierarchy_pays_below(ep_size, self.machine)
        return {
            "cheaper": "hierarchical" if size < most else "flat",
            "bytes": size,
            "hierarchical_below": most if isfinite(most) else None,
        }

    def on_one_gpu(self) -> "RunOnPaper":
        """Return the same run on one GPU. Raises UserError where it cannot be had."""
        workload = self.workload.of_kind(self.workload.config.model.kind)
        return on_paper(workload, self.machine._replace(gpus=1, per_node=1), self.on_gpu)


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
    sizes = batch_sizes(plan, machine.gpus, window=shape.window)
    if gpu and config.train.precision != "fp32" and not shape.relative:
        sizes = sizes.unpadded()
    heads_a_token = sizes.sequences / max(sizes.mean.real, 1.0)
    levers = levers_of(config, shape, sizes.tasks, sizes.mean.real) if sparse else NO_LEVERS
    return RunOnPaper(
        workload,
        machine,
        sizes,
        count_parameters(shape, experts, gates, heads, config.model.pooler, levers),
        count_flops(
            shape,
            sizes.attended,
            experts,
            gates,
            heads,
            heads_a_token,
            levers,
            sizes.attended_within,
        ),
        zero["stage"],
        int(bucket) * (2 if zero.get("overlap_comm") else 1),
        gpu and zero.get("offload_optimizer", {}).get("device") == "cpu",
        UPDATE_PIECE["cuda" if gpu else "cpu"] if updates_in_one_pass(deepspeed) else None,
        gpu,
        levers,
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
            peak = paper.peak(stage, ep_size)
            flat, layered = (paper.cost(stage, ep_size, kind) for kind in (False, True))
            rows.append(
                {
                    "zero_stage": stage,
                    "ep_size": ep_size,
                    "chosen": (stage, ep_size) == (paper.stage, config.moe.ep_size),
                    **peak._asdict(),
                    "peak": peak.total,
                    "fits": None if memory is None else peak.total <= ROOM * memory,
                    "sent_bytes": paper.sent(ep_size),
                    "cost_flat": _as_dict(flat),
                    "cost_hierarchical": layered.total,
                    "exchange": paper.exchange(ep_size),
                }
            )
    chosen = advised(rows, paper.stage)
    for row in rows:
        row["advised"] = row is chosen
    return {
        "model": {
            "kind": config.model.kind,
            "encoder": paper.workload.encoder,
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
        "advice": advice(paper, rows, chosen, memory),
        "ways_out": ways_out(paper, rows, memory),
        "machine": paper.machine._asdict(),
        "formula": FORMULA,
        "calibrated": calibrated,
    }


def _as_dict(cost: StepCost) -> dict[str, float]:
    return cost._asdict() | {"network": cost.network, "total": cost.total}
