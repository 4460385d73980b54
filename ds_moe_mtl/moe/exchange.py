"""How rows reach the ranks that hold their experts: at once, or gathered host by host.

P ranks of an expert group, L experts a rank; n hosts, g of the group's ranks on each, P = n * g.
The rank at place p of the group is the l-th of the h-th host, p = h * g + l.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import distributed as dist
from torch.profiler import record_function

from ds_moe_mtl.moe.hosts import HostGroups
from ds_moe_mtl.planner.traffic import ALL_TO_ALL
from moe_kernels.first_order import first_order


class AllToAll(NamedTuple):
    """Rows between the ranks of a group: send[i] of them to its i-th rank, receive[i] from it."""

    group: dist.ProcessGroup
    send: list[int]
    receive: list[int]

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        out = rows.new_empty((sum(self.receive), *rows.shape[1:]))
        with record_function(ALL_TO_ALL):
            dist.all_to_all_single(out, rows, self.receive, self.send, group=self.group)
        return out

    @property
    def back(self) -> "AllToAll":
        return AllToAll(self.group, self.receive, self.send)


class Transpose(NamedTuple):
    """Blocks of rows that lie as a matrix [m, k], laid out as [k, m]. sizes_MK: rows of each."""

    sizes_MK: list[list[int]]

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        blocks = rows.split([size for sizes_K in self.sizes_MK for size in sizes_K])
        width = len(self.sizes_MK[0])
        return torch.cat([block for k in range(width) for block in blocks[k::width]])

    @property
    def back(self) -> "Transpose":
        return Transpose([list(sizes_M) for sizes_M in zip(*self.sizes_MK, strict=True)])


Move = AllToAll | Transpose


class Exchange(NamedTuple):
    """What one call of a layer sends and gets, and the moves that bring it.

    sent, received: rows. received_PL: rows for each of this rank's experts, from each place.
    """

    sent: int
    received: int
    received_PL: torch.Tensor
    moves: tuple[Move, ...]

    def there(self, rows_RD: torch.Tensor) -> torch.Tensor:
        """Return what comes [Q, D], place by place, for rows [R, D] sorted by place and expert."""
        return _Carry.apply(rows_RD, self.moves)

    def back(self, rows_QD: torch.Tensor) -> torch.Tensor:
        """Return the answers [R, D] to the rows sent, in their order."""
        return _Carry.apply(rows_QD, _backwards(self.moves))


def flat_exchange(sent_PL: torch.Tensor, group: dist.ProcessGroup) -> Exchange:
    """Return an exchange in which every rank sends to every other; a collective call of `group`.

    sent_PL: rows for each expert of each place, int32. The host waits once, for the numbers of
    rows.
    """
    received_PL = _even(sent_PL.contiguous(), group)
    send, receive = torch.stack([sent_PL.sum(1), received_PL.sum(1)]).tolist()
    return Exchange(sum(send), sum(receive), received_PL, (AllToAll(group, send, receive),))


def hierarchical_exchange(sent_PL: torch.Tensor, hosts: HostGroups) -> Exchange:
    """Return an exchange that gathers rows within hosts first; a collective call of the group.

    What goes to the l-th rank of any host goes to the l-th rank of this host, and with what the
    others here have for it across hosts, in one message a host: g + n - 2 messages a rank, not
    P - 1. What comes is the flat exchange's, row for row. The counts travel the same way, and the
    host waits once.
    """
    n, g = hosts.num_hosts, hosts.per_host
    local = sent_PL.shape[1]
    sent_HGL = sent_PL.view(n, g, local)
    # From each rank of this host, its rows for the ranks of this rank's place on each host.
    gathered_GHL = _even(sent_HGL.transpose(0, 1).contiguous(), hosts.inside)
    received_HGL = _even(gathered_GHL.transpose(0, 1).contiguous(), hosts.across)
    counts = torch.stack([sent_HGL.sum(2), gathered_GHL.sum(2).T, received_HGL.sum(2)])
    sent_HG, gathered_HG, received_HG = counts.tolist()
    sent_GH, gathered_GH = _transposed(sent_HG), _transposed(gathered_HG)
    moves = (
        Transpose(sent_HG),
        AllToAll(hosts.inside, _sums(sent_GH), _sums(gathered_GH)),
        Transpose(gathered_GH),
        AllToAll(hosts.across, _sums(gathered_HG), _sums(received_HG)),
    )
    sent, received = sum(_sums(sent_HG)), sum(_sums(received_HG))
    return Exchange(sent, received, received_HGL.view(n * g, local), moves)


class _Carry(torch.autograd.Function):
    """The moves of rows; their gradient is the moves back."""

    @staticmethod
    def forward(ctx, rows: torch.Tensor, moves: Sequence[Move]) -> torch.Tensor:
        ctx.moves = moves
        return _moved(rows, moves)

    @staticmethod
    @first_order
    def backward(ctx, grad: torch.Tensor):
        return _moved(grad, _backwards(ctx.moves)), None


def _moved(rows: torch.Tensor, moves: Sequence[Move]) -> torch.Tensor:
    rows = rows.contiguous()
    for move in moves:
        rows = move(rows)
    return rows


def _backwards(moves: Sequence[Move]) -> tuple[Move, ...]:
    return tuple(move.back for move in reversed(moves))


def _even(rows: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """Return an all-to-all of as many rows to every rank, in the shape of what is sent."""
    received = torch.empty_like(rows)
    with record_function(ALL_TO_ALL):
        dist.all_to_all_single(received, rows, group=group)
    return received


def _sums(sizes: Sequence[Sequence[int]]) -> list[int]:
    return [sum(row) for row in sizes]


def _transposed(sizes: Sequence[Sequence[int]]) -> list[list[int]]:
    return [list(column) for column in zip(*sizes, strict=True)]
