"""uWSGI's cache synchronisation: one change of a cache in one datagram (modifier1 111).

All integers are little-endian::

    offset  size  field
    0       1     111
    1       2     length of what follows the four bytes
    3       1     10: set or update, 11: delete
    4       2+n   key: u16 length, bytes
    …       2+n   of 10 only: value: u16 length, bytes
    …       2+n   of 10 only, and may be missing: u16 length, expiry in decimal ASCII, seconds of
                  the epoch; 0: never

The name of the cache is not in it, so every cache has a port of its own. A receiving uWSGI passes
over deletes without at least two bytes behind the key, which uWSGI itself does not send: they are
added here, and not asked for.
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

MODIFIER1 = 111
SET, DELETE = 10, 11
MAX_DATAGRAM = 65507
_MAX_STRING = 65535
_HEAD = Struct("<BHB")
_PADDING = b"\0\0"
_LONGEST_EXPIRY = 20


class SyncError(ValueError):
    """Not a change of a cache, or one that fits no datagram."""


class Update(NamedTuple):
    """A change. ``value`` None: delete. ``expires``: seconds of the epoch, 0: never."""

    key: bytes
    value: bytes | None
    expires: int = 0


def datagram(command: int, body: bytes) -> bytes:
    """Head and body; SyncError if that is too much for a datagram."""
    if len(body) > min(_MAX_STRING, MAX_DATAGRAM - _HEAD.size):
        raise SyncError(f"{len(body)} bytes fit no datagram")
    return _HEAD.pack(MODIFIER1, len(body), command) + body


def split(data: bytes) -> tuple[int, bytes]:
    """``(command, body)`` of a datagram; SyncError if it is none of a cache."""
    if len(data) < _HEAD.size:
        raise SyncError("too short")
    modifier1, size, command = _HEAD.unpack_from(data)
    if modifier1 != MODIFIER1 or size != len(data) - _HEAD.size:
        raise SyncError("not a change of a cache")
    return command, data[_HEAD.size :]


def _string(data: bytes) -> bytes:
    if len(data) > _MAX_STRING:
        raise SyncError(f"{len(data)} bytes are too long")
    return len(data).to_bytes(2, "little") + data


def encode(update: Update) -> bytes:
    """The datagram of a change; SyncError if it does not fit one."""
    if update.value is None:
        return datagram(DELETE, _string(update.key) + _PADDING)
    expires = str(update.expires).encode("ascii")
    return datagram(SET, _string(update.key) + _string(update.value) + _string(expires))


def decode(data: bytes) -> Update:
    """The change in a datagram; SyncError if there is none that is understood."""
    command, body = split(data)
    key, rest = _cut(body)
    if not key:
        raise SyncError("no key")
    if command == DELETE:
        return Update(key, None)
    if command != SET:
        raise SyncError(f"unknown command {command}")
    value, rest = _cut(rest)
    if not rest:
        return Update(key, value)
    text, rest = _cut(rest)
    if rest or len(text) > _LONGEST_EXPIRY or not text.isdigit():
        raise SyncError("the expiry is not a number")
    return Update(key, value, int(text))


def _cut(data: bytes) -> tuple[bytes, bytes]:
    """A string, and what follows it."""
    end = 2 + int.from_bytes(data[:2], "little")
    if len(data) < 2 or end > len(data):
        raise SyncError("it ends too early")
    return data[2:end], data[end:]
