"""The registry: one row an option, and how a name is found in it.

Help, the options page, validation, "did you mean" and the cutting of command lines all read these
rows. Rows of our own options are in ``options_http`` and ``options_process``; names that
uWSGI knows and uwgate leaves alone are in ``foreign``.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import replace

from uwgate.config.foreign import FOREIGN
from uwgate.config.model import Option, State
from uwgate.config.options_client import CLIENT_OPTIONS
from uwgate.config.options_fast import FAST_OPTIONS
from uwgate.config.options_http import HTTP_OPTIONS
from uwgate.config.options_http2 import HTTP2_OPTIONS
from uwgate.config.options_master import COMMANDS, MASTER_OPTIONS
from uwgate.config.options_process import PROCESS_OPTIONS
from uwgate.config.options_static import STATIC_OPTIONS
from uwgate.config.options_subscriptions import SUBSCRIPTION_OPTIONS
from uwgate.config.options_tls import TLS_OPTIONS

TOPICS: dict[str, str] = {
    "http": "The HTTP router",
    "http2": "HTTP/2",
    "nodes": "Nodes: where requests go",
    "static": "Static files",
    "tls": "TLS: listeners and client certificates",
    "sni": "TLS: certificates by server name",
    "sessions": "TLS: sessions and tickets",
    "caches": "Caches",
    "fastrouter": "The fastrouter: uwsgi clients",
    "subscriptions": "Subscriptions: nodes that announce themselves",
    "announce": "Announcing this instance to routers",
    "sockets": "Sockets",
    "process": "Processes",
    "reload": "Reloads, orders and the lives of workers",
    "zerg": "Sockets handed from instance to instance",
    "logs": "Logs",
    "stats": "Statistics",
    "config": "Configuration and commands",
}
"""Topic -> title, in the order of the documentation."""

OPTIONS: tuple[Option, ...] = (
    HTTP_OPTIONS
    + HTTP2_OPTIONS
    + STATIC_OPTIONS
    + TLS_OPTIONS
    + FAST_OPTIONS
    + SUBSCRIPTION_OPTIONS
    + CLIENT_OPTIONS
    + PROCESS_OPTIONS
    + MASTER_OPTIONS
    + COMMANDS
)
"""Every option that means something here, in the order of the documentation."""

_FAMILY = "error-page-NNN"
_ERROR_PAGE = re.compile(r"error-page-[45][0-9]{2}")
_SIMILAR = 0.8  # difflib ratio from which two names count as a slip of the pen


def _index(rows: tuple[Option, ...]) -> dict[str, Option]:
    return {name: row for row in rows for name in (row.name, *row.aliases)}


_OWN = _index(OPTIONS)
_ALL = _index(FOREIGN) | _OWN
_SHORT = {row.short: row for row in OPTIONS if row.short}
# One-letter forms of uWSGI options that are not ours.
_FOREIGN_SHORT = {
    "p": "processes", "v": "max-vars", "b": "buffer-size",
    "m": "memory-report", "c": "cgi-mode", "a": "abstract-socket", "T": "enable-threads",
    "i": "single-interpreter", "r": "reaper", "R": "max-requests", "A": "sharedarea",
    "Q": "spooler", "w": "module", "J": "test", "H": "home", "O": "optimize",
}  # fmt: skip


def find(name: str) -> Option | None:
    """The row of an option by name or alias, or None.

    A member of the family ``error-page-NNN`` gets a row with its own name.
    """
    if _ERROR_PAGE.fullmatch(name):
        return replace(_OWN[_FAMILY], name=name)
    return None if name == _FAMILY else _ALL.get(name)


def find_short(letter: str) -> Option | None:
    """The row of a one-letter form, or None."""
    return _SHORT.get(letter) or _ALL.get(_FOREIGN_SHORT.get(letter, ""))


def find_prefix(start: str) -> list[str]:
    """Names that begin with ``start``, one for each row that they lead to."""
    rows: dict[str, str] = {}
    for name in sorted(_ALL):
        if name.startswith(start) and name != _FAMILY:
            rows.setdefault(_ALL[name].name, name)
    return list(rows.values())


def nearest(name: str) -> str:
    """The known name that looks most like ``name``, ours first; empty if none is near."""
    if len(name) < 4:
        return ""
    if name.startswith("error-page-"):
        return _FAMILY
    for rows in (_OWN, _ALL):
        found = difflib.get_close_matches(name.lower().replace("_", "-"), rows, 1, _SIMILAR)
        if found:
            return found[0]
    return ""


def in_topic(topic: str) -> list[Option]:
    """The rows of one topic."""
    return [row for row in OPTIONS if row.topic == topic]


def foreign(state: State) -> list[Option]:
    """The rows of foreign options that share one fate."""
    return [row for row in FOREIGN if row.state is state]
