"""The runs of one command: one, or one for each task, and the result that they leave together."""

import gc
import time
from collections.abc import Callable, Sequence

from ds_moe_mtl.config.files import write_json
from ds_moe_mtl.ranks.machine import environment
from ds_moe_mtl.ranks.rendezvous import Ranks
from ds_moe_mtl.training.contents import refuse_other_data
from ds_moe_mtl.training.hooks import Hook
from ds_moe_mtl.training.loop import TrainingLoop
from ds_moe_mtl.training.plan import RunPlan, single_plans
from ds_moe_mtl.training.results import gather_results
from ds_moe_mtl.training.run import Run, Shared
from ds_moe_mtl.training.run_folder import RunFolder

HookMakers = Sequence[Callable[[Run], Hook]]
"""What a caller adds to the hooks of each run: called on every rank when the run is restored."""


def group_of(plan: RunPlan, folder: RunFolder, say: Callable[[str], None]) -> "RunGroup":
    """Return the runs of a plan, whose folder is `folder`."""
    if plan.config.model.kind == "single":
        return SingleTaskRuns(plan, folder, say)
    folder.steps = plan.total_steps
    return RunGroup(folder, [Run(plan, folder)])


class RunGroup:
    """Runs in a row; here a single one, whose result is the command's."""

    def __init__(self, folder: RunFolder, runs: Sequence[Run]) -> None:
        self.folder = folder
        self.folders = list(dict.fromkeys([folder, *(run.folder for run in runs)]))
        self.models = [run.folder.path / "model" for run in runs]
        self._waiting = list(runs)

    def build_first(self, deepspeed: dict, ranks: Ranks) -> None:
        """Build the first run that is not finished: what is wrong shows before the ranks meet.

        Raises UserError where a finished run's data has changed since, too.
        """
        for run in self._waiting:
            refuse_other_data(run.folder.finished(), run.plan)
        for run in self._waiting:
            if run.folder.finished() is None:
                return run.build(deepspeed, ranks.world_size)

    def train(self, shared: Shared, hooks: HookMakers = ()) -> dict | None:
        """Train what is not finished; return the results, or None when stopped on request."""
        self._begin(shared)
        parts = []
        while self._waiting:
            part = self._waiting[0].folder.finished()
            if part is None:
                part = _train_run(self._waiting[0], shared, hooks)
            if part is None:
                return None
            del self._waiting[0]
            gc.collect()  # an engine is full of cycles: its memory waits for this
            parts.append(part)
        return self._gather(parts, shared)

    def _begin(self, shared: Shared) -> None:
        """Write what the group's own folder has at its start."""

    def _gather(self, parts: list[dict], shared: Shared) -> dict:
        return parts[0]


class SingleTaskRuns(RunGroup):
    """A run for each task under run.dir/<task>, and one results.json of all."""

    def __init__(self, plan: RunPlan, folder: RunFolder, say: Callable[[str], None]) -> None:
        plans = single_plans(plan)
        super().__init__(folder, [Run(part, RunFolder(part.config, say)) for part in plans])
        self.specs = plan.specs

    def _begin(self, shared: Shared) -> None:
        if shared.ranks.rank == 0:
            about = environment(shared.ranks, shared.device, {"model_kind": "single"})
            self.folder.write_start(shared.deepspeed, about)

    def _gather(self, parts: list[dict], shared: Shared) -> dict:
        names = [spec.name for spec in self.specs]
        results = gather_results(dict(zip(names, parts, strict=True)), self.specs)
        if shared.ranks.rank == 0:
            write_json(self.folder.path / "results.json", results)
        return results


def _train_run(run: Run, shared: Shared, hooks: HookMakers) -> dict | None:
    """Return the results of one run, or None when it was stopped; a collective call."""
    began = time.perf_counter()
    run.prepare(shared)
    run.restore()
    loop = TrainingLoop(run, [make(run) for make in hooks])
    shared.say(f"ready in {time.perf_counter() - began:.1f} s")
    try:
        state = loop.train()
    finally:
        run.close()
    if state.stopped:
        who = shared.stop.signal_name or "another rank"
        shared.say(f"stopped by {who}; start it again to continue")
        return None
    return run.finish(state.step)
