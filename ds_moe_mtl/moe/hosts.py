"""Which ranks of an expert group share a host, and the groups in which its rows cross hosts."""

import socket
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from torch import distributed as dist

from ds_moe_mtl.config import UserError


class HostGroups(NamedTuple):
    """This rank's groups, in an expert group over num_hosts hosts with per_host ranks on each.

    inside: the ranks of its expert group on its host; across: those of its place on their hosts.
    """

    inside: dist.ProcessGroup
    across: dist.ProcessGroup
    num_hosts: int
    per_host: int


def hosts_of_ranks() -> list[str]:
    """Return the host name of every rank, in rank order; a collective call of all ranks.

    Ranks of one name are taken to share a host. Where two hosts have one name, or one host two
    (containers), rows travel another way than was meant; where they arrive is the same.
    """
    names = [None] * dist.get_world_size()
    dist.all_gather_object(names, socket.gethostname())
    return names


def host_groups(ep_size: int, hosts: Sequence[str]) -> HostGroups:
    """Return this rank's groups where ep_size consecutive ranks share experts.

    hosts: of all ranks, in rank order. A collective call of all ranks. Raises UserError, the same
    on every rank, where the expert groups do not lie alike over hosts (ranks_a_host).
    """
    per_host, world = ranks_a_host(ep_size, hosts), len(hosts)
    inside = [list(range(first, first + per_host)) for first in range(0, world, per_host)]
    across = [
        list(range(first + place, first + ep_size, per_host))
        for first in range(0, world, ep_size)
        for place in range(per_host)
    ]
    return HostGroups(
        dist.new_subgroups_by_enumeration(inside)[0],
        dist.new_subgroups_by_enumeration(across)[0],
        ep_size // per_host,
        per_host,
    )


def ranks_a_host(ep_size: int, hosts: Sequence[str]) -> int:
    """Return how many ranks of an expert group lie on each of its hosts.

    Raises UserError where rows cannot be gathered within hosts, or that would be useless: an expert
    group within one host, hosts with one rank of it, with unequal numbers, or in turn.
    """
    found = set()
    for first in range(0, len(hosts), ep_size):
        runs = [(name, len(list(run))) for name, run in groupby(hosts[first : first + ep_size])]
        names, sizes = zip(*runs, strict=True)
        where = ", ".join(f"{size} on {name}" for name, size in runs)
        if len(runs) == 1:
            fault = f"no row leaves its host: all {where}"
        elif len(set(names)) < len(names):
            fault = f"the ranks of a host do not follow one another: {where}"
        elif len(set(sizes)) > 1:
            fault = f"hosts have unequal numbers of them: {where}"
        elif sizes[0] == 1:
            fault = f"there is nothing to gather within a host: {where}"
        else:
            found.add(sizes[0])
            continue
        raise UserError(
            f"moe.exchange = hierarchical, but of ranks {first} to {first + ep_size - 1}, which "
            f"share experts, {fault}; allowed: flat, or expert groups over several hosts with as "
            "many ranks on each, above 1"
        )
    if len(found) > 1:
        raise UserError(
            f"moe.exchange = hierarchical, but expert groups have {min(found)} ranks a host here "
            f"and {max(found)} there; allowed: flat, or as many ranks on each host"
        )
    return found.pop()
