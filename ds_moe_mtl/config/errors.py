"""The one exception that means: the user can mend this."""


class UserError(ValueError):
    """A user's mistake, told in one line: what is wrong, where, and what is allowed."""

    def __init__(self, line: str):
        # What a user typed may stand in it; it must not break the line or the terminal.
        super().__init__("".join(part if part.isprintable() else " " for part in line))


class RankError(UserError):
    """A mistake that one rank alone has met (its disk is full, say): that rank tells it."""


class Diverged(UserError):
    """A training whose numbers are no longer finite; its configuration is right in form."""
