"""Which interface gloo is told to use; tests/distributed/test_hosts.py has it on real hosts."""

import pytest

from ds_moe_mtl.config import UserError
from ds_moe_mtl.ranks.interface import chosen
from ds_moe_mtl.ranks.watchdog import names_of

ETHERNET = {"eth0": "10.0.0.7"}


@pytest.mark.parametrize(
    ("addresses", "default_route", "name"),
    [
        ({"lo": "127.0.0.1"}, None, None),
        ({"lo": "127.0.0.1", "docker0": "172.17.0.1", "br-1f": "172.18.0.1"}, "docker0", None),
        ({"lo": "127.0.0.1", "docker0": "172.17.0.1", **ETHERNET}, None, "eth0"),
        ({**ETHERNET, "ib0": "10.1.0.7"}, "ib0", "ib0"),
    ],
)
def test_the_interface_is_the_only_one_or_the_default_routes(addresses, default_route, name):
    assert chosen(addresses, default_route) == name


def test_two_interfaces_of_which_neither_is_the_default_routes_are_told():
    with pytest.raises(UserError) as refused:
        chosen({**ETHERNET, "ib0": "10.1.0.7"}, None)
    told = str(refused.value)
    assert "eth0 (10.0.0.7), ib0 (10.1.0.7)" in told and "export GLOO_SOCKET_IFNAME=" in told


def test_ranks_are_called_by_their_hosts_where_there_are_several():
    assert names_of(["a", "a"]) == ["rank 0", "rank 1"]
    assert names_of(["a", "b"]) == ["rank 0 on a", "rank 1 on b"]
