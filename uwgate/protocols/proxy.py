"""The PROXY protocol, versions 1 and 2: who is behind the balancer in front of us.

Source: HAProxy, "The PROXY protocol, versions 1 & 2" (proxy-protocol.txt), §2.1 and §2.2.

Version 1 is a line of at most 107 bytes, CRLF included::

    PROXY TCP4|TCP6 <source> <destination> <source port> <destination port> CRLF
    PROXY UNKNOWN [anything] CRLF

Version 2 (integers are big-endian)::

    offset  size    field
    0       12      signature 0D 0A 0D 0A 00 0D 0A 51 55 49 54 0A
    12      1       version (high nibble, 2) and command (low nibble: 0 LOCAL, 1 PROXY)
    13      1       address family (high nibble) and transport (low nibble)
    14      2       length of what follows
    16      length  addresses (12, 36 or 216 bytes), then TLVs: type u8, length u16, value

A header is accepted whole or not at all: a sender that is believed about addresses had better be
exact. Stricter than the specification: a version 2 header has at most MAX_V2_LENGTH bytes, and a
checksum or TLS TLV may come only once.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["MAX_V1_LENGTH", "MAX_V2_LENGTH", "ProxyError", "ProxyHeader", "could_be", "parse"]

MAX_V1_LENGTH = 107
"""Bytes of the longest version 1 header, CRLF included (§2.1)."""

MAX_V2_LENGTH = 16 + 4096
"""Bytes of the longest version 2 header accepted: room for a client certificate in a TLV."""

_V1_PREFIX = b"PROXY "
_V2_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
_V2_FIXED = 16

_PORT = rb"(0|[1-9][0-9]{0,4})"
_OCTET = rb"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4 = rb"(" + _OCTET + rb"(?:\." + _OCTET + rb"){3})"
# The alphabet alone; inet_pton knows the grammar.
_IPV6 = rb"([0-9A-Fa-f:.]{2,45})"
_PORTS = rb" " + _PORT + rb" " + _PORT + rb"\r\n"
_v1_tcp4 = re.compile(rb"PROXY TCP4 " + _IPV4 + rb" " + _IPV4 + _PORTS).fullmatch
_v1_tcp6 = re.compile(rb"PROXY TCP6 " + _IPV6 + rb" " + _IPV6 + _PORTS).fullmatch
# What follows UNKNOWN is to be ignored; it still has to be one printable line.
_v1_unknown = re.compile(rb"PROXY UNKNOWN(?: [\x20-\x7e]*)?\r\n").fullmatch

_LOCAL, _PROXY = 0, 1
_UNIX = 3
# Family and transport -> bytes of the address block. Any other pair must be rejected (§2.2).
_ADDRESS_BYTES = {0x00: 0, 0x11: 12, 0x12: 12, 0x21: 36, 0x22: 36, 0x31: 216, 0x32: 216}

_TLV_CRC32C = 0x03
_TLV_SSL = 0x20
_CLIENT_SSL = 0x01


class ProxyError(ValueError):
    """The bytes are not a PROXY header that can be trusted; close the connection."""


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """What a PROXY header says.

    ``source`` and ``destination`` are address texts in canonical form (IPv6 as inet_ntop writes
    it). Both are empty, and the ports 0, if the header names no IP address (UNKNOWN, LOCAL, an
    unspecified family, a unix socket): the addresses of the connection itself hold then.
    ``tls``: the client came to the sender over TLS (version 2, PP2_TYPE_SSL with PP2_CLIENT_SSL).
    ``length``: bytes of the header; what follows belongs to the client.
    """

    source: bytes
    source_port: int
    destination: bytes
    destination_port: int
    tls: bool
    length: int


def could_be(data: bytes) -> bool:
    """Whether ``data`` is the beginning of a PROXY header, or may become one with more bytes.

    True for no bytes at all, and for ``P``, with which POST begins too.
    """
    if data[:1] == b"P":
        return data[:6] == _V1_PREFIX[: len(data)]
    return data[:12] == _V2_SIGNATURE[: len(data)]


def parse(data: bytes) -> ProxyHeader | None:
    """The PROXY header at the start of ``data``; None if more bytes are needed to tell.

    Not more than MAX_V1_LENGTH or MAX_V2_LENGTH bytes are ever asked for. Raises ProxyError if
    ``data`` does not begin with a PROXY header or the header is malformed.
    """
    if not could_be(data):
        raise ProxyError("the connection does not begin with a PROXY header")
    if data[:1] == b"P":
        return _parse_v1(data)
    return _parse_v2(data)


# --- version 1 ---------------------------------------------------------------------------------


def _parse_v1(data: bytes) -> ProxyHeader | None:
    end = data.find(b"\r\n", 0, MAX_V1_LENGTH) + 2
    if end < 2:
        if len(data) < MAX_V1_LENGTH:
            return None
        raise ProxyError(f"the PROXY line has more than {MAX_V1_LENGTH} bytes")
    line = data[:end]
    if _v1_unknown(line):
        return ProxyHeader(b"", 0, b"", 0, tls=False, length=end)
    match = _v1_tcp4(line)
    if match:
        source, destination = match[1], match[2]
    else:
        match = _v1_tcp6(line)
        if not match:
            raise ProxyError("malformed PROXY line")
        source, destination = _canonical_v6(match[1]), _canonical_v6(match[2])
    source_port, destination_port = int(match[3]), int(match[4])
    if source_port > 65535 or destination_port > 65535:
        raise ProxyError("a port in the PROXY line is above 65535")
    return ProxyHeader(source, source_port, destination, destination_port, tls=False, length=end)


def _canonical_v6(text: bytes) -> bytes:
    try:
        packed = socket.inet_pton(socket.AF_INET6, text.decode("ascii"))
    except OSError:
        raise ProxyError("malformed IPv6 address in the PROXY line") from None
    return socket.inet_ntop(socket.AF_INET6, packed).encode("ascii")


# --- version 2 ---------------------------------------------------------------------------------


def _parse_v2(data: bytes) -> ProxyHeader | None:
    if len(data) < _V2_FIXED:
        return None
    version, command = data[12] >> 4, data[12] & 0x0F
    if version != 2 or command not in (_LOCAL, _PROXY):
        raise ProxyError(f"PROXY version and command {data[12]:#04x} are not known")
    kind = data[13]
    end = _V2_FIXED + int.from_bytes(data[14:16], "big")
    if end > MAX_V2_LENGTH:
        raise ProxyError(f"the PROXY header has {end} bytes: {MAX_V2_LENGTH} are the most")
    addresses = _ADDRESS_BYTES.get(kind)
    # A health check of the sender (LOCAL) has no addresses to tell, whatever its family says.
    if command == _PROXY:
        if addresses is None:
            raise ProxyError(f"PROXY family and transport {kind:#04x} are not known")
        if _V2_FIXED + addresses > end:
            raise ProxyError("the PROXY header is too short for its addresses")
    if len(data) < end:
        return None
    if command == _LOCAL or not addresses:
        return ProxyHeader(b"", 0, b"", 0, tls=False, length=end)
    tls = _read_tlvs(data[:end], _V2_FIXED + addresses)
    if kind >> 4 == _UNIX:
        return ProxyHeader(b"", 0, b"", 0, tls=tls, length=end)
    return _with_addresses(data, (addresses - 4) // 2, tls, end)


def _with_addresses(data: bytes, size: int, tls: bool, length: int) -> ProxyHeader:
    """The header of an IP connection whose addresses have ``size`` bytes each."""
    family = socket.AF_INET if size == 4 else socket.AF_INET6
    middle = _V2_FIXED + size
    ports = middle + size
    return ProxyHeader(
        socket.inet_ntop(family, data[_V2_FIXED:middle]).encode("ascii"),
        int.from_bytes(data[ports : ports + 2], "big"),
        socket.inet_ntop(family, data[middle:ports]).encode("ascii"),
        int.from_bytes(data[ports + 2 : ports + 4], "big"),
        tls=tls,
        length=length,
    )


def _tlvs(data: bytes, pos: int) -> Iterator[tuple[int, int, bytes]]:
    """(type, offset of the value, value) of each TLV from ``pos`` to the end of ``data``."""
    while pos < len(data):
        start = pos + 3
        if start > len(data):
            raise ProxyError("the PROXY header ends inside a TLV")
        end = start + int.from_bytes(data[pos + 1 : start], "big")
        if end > len(data):
            raise ProxyError("the PROXY header ends inside a TLV")
        yield data[pos], start, data[start:end]
        pos = end


def _read_tlvs(header: bytes, pos: int) -> bool:
    """Check the TLVs of a header; whether one says that the client uses TLS."""
    tls: bool | None = None
    checked = False
    for kind, offset, value in _tlvs(header, pos):
        if kind == _TLV_CRC32C:
            if checked or len(value) != 4:
                raise ProxyError("malformed checksum TLV in the PROXY header")
            blank = header[:offset] + b"\0\0\0\0" + header[offset + 4 :]
            if _crc32c(blank) != int.from_bytes(value, "big"):
                raise ProxyError("the checksum of the PROXY header is wrong")
            checked = True
        elif kind == _TLV_SSL:
            if tls is not None or len(value) < 5:
                raise ProxyError("malformed TLS TLV in the PROXY header")
            for _ in _tlvs(value, 5):  # its own TLVs: only their bounds concern us
                pass
            tls = bool(value[0] & _CLIENT_SSL)
    return bool(tls)


def _crc32c_table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return tuple(table)


_CRC32C_TABLE = _crc32c_table()


def _crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli), RFC 3309 appendix; zlib.crc32 has the other polynomial."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC32C_TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF
