"""Which of a machine's network interfaces gloo has to use, where it would take the wrong one.

gloo tells the other ranks the address that this machine's own name stands for. Debian and Ubuntu
write "127.0.1.1 NAME" into /etc/hosts, and a name may be unknown to its own machine: gloo then
tells them the loopback, and they wait for half an hour.
"""

import fcntl
import ipaddress
import socket
import struct
import sys
from collections.abc import Mapping
from pathlib import Path

from ds_moe_mtl.config import UserError

VIRTUAL = ("lo", "docker", "br-", "veth", "virbr")
"""How interfaces begin that lead to no other machine."""

_SIOCGIFADDR = 0x8915  # linux/sockios.h
_ROUTES = Path("/proc/net/route")


def interface_for(master_addr: str) -> str | None:
    """Return the interface by which the other ranks' machines reach this one.

    None where gloo's own choice is one that they can reach, and where there is no other. The
    interface is that of the way to rank 0; on rank 0's own machine the only one that leads
    anywhere, or else that of the default route.
    Raises UserError where several are left to choose from.
    """
    if sys.platform != "linux" or not _is_loopback(_own_choice()):
        return None
    addresses = _addresses()
    towards = _source(master_addr)
    for name, address in addresses.items():
        if address == towards and not _is_loopback(address):
            return name
    return chosen(addresses, _default_route())


def chosen(addresses: Mapping[str, str], default_route: str | None) -> str | None:
    """Return the one of some interfaces (name -> address) that leads to other machines.

    None where none does. Raises UserError where several do, and none is the default route's.
    """
    names = [name for name in addresses if not name.startswith(VIRTUAL)]
    if len(names) < 2 or default_route in names:
        return default_route if default_route in names else next(iter(names), None)
    told = ", ".join(f"{name} ({addresses[name]})" for name in names)
    host = socket.gethostname()
    raise UserError(
        f"{host} stands for {_own_choice() or 'no address'} on itself, and of {told} it is open"
        f" which one reaches the other machines: export GLOO_SOCKET_IFNAME={names[0]}, say, or"
        f" write {host}'s address into /etc/hosts"
    )


def _own_choice() -> str | None:
    """Return the address that gloo takes: the first that its own name stands for here."""
    for address in _ipv4(socket.gethostname()):
        with socket.socket() as probe:
            try:
                probe.bind((address, 0))
                return address
            except OSError:
                continue
    return None


def _is_loopback(address: str | None) -> bool:
    return address is None or ipaddress.ip_address(address).is_loopback


def _source(host: str) -> str | None:
    """Return this machine's address on the way to a host; no packet is sent."""
    for address in _ipv4(host):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect((address, 9))
                return probe.getsockname()[0]
            except OSError:
                continue
    return None


def _ipv4(host: str) -> list[str]:
    try:
        found = socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)
    except OSError:
        return []
    return [address[0] for *_, address in found]


def _addresses() -> dict[str, str]:
    """Return the IPv4 address of each interface that is up and has one."""
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for _, name in socket.if_nameindex():
            asked = struct.pack("256s", name.encode()[:15])
            try:
                answer = fcntl.ioctl(any_socket.fileno(), _SIOCGIFADDR, asked)
            except OSError:
                continue
            found[name] = socket.inet_ntoa(answer[20:24])
    return found


def _default_route() -> str | None:
    for line in _ROUTES.read_text().splitlines()[1:] if _ROUTES.exists() else []:
        name, destination, *_ = line.split()
        if destination == "00000000":
            return name
    return None
