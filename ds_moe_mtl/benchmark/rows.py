"""What turns a contest's times into rows: tokens, examples, FLOPs, the machine's rates."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median, quantiles

from ds_moe_mtl.benchmark.contestants import STOCK, TRAINER, of_kind
from ds_moe_mtl.benchmark.rounds import Times
from ds_moe_mtl.benchmark.steps import Step
from ds_moe_mtl.benchmark.workload import Workload, levers_of
from ds_moe_mtl.models.task_fit import head_specs
from ds_moe_mtl.planner.flops import count_flops, meetings
from ds_moe_mtl.planner.levers import NO_LEVERS


@dataclass(frozen=True)
class Rates:
    """Operations a second: of a product measured in this run; of the card's peak, where known."""

    product: float
    peak: float | None


class About:
    """What a contest brings. windows: the steps of each round; the first `warm_up` do not count."""

    def __init__(
        self, workload: Workload, world_size: int, windows: Sequence[Sequence[Step]], warm_up: int
    ) -> None:
        self.workload, self.world_size, self.warm_up = workload, world_size, warm_up
        self.tokens = [
            sum(batch.num_tokens for step in window for batch in step[0]) / len(window)
            for window in windows
        ]
        calls = [batch for window in windows for step in window for batch in step[0]]
        tokens = max(sum(batch.num_tokens for batch in calls), 1)
        lengths, window = [batch.cu_seqlens.diff() for batch in calls], workload.shape.window
        self.attended = sum(map(meetings, lengths)) / tokens
        self.attended_within = sum(meetings(of_call, window) for of_call in lengths) / tokens
        self.sequences_a_token = sum(batch.num_sequences for batch in calls) / tokens
        self.tasks = sum(len(batch.task_ids_B.unique()) for batch in calls) / len(calls)
        self.call_tokens = tokens / len(calls)

    def rows(self, times: dict[str, Times], parts: Sequence[str], rates: Rates) -> dict[str, dict]:
        """Return a row a contestant."""
        counted = range(self.warm_up, len(self.tokens))
        batch_size = self.workload.config.train.batch_size
        tokens = median(self.tokens[i] for i in counted)
        dense, rows = times["mt_dense"].whole, {}
        for name, found in times.items():
            low, middle, high = quantiles([1e3 * found.whole[i] for i in counted], n=4)
            done = self._flops(name) * tokens / (middle / 1e3)
            rows[name] = {
                "ms": middle,
                "quartiles_ms": [low, high],
                **{
                    f"{part}_ms": 1e3 * median(getattr(found.splits[i], part) for i in counted)
                    for part in parts
                },
                "parts_apart": found.apart,
                "examples_per_s": 1e3 * batch_size / middle,
                "tokens_per_s": 1e3 * tokens * self.world_size / middle,
                "mfu": None if rates.peak is None else done / rates.peak,
                "utilisation": done / rates.product,
                "ratio": median(found.whole[i] / dense[i] for i in counted),
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
            kind = of_kind(self.workload, name, 1).config
            levers = levers_of(kind, self.workload.shape, self.tasks, self.call_tokens)
        return count_flops(
            self.workload.shape,
            self.attended,
            experts,
            int(experts > 0),
            heads,
            self.sequences_a_token,
            levers,
            self.attended_within,
        ).step
