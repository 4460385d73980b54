"""The one exception that means: the user can mend this."""

from collections.abc import Iterable


class UserError(ValueError):
    """A user's mistake, told in one line: what is wrong, where, and what is allowed.

    lines: that line; of several mistakes at once a line each.
    """

    def __init__(self, line: str):
        super().__init__(_on_one_line(line))
        self.lines: tuple[str, ...] = (str(self),)


class SeveralErrors(UserError):
    """Several mistakes that are told at once, in a line each."""

    def __init__(self, lines: Iterable[str]):
        kept = tuple(map(_on_one_line, lines))
        super().__init__("; ".join(kept))
        self.lines = kept

    def __reduce__(self):
        """Come back from another process with all lines."""
        return type(self), (self.lines,)


class RankError(UserError):
    """A mistake that one rank alone has met (its disk is full, say): that rank tells it."""


class Unmet(RankError):
    """The ranks have not met; nothing need be mended, and another start may do."""


class Diverged(UserError):
    """A training whose numbers are no longer finite; its configuration is right in form."""


def _on_one_line(line: str) -> str:
    """Return a line that breaks neither itself nor the terminal, whatever a user typed."""
    return "".join(part if part.isprintable() else " " for part in line)
