"""A context that follows its files."""

from __future__ import annotations

import errno
import os
from dataclasses import replace

from uwgate.config.settings_tls import PairSettings
from uwgate.tls.contexts import Context
from uwgate.tls.names import Entry

Key = tuple[str, str, str, bool]
"""Source and name of an entry, and the client CA that it inherits (``Context.domain``); OWN, or
STRICTER where of its own only whether a certificate is required is inherited; whether SPDY is
offered, which depends on the listener, too."""

OWN, STRICTER = "own", "own, required"

_PEM = "-----BEGIN "


class Live:
    """An entry's context, and the state of the files that it was made of.

    ``below``: the pair of the listener, whose client CA the entry inherits if it has none; ``key``:
    its own in the registry; ``context``: None if it could not be made yet; ``checked``: when its
    files were looked at last, seconds of the monotonic clock; ``gone``: it serves nobody any more,
    and whoever still knows it has to look again.
    """

    __slots__ = ("below", "checked", "context", "entry", "gone", "key", "stamps")

    def __init__(self, entry: Entry, below: PairSettings, key: Key = ("", "", "", False)) -> None:
        self.entry = replace(entry, pair=inherit(entry, below))
        self.below = below
        self.key = key
        self.context: Context | None = None
        self.stamps: tuple[object, ...] = ()
        self.checked = 0.0
        self.gone = False

    def end(self) -> None:
        """Let go of the context."""
        self.gone = True
        self.context = None

    def look(self) -> tuple[object, ...]:
        """What the files are like now: equal to ``stamps`` while nothing has changed."""
        pair = self.entry.pair
        paths = [pair.cert, pair.key, pair.client_ca]
        if self.entry.source == "sni-dir":
            paths.append(pair.cert.removesuffix(".crt") + ".ca")  # may come or go
        before = self.stamps or (None,) * len(paths)
        return tuple(map(_stamp, paths, before))


def inherit(entry: Entry, listener: PairSettings) -> PairSettings:
    """The pair of ``entry`` with the client CA of the listener, if it has none itself. Files that
    appear while the gateway runs may name another CA, but not ask for less than the listener."""
    pair = entry.pair
    if not pair.client_ca:
        required = listener.client_required
        return replace(pair, client_ca=listener.client_ca, client_required=required)
    if entry.lazy and listener.client_required:
        return replace(pair, client_required=True)
    return pair


def _stamp(path: str, before: object) -> object:
    """What tells whether a file has changed; ``before`` if that cannot be seen: a directory of
    keys may be closed to workers, which gave up the privileges that the master had."""
    if not path or path.startswith(_PEM):
        return None
    try:
        status = os.stat(path)
    except OSError as error:
        return before if error.errno == errno.EACCES and before is not None else error.errno
    except ValueError:  # a NUL in the name
        return errno.EINVAL
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino
