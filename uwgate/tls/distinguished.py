"""Distinguished names in the one-line form of X509_NAME_oneline(3), ``/C=IT/O=Acme, Inc/CN=x``.

That form shows the bytes that are in the certificate, in whatever encoding they are there, so they
are read from its DER::

    Certificate: SEQUENCE of to-be-signed SEQUENCE, …
    to-be-signed: [0] version (optional), INTEGER serial, SEQUENCE algorithm, issuer, SEQUENCE
                  validity, subject, …                                           (RFC 5280 §4.1)
    issuer, subject: SEQUENCE of SET of SEQUENCE of OID type, string value     (RFC 5280 §4.1.2.4)

An element is a byte tag, its length (one byte below 128, else 128 + n and n bytes, big-endian),
and its content.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

_SEQUENCE, _SET, _OID, _INTEGER, _BIT_STRING, _VERSION = 0x30, 0x31, 0x06, 0x02, 0x03, 0xA0
_SPECIAL = re.compile(rb"[/+]")
_UNPRINTABLE = re.compile(rb"[^\x20-\x7e]")


class Identity(NamedTuple):
    """``serial``: the number. ``issuer``, ``subject``: contents of the names, DER."""

    serial: int
    issuer: bytes
    subject: bytes


def identity(certificate: bytes) -> Identity:
    """Who a certificate (DER) is of. ValueError if it is none."""
    fields = list(_elements(_only(_only(certificate))))
    if fields and fields[0][0] == _VERSION:
        del fields[0]
    if len(fields) < 5 or fields[0][0] != _INTEGER or not fields[0][1]:
        raise ValueError("no certificate")
    serial, _algorithm, issuer, _validity, subject = (content for _, content in fields[:5])
    return Identity(int.from_bytes(serial, "big", signed=True), issuer, subject)


def one_line(name: bytes) -> str:
    """The text of a name's content: ``/`` and ``+`` inside of values after a backslash, bytes that
    are not printable as ``\\xNN``; several attributes of one step are joined by ``+``. ValueError
    if it is none."""
    steps = []
    for tag, step in _elements(name):
        if tag != _SET:
            raise ValueError("no name")
        steps.append("/" + "+".join(_attribute(content) for _, content in _elements(step)))
    return "".join(steps)


def _attribute(content: bytes) -> str:
    (kind, oid), (tag, value) = _elements(content)
    if kind != _OID:
        raise ValueError("no attribute")
    if tag == _BIT_STRING:
        value = value[1:]  # how many bits of the last byte do not count
    value = _SPECIAL.sub(rb"\\\g<0>", value)
    value = _UNPRINTABLE.sub(lambda match: b"\\x%02X" % match[0][0], value)
    return f"{_short_name(oid)}={value.decode('ascii')}"


@lru_cache(256)
def _short_name(content: bytes) -> str:
    """OpenSSL's abbreviation of an OID, else its numbers with dots."""
    numbers, number = [], 0
    for byte in content:
        number = number << 7 | byte & 0x7F
        if not byte & 0x80:
            numbers.append(number)
            number = 0
    if not numbers:
        return ""  # OpenSSL would leave an error in its queue
    first = min(numbers[0] // 40, 2)
    text = ".".join(map(str, (first, numbers[0] - 40 * first, *numbers[1:])))
    try:
        return ssl._ASN1Object(text).shortname
    except ValueError:
        return text


def _only(data: bytes) -> bytes:
    """The content of the sequence that ``data`` begins with."""
    tag, content = next(_elements(data), (0, b""))
    if tag != _SEQUENCE:
        raise ValueError("no sequence")
    return content


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Tags and contents, one after another. ValueError if the last one is cut off."""
    at, end = 0, len(data)
    while at < end:
        tag, size = data[at], data[at + 1 : at + 2]
        at += 2
        if not size:
            raise ValueError("cut off")
        length = size[0]
        if length > 0x80:
            at += length - 0x80
            length = int.from_bytes(data[at - length + 0x80 : at], "big")
        elif length == 0x80:
            raise ValueError("a length that is not definite")
        if at + length > end:
            raise ValueError("cut off")
        yield tag, data[at : at + length]
        at += length
