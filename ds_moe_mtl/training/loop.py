"""The training loop: super-batches in, steps, and after each of them the hooks."""

from collections.abc import Sequence

from ds_moe_mtl.training.hooks import ORDER, Hook, LoopState
from ds_moe_mtl.training.run import Run


class TrainingLoop:
    """Takes the steps of a run that is prepared and restored."""

    def __init__(self, run: Run, hooks: Sequence[Hook] = ()) -> None:
        """hooks: called after those of every run (hooks.ORDER), in the order given."""
        self.run = run
        self.hooks: list[Hook] = [*(kind(run) for kind in ORDER), *hooks]

    def train(self) -> LoopState:
        """Take all steps that are left and return where the run stands; a collective call.

        `stopped`: after a checkpoint, on request. Else it is done; the selection's patience may
        have ended it before its last step: `step` says where.
        """
        try:
            return self._train()
        finally:
            for hook in self.hooks:
                hook.close()

    def _train(self) -> LoopState:
        run = self.run
        selection, total = run.selection, run.plan.total_steps
        exhausted = selection is not None and selection.exhausted
        state = LoopState(run.first_step, run.first_step >= total or exhausted)
        run.engine.train()
        if run.owed is not None:
            state.row = dict(run.owed)
            self._after_step(state)
        batches = iter(run.loader)
        while not state.last and not state.stopped:
            for hook in self.hooks:
                hook.before_step(state)
            micro_batches, num_examples = next(batches)
            state.outcome = run.step(state.step, micro_batches, num_examples)
            state.step += 1
            state.last = state.step == total
            state.row = {"step": state.step}
            self._after_step(state)
        if not state.stopped:
            for hook in self.hooks:
                hook.on_end(state)
        run.loader.close()
        if state.step > run.first_step and not state.stopped:
            run.shared.say(
                f"padding: {100 * run.loader.attention_padding:.0f}% of the tokens that attention "
                f"saw on this rank, none elsewhere"
            )
        return state

    def _after_step(self, state: LoopState) -> None:
        for hook in self.hooks:
            hook.after_step(state)
