"""The one exception that means: the user can mend this."""


class UserError(ValueError):
    """A user's mistake, told in one line: what is wrong, where, and what is allowed."""
