"""Exit statuses of a run that another start may continue."""

HUNG = 70
"""Of every rank of a run that hung, or that lost a rank (EX_SOFTWARE)."""

STOPPED = 75
"""Of a run that was asked to stop and has checkpointed (EX_TEMPFAIL: try again)."""
