"""What happens beside the steps of a run, in one order (ORDER) after each of them:

    Watch    before the step the watchdog is told that the run goes on
    Trace    the profiler is told that a step is done
    Log      the step is counted; a logged step has its losses and rates put into the row
    Dev      where an evaluation is due it is made, and its scores put into the row
    Select   a better model is kept; patience may end the run
    Write    the row and an evaluation's routes go into metrics.jsonl and to the trackers
    Save     a checkpoint is written where one is due, or where the ranks agree to stop

and then the hooks that a caller adds. So a checkpoint never lacks what was logged or scored at its
step, and what a caller's hook does comes when the step is safe.
"""

from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Protocol

from ds_moe_mtl.engine.native import write_monitors
from ds_moe_mtl.tracking.memory import peak_memory
from ds_moe_mtl.tracking.progress import Clock, progress_line, scores_line
from ds_moe_mtl.tracking.trace import StepTrace
from ds_moe_mtl.training.dev import Evaluation, evaluate
from ds_moe_mtl.training.run import Run
from ds_moe_mtl.training.step import StepOutcome
from ds_moe_mtl.training.window import Window

AGREE_EVERY_ON_GPU = 8
"""Steps between two agreements on a stop request; each makes the host wait for the GPU."""


@dataclass
class LoopState:
    """Where a run stands; one for all hooks, which may change it, on all ranks alike."""

    step: int  # steps done
    last: bool  # no step comes after this one
    row: dict = field(default_factory=dict)  # what metrics.jsonl gets of this step, from "step" on
    outcome: StepOutcome | None = None  # of this step; None where it was taken before a restart
    evaluation: Evaluation | None = None  # the newest
    cut_short: bool = False  # this step's evaluation was ended by a request to stop
    stopped: bool = False  # the run ends here with a checkpoint, to be continued
    paused: bool = True  # something but a step took time since the last one

    @property
    def fresh(self) -> Evaluation | None:
        """The evaluation that was made after this very step, None where none was."""
        made = self.evaluation
        return made if made is not None and made.step == self.step else None


class Hook(Protocol):
    """Something that happens beside the steps; a subclass overrides what it needs.

    All ranks call the same hooks in the same order, so each may make collective calls.
    """

    def before_step(self, state: LoopState) -> None:
        """Called before the step after `state.step` steps."""

    def after_step(self, state: LoopState) -> None:
        """Called after each step, also that at which the run is stopped."""

    def on_end(self, state: LoopState) -> None:
        """Called once after the last step of a run that was not stopped."""

    def close(self) -> None:
        """Called once however the run ends, after an error too."""


class RunHook(Hook):
    """A hook of a run."""

    def __init__(self, run: Run) -> None:
        self.run = run


class Watch(RunHook):
    """Tells the watchdog of each step before it begins."""

    def before_step(self, state: LoopState) -> None:
        self.run.shared.watchdog.progress(state.step + 1)


class Trace(Hook):
    """Traces the steps that train.profile asks for."""

    def __init__(self, run: Run) -> None:
        shared = run.shared
        steps = run.config.train.profile
        self.trace = StepTrace(steps, run.folder.path, shared.ranks.rank, shared.say)

    def after_step(self, state: LoopState) -> None:
        if state.outcome is not None:
            self.trace.step()

    def close(self) -> None:
        self.trace.close()


class Log(RunHook):
    """Counts steps, and puts what they brought since the last row into a logged step's row."""

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self.window = Window(len(run.plan.specs), run.shared.device)
        self.clock = Clock(run.plan.total_steps, run.plan.eval_every)

    def before_step(self, state: LoopState) -> None:
        if state.fresh is not None:
            self.clock.evaluated()
        if state.paused:
            self.window.start(state.step, self.run.loader.stall_seconds)
            state.paused = False

    def after_step(self, state: LoopState) -> None:
        if state.outcome is None:
            return
        self.window.add(state.outcome)
        self.clock.step_ends()
        if not self.run.is_logged(state.step):
            return
        run, stalled = self.run, self.run.loader.stall_seconds
        row = self.window.row(state.step, [spec.name for spec in run.plan.specs])
        row["lr"] = run.engine.optimizer.param_groups[0]["lr"]
        if state.outcome.norm is not None:
            row["grad_norm"] = state.outcome.norm
        if run.skipped.count:
            row["skipped"] = run.skipped.count
        row |= self.window.waiting(stalled) | peak_memory(run.shared.device)
        left = self.clock.left(state.step, row["steps_per_s"])
        run.shared.say(progress_line(row, run.plan.total_steps, left))
        state.row.update(row)
        self.window.start(state.step, stalled)


class Dev(RunHook):
    """Evaluates after the last step and every train.eval_every; a request to stop ends it early."""

    def after_step(self, state: LoopState) -> None:
        every = self.run.plan.eval_every
        if state.last or (every and state.step % every == 0):
            self._evaluate(state)

    def on_end(self, state: LoopState) -> None:
        if state.evaluation is None and self.run.selection is None:
            self._evaluate(state)  # the run was continued after its last step

    def _evaluate(self, state: LoopState) -> None:
        run, shared = self.run, self.run.shared

        def goes_on() -> bool:
            shared.watchdog.progress(state.step, "dev scores")
            return not shared.stop.agreed(shared.device)

        shared.watchdog.progress(state.step, "dev scores")
        wants_losses = run.config.train.select == "dev_loss"
        network = run.engine.module
        with run.averaged() if state.step == run.plan.total_steps else nullcontext():
            made = evaluate(network, run.plan, shared.device, state.step, wants_losses, goes_on)
        state.paused = True
        if made is None:
            state.cut_short = state.stopped = True
            return
        state.evaluation = run.evaluation = made
        values = {name: result["value"] for name, result in made.results.items()}
        shared.say(scores_line(state.step, values))
        state.row.update({f"dev/{name}": value for name, value in values.items()})
        state.row.update({f"dev_loss/{name}": loss for name, loss in made.losses.items()})


class Select(RunHook):
    """Offers each evaluated model to the run's selection, whose patience may end the run."""

    def after_step(self, state: LoopState) -> None:
        selection, made = self.run.selection, state.fresh
        if selection is not None and made is not None:
            selection.offer(state.step, made.results, made.losses)
            state.last = state.last or selection.exhausted


class Write(RunHook):
    """Writes the step's row, if it tells anything; one whose scores are missing is left behind."""

    def after_step(self, state: LoopState) -> None:
        if state.cut_short:
            self.run.owe(state.row)
        elif self.run.log is not None and len(state.row) > 1:
            self.run.log.write(state.row)
            write_monitors(self.run.engine, state.row)
            if state.fresh is not None:
                self.run.log.evaluated(state.step, state.fresh.routes)
        if state.outcome is None and not state.cut_short:
            self.run.pay()

    def on_end(self, state: LoopState) -> None:
        if self.run.log is not None:
            self.run.log.finish()


class Save(RunHook):
    """Writes checkpoints: every train.save_every steps, where ranks agree to stop, at the end."""

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self.saved = run.first_step

    def after_step(self, state: LoopState) -> None:
        every = self.run.config.train.save_every
        if every and state.step % every == 0 and not state.last:
            self._save(state)
        if not state.last and not state.stopped:
            state.stopped = self._stop_agreed(state.step)
        if state.stopped:
            self._save(state)

    def on_end(self, state: LoopState) -> None:
        if self.run.config.train.keep_checkpoints:
            self._save(state)

    def _save(self, state: LoopState) -> None:
        if state.step != self.saved:
            self.run.save(state.step)
            self.saved, state.paused = state.step, True

    def _stop_agreed(self, step: int) -> bool:
        shared = self.run.shared
        if shared.device.type == "cuda" and step % AGREE_EVERY_ON_GPU:
            return False
        return shared.stop.agreed(shared.device)


ORDER = (Watch, Trace, Log, Dev, Select, Write, Save)
"""The hooks of every run, as they are called."""
