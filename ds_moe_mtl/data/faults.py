"""What is wrong with the rows of one file: every kind of fault once, counted, in one line."""

from collections.abc import Hashable

from ds_moe_mtl.config import UserError

MOST_KINDS = 4
"""Kinds of faults that one line tells; it counts the others."""


class Faults:
    """The bad rows of one file so far."""

    def __init__(self, origin: str) -> None:
        """origin: what to call the file."""
        self.origin = origin
        self._found: dict[Hashable, list] = {}

    def add(self, kind: Hashable, line: str) -> None:
        """Count a bad row; `line` says where it is and what is wrong, and is kept of the first."""
        self._found.setdefault(kind, [line, 0])[1] += 1

    def check(self) -> None:
        """Raise UserError, one line, where there are bad rows: the first of each kind first."""
        if not self._found:
            return
        lines = [
            line + (f" ({count:,} such rows)" if count > 1 else "")
            for line, count in self._found.values()
        ]
        more = len(lines) - MOST_KINDS
        if more > 0:
            rows = sum(count for _, count in list(self._found.values())[MOST_KINDS:])
            lines[MOST_KINDS:] = [f"and {more} more kinds of bad rows ({rows:,} rows)"]
        raise UserError(f"{self.origin}: {'; '.join(lines)}")
