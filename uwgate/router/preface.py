"""What may stand before the first request of a connection: a PROXY header, or a stud prefix.

PROXY protocol (v1 and v2) with ``http-enable-proxy-protocol``: believed from anybody, as uWSGI
does, unless ``http-trusted-proxy`` names whom to believe; a header from anybody else is refused.
The stud prefix (family octet and address of a TLS off-loader) is expected from the peers that
``http-stud-prefix`` names.
"""

from __future__ import annotations

import socket
from ipaddress import ip_address

from uwgate.config.settings import HttpSettings
from uwgate.protocols import proxy

_STUD_SIZES = {socket.AF_INET: 4, socket.AF_INET6: 16}


class PrefaceError(ValueError):
    """The header is malformed, or this peer may not send one."""


class Preface:
    """Reads one preface. After ``read`` returned a count: ``address`` is ``(text, port)`` or None
    where the header names no client, ``tls`` whether the client spoke TLS to the off-loader."""

    __slots__ = ("_allowed", "_stud", "address", "tls")

    def __init__(self, *, stud: bool, allowed: bool) -> None:
        self._stud = stud
        self._allowed = allowed
        self.address: tuple[bytes, int] | None = None
        self.tls = False

    @classmethod
    def for_peer(cls, settings: HttpSettings, client: bytes) -> Preface | None:
        """The preface to expect from ``client``, or None for a peer that sends requests at once."""
        if client.decode("ascii") in settings.stud_prefix:
            return cls(stud=True, allowed=True)
        if settings.proxy_protocol:
            return cls(stud=False, allowed=may_announce(settings, client))
        return None

    def read(self, data: bytes) -> int:
        """Bytes consumed from the start of ``data``; 0: there is no preface; -1: more is needed.

        Raises PrefaceError.
        """
        if self._stud:
            return self._read_stud(data)
        if not proxy.could_be(data):
            return 0
        if not self._allowed and len(data) > 5:
            raise PrefaceError("this peer may not announce clients")
        try:
            header = proxy.parse(data)
        except proxy.ProxyError as error:
            raise PrefaceError(str(error)) from error
        if header is None:
            return -1
        self.tls = header.tls
        if header.source:
            self.address = (header.source, header.source_port)
        return header.length

    def _read_stud(self, data: bytes) -> int:
        size = _STUD_SIZES.get(data[0])  # type: ignore[call-overload]
        if size is None:
            raise PrefaceError("unknown address family in the stud prefix")
        if len(data) < 1 + size:
            return -1
        self.tls = True
        self.address = (socket.inet_ntop(data[0], data[1 : 1 + size]).encode("ascii"), 0)
        return int(1 + size)


def may_announce(settings: HttpSettings, client: bytes) -> bool:
    """Whether a PROXY header of this peer is believed."""
    if not settings.trusted_proxies and not settings.trust_unix:
        return True
    if not client:
        return settings.trust_unix
    address = ip_address(client.decode("ascii").partition("%")[0])
    return any(address in network for network in settings.trusted_proxies)
