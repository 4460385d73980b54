"""The learning rate as a pure function of the step: nothing to save, nothing to restore."""


def learning_rate(step: int, total_steps: int, warmup_steps: int, peak: float) -> float:
    """Return the rate of step `step` (from 0): linear warm-up to `peak`, then linear decay to 0.

    Source: "Sparsely Activated MoE are Robust Multi-Task Learners", sec. 4.4. The first step's
    rate is peak / warmup_steps, the last one's peak / (total_steps - warmup_steps): neither is 0.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    return peak * (total_steps - step) / max(total_steps - warmup_steps, 1)
