"""Whether what a worker tells of itself is a snapshot.

A worker talks to everybody, so the master does not take its word for more than it can say: what is
not of the shape that `observe.sums` describes is not added to anything. Members with other names
are dropped, as nobody looks at them: the worker may be of another version.
"""

from __future__ import annotations

from typing import Any

_LARGEST = 1 << 63  # of a number, either sign
_LEAST = -_LARGEST
_LONGEST = 1024  # characters of a name
_MOST_NAMES = 1_000  # of a table that is not one of nodes
_MOST_NODES = 20_000  # and keys; a worker reports a quarter of them at most

_Shape = Any
"""``int``, ``float``, ``str``, a list of one shape, ``_Names`` of one, or names with shapes."""


class _Names:
    """An object with any names, at most ``most``, and values of one shape. ``other``: of values
    that are objects."""

    __slots__ = ("most", "other", "shape")

    def __init__(self, shape: _Shape, most: int = 0, other: _Shape = None) -> None:
        self.shape = shape
        self.most = most
        self.other = other


_COUNTS = _Names(int, _MOST_NAMES)

_NODE: _Shape = dict.fromkeys(
    (
        *("hits", "grace", "active", "requests", "failures", "tx", "rx", "idle", "weight"),
        *("backup", "latency", "credits", "last_requests", "modifier1", "modifier2", "fallback"),
    ),
    int,
) | {"name": str, "protocol": str, "errors": _COUNTS}

_GATEWAY: _Shape = {
    "tally": _Names(int, _MOST_NAMES, _COUNTS),
    "listeners": [str],
    "cheap": int,
    "nodes": [_NODE],
    "subscriptions": {
        "slots": _Names({"hits": int, "nodes": _Names(_NODE, _MOST_NODES)}, _MOST_NODES)
    },
    "static": _COUNTS,
    "tls": {
        "contexts": int,
        "certificates": [{"source": str, "name": str, "not_after": int}],
        "store": _COUNTS,
    },
    "tls_handshaking": int,
}


def check_snapshot(value: object, gateway: str) -> None:
    """Raises ValueError, with what is wrong and where, unless ``value`` is the snapshot of a worker
    of that gateway: numbers within 64 bits and finite, names up to 1024 characters that are text,
    objects and lists where they belong, and not too many. Removes what it does not know."""
    shape = {
        "id": int,
        "pid": int,
        "draining": int,
        "started": float,
        "rss": int,
        "vsz": int,
        "gateways": {gateway: _GATEWAY},
        "sync": _Names(_COUNTS, _MOST_NAMES),
    }
    _check(value, shape, "snapshot")


def _check(value: Any, shape: _Shape, where: str) -> None:
    if shape is int:
        good = isinstance(value, int) and _LEAST < value < _LARGEST
    elif shape is str:
        good = isinstance(value, str) and len(value) <= _LONGEST and _is_text(value)
    elif shape is float:
        good = isinstance(value, int | float) and abs(value) < _LARGEST  # NaN is not
    elif isinstance(shape, list):
        good = isinstance(value, list) and len(value) <= _MOST_NODES
        for each in value if good else ():
            _check(each, shape[0], where)
    elif isinstance(shape, _Names):
        good = isinstance(value, dict) and not 0 < shape.most < len(value)
        for name, each in value.items() if good else ():
            _check(name, str, where)
            special = shape.other is not None and isinstance(each, dict)
            _check(each, shape.other if special else shape.shape, where)
    else:
        good = isinstance(value, dict)
        if good and not value.keys() <= shape.keys():
            for name in value.keys() - shape.keys():
                del value[name]
        for name, each in value.items() if good else ():
            expected = shape.get(name)
            # Most are; there may be a hundred thousand.
            if expected is int and type(each) is int and _LEAST < each < _LARGEST:
                continue
            _check(each, expected, name)
    if not good:
        raise ValueError(f"{where}: not what a worker says")


def _is_text(value: str) -> bool:
    """JSON can spell halves of a character, which no encoding can write."""
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
