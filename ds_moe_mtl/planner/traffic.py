"""What expert parallelism sends: a training step's all-to-all bytes, counted before a run.

P ranks of an expert group, E experts, L = E / P experts a rank, T tokens a rank, D hidden size.
"""

from collections.abc import Sequence

ALL_TO_ALL = "ds_moe_mtl::all_to_all"
"""The name of an exchange, waiting and all, in torch.profiler's traces."""

ROW_TRANSFERS = 4
"""Times a routed row crosses a layer: dispatch and combine, forward and backward."""

COUNT_BYTES = 4
"""An expert's row count travels as int32, once a layer and forward."""


def remote_rows(counts_E: Sequence[int], place: int, num_ranks: int) -> int:
    """Return the rows that leave a rank: those routed to experts of other ranks of its group.

    counts_E: this rank's routed rows an expert. place: this rank's place among the num_ranks of
    its group; the rank at place p holds experts p * L to (p + 1) * L.
    """
    local = len(counts_E) // num_ranks
    return sum(counts_E) - sum(counts_E[place * local : (place + 1) * local])


def expected_remote_rows(num_tokens: int, num_ranks: int) -> float:
    """Return the rows that leave a rank where routes are uniform: T * (P - 1) / P."""
    return num_tokens * (num_ranks - 1) / num_ranks


def all_to_all_bytes(
    rows_out: Sequence[float],
    rows_in: Sequence[float],
    hidden_size: int,
    element_bytes: int,
    num_experts: int,
    num_ranks: int,
) -> float:
    """Return the bytes that one rank sends to others in all-to-all in one training step.

    rows_out: for each MoE layer call of the step (layers x micro-batches) the rows this rank
    routes to other ranks; rows_in: those that other ranks route to it. element_bytes: 2 for bf16
    and fp16, 4 for fp32. A row sent out is sent again as its gradient's answer: dispatch forward
    and combine backward send rows_out, combine forward and dispatch backward send rows_in. So a
    call sends

        2 * (rows_out + rows_in) * D * element_bytes  +  (P - 1) * L * 4

    the last term for the exchange of counts. Where routes are uniform, rows_out = rows_in =
    T * (P - 1) / P, and that is 4 * T * (P - 1) / P * D * element_bytes. What a rank keeps for its
    own experts is not sent, and with one rank in the group nothing is. Evaluation adds to it
    without the backward half.
    """
    local = num_experts // num_ranks
    rows = sum(rows_out) + sum(rows_in)
    counts = len(rows_out) * (num_ranks - 1) * local * COUNT_BYTES
    return ROW_TRANSFERS / 2 * rows * hidden_size * element_bytes + counts
