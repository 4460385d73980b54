"""The scores of several runs side by side, as the page shows them (studies.scoreboard)."""

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Estimate:
    """A score or a difference in the metric's points; low and high: its 95% interval, or None."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def excludes_zero(self) -> bool:
        """Whether an interval is there and 0 outside it."""
        return self.low is not None and (self.low > 0 or self.high < 0)


@dataclass(frozen=True)
class ScoreRow:
    """One task (or "mean over tasks"): by run its score, and its difference to the first run's.

    None where a run lacks the task, and where a difference is none: another metric, other dev rows.
    """

    task: str
    metric: str
    examples: int
    scores: tuple[Estimate | None, ...]
    deltas: tuple[Estimate | None, ...]  # one shorter than scores: the first run has none


@dataclass(frozen=True)
class Scoreboard:
    """All tasks of all runs, and the mean where all have the same tasks. notes: sentences."""

    rows: tuple[ScoreRow, ...]
    mean: ScoreRow | None
    notes: tuple[str, ...]

    def to_dict(self) -> dict:
        """The scoreboard as plain JSON values."""
        return asdict(self)
