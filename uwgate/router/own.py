"""Addresses that lead back to the gateway itself.

The master refuses a node that announces the address of a listener. A host name, or another way to
write an address, is seen through only where it is connected to: here. A request for such a node
would come back, and go round until no descriptor is left.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address

from uwgate.router.balance import Address

_IP = IPv4Address | IPv6Address


class OwnAddresses:
    """Where the listening ``sockets`` can be reached."""

    __slots__ = ("_abstract", "_files", "_ports")

    def __init__(self, sockets: Iterable[socket.socket]) -> None:
        self._ports: dict[int, list[_IP]] = {}
        self._files: set[tuple[int, int]] = set()
        self._abstract: set[bytes] = set()
        for sock in sockets:
            name = sock.getsockname()
            if sock.family == socket.AF_UNIX:
                self._add_unix(name)
            else:
                self._ports.setdefault(name[1], []).append(_ip(name[0]))

    def _add_unix(self, name: str | bytes) -> None:
        if isinstance(name, bytes):
            self._abstract.add(name)
        elif (file := _file(name)) is not None:
            self._files.add(file)

    def leads_here(self, family: int, address: Address) -> bool:
        """Whether a connection to ``address`` would arrive at one of the sockets."""
        if isinstance(address, bytes):
            return address in self._abstract
        if isinstance(address, str):
            return bool(self._files) and _file(address) in self._files
        listening = self._ports.get(address[1])
        if listening is None:  # the usual case
            return False
        target = _ip(address[0])
        if target.is_unspecified:  # the kernel connects to its own machine
            target = IPv4Address("127.0.0.1") if target.version == 4 else IPv6Address("::1")
        for host in listening:
            if host == target:
                return True
            if host.is_unspecified and host.version == target.version and _is_ours(target):
                return True
        return False


def _ip(host: str) -> _IP:
    found = ip_address(host.partition("%")[0])
    mapped = found.ipv4_mapped if isinstance(found, IPv6Address) else None
    return mapped or found


def _file(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


def _is_ours(host: _IP) -> bool:
    """Whether an address is one of this machine: only those can be bound."""
    if host.is_loopback:
        return True
    family = socket.AF_INET if host.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((str(host), 0))
        except OSError:
            return False
    return True
