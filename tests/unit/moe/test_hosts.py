"""Where rows can be gathered within hosts, and the line that says why not."""

import pytest

from ds_moe_mtl.config import UserError
from ds_moe_mtl.moe.hosts import ranks_a_host


@pytest.mark.parametrize(
    ("ep_size", "hosts", "per_host"),
    [(4, "aabb", 2), (4, "aabbccdd", 2), (8, "aabbccdd", 2), (8, "aaaabbbb", 4), (6, "aaabbb", 3)],
)
def test_groups_that_lie_alike_over_hosts_are_taken(ep_size, hosts, per_host):
    assert ranks_a_host(ep_size, hosts) == per_host


@pytest.mark.parametrize(
    ("ep_size", "hosts", "fault"),
    [
        (4, "aaaa", "ranks 0 to 3, which share experts, no row leaves its host: all 4 on a"),
        (4, "aabbaaaa", "ranks 4 to 7, which share experts, no row leaves its host: all 4 on a"),
        (4, "abcd", "nothing to gather within a host: 1 on a, 1 on b, 1 on c, 1 on d"),
        (4, "aaab", "hosts have unequal numbers of them: 3 on a, 1 on b"),
        (4, "abab", "the ranks of a host do not follow one another: 1 on a, 1 on b, 1 on a, 1 on"),
        (8, "aabbbbaa", "do not follow one another: 2 on a, 4 on b, 2 on a"),
    ],
)
def test_others_are_refused_with_the_reason_and_what_is_allowed(ep_size, hosts, fault):
    with pytest.raises(UserError) as error:
        ranks_a_host(ep_size, hosts)
    line = str(error.value)
    assert fault in line and line.startswith("moe.exchange = hierarchical, but of ranks ")
    assert "; allowed: flat" in line and "\n" not in line


def test_groups_of_different_shapes_are_refused():
    with pytest.raises(UserError, match="expert groups have 2 ranks a host here and 3 there"):
        ranks_a_host(6, "aabbcc" + "dddeee")
