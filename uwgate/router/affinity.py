"""What of a request decides where it goes, beyond its host: path, fields, cookies.

All of it is optional, and costs nothing where it is not asked for.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from hashlib import blake2b
from typing import TYPE_CHECKING

from uwgate.config.settings import HashBy
from uwgate.protocols.uwsgi import PacketError, path_info

if TYPE_CHECKING:
    from uwgate.router.attempts import Attempts
    from uwgate.router.balance import Node

Token = Callable[["Attempts"], bytes]

_MAX_IDS = 100_000
_ID = rb"[0-9a-f]{16}"


def mount_path(target: bytes, segments: int) -> str:
    """The first ``segments`` segments of a request target's path, as they are behind the host in a
    routing key: ``/app/x?y`` -> ``/app``. "" if there is none, or the path cannot be decoded.

    The path is the one that applications see: escapes undone once, dot segments resolved, so that
    no spelling reaches a mountpoint that another one does not.
    """
    try:
        path = path_info(target)
    except PacketError:
        return ""
    parts = [part for part in path.split(b"/")[1 : segments + 1] if part]
    return b"".join(b"/" + part for part in parts).decode("latin-1")


def token_of(by: HashBy) -> Token | None:
    """How to get what ``hash`` looks at; None for the client's address."""
    name = by.name.encode("latin-1")
    if by.kind == "client":
        return None
    if by.kind == "path":
        return lambda attempts: attempts.request.target.partition(b"?")[0]
    if by.kind == "uri":
        return lambda attempts: attempts.request.target
    if by.kind == "header":
        return lambda attempts: attempts.front.field(name)
    cookie = cookie_pattern(name, rb"[^;\s]*")

    def from_cookie(attempts: Attempts) -> bytes:
        match = cookie.search(attempts.front.field(b"cookie"))
        return match[1] if match is not None else b""

    return from_cookie


def cookie_pattern(name: bytes, value: bytes) -> re.Pattern[bytes]:
    """Finds ``name=value`` in a Cookie field (RFC 6265 §4.2.1); group 1 is the value."""
    return re.compile(rb"(?:^|;)[ \t]*%b=(%b)[ \t]*(?=;|$)" % (re.escape(name), value))


class Sticky:
    """``http-sticky``: a cookie keeps a client at its node, as long as that is alive.

    The value is a digest of the node's address: the same in every worker and on every machine, and
    not the address itself.
    """

    __slots__ = ("_ids", "_name", "_pattern")

    def __init__(self, name: str) -> None:
        self._name = name.encode("ascii")
        self._pattern = cookie_pattern(self._name, _ID)
        self._ids: dict[str, bytes] = {}

    def _id(self, node: Node) -> bytes:
        found = self._ids.get(node.name)
        if found is None:
            if len(self._ids) >= _MAX_IDS:
                self._ids.clear()
            digest = blake2b(node.name.encode("utf-8", "surrogateescape"), digest_size=8)
            found = self._ids[node.name] = digest.hexdigest().encode("ascii")
        return found

    def node_of(self, attempts: Attempts) -> Node | None:
        """The node that the request's cookie names, if it is alive."""
        match = self._pattern.search(attempts.front.field(b"cookie"))
        attempts.stuck = wanted = match[1] if match is not None else b""
        if not wanted:
            return None
        gateway = attempts.gateway
        now = gateway.clock.now
        for node in gateway.resolver.candidates(attempts.key()):
            if self._id(node) == wanted:
                return node if node.alive(now) else None
        return None

    def mark(self, attempts: Attempts, head: bytes, *, secure: bool) -> bytes:
        """The response head, with the cookie where the client does not have it yet."""
        node = attempts.node
        if node is None or node.fallback or not attempts.gateway.resolver.several:
            return head
        mine = self._id(node)
        if mine == attempts.stuck:
            return head
        extra = b"; Secure" if secure else b""
        line = b"Set-Cookie: %b=%b; Path=/; HttpOnly; SameSite=Lax%b\r\n" % (
            self._name,
            mine,
            extra,
        )
        return head[:-2] + line + b"\r\n"
