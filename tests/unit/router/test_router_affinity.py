"""What of a request decides where it goes: mountpoints, hash tokens, sticky cookies.

The pieces here; requests over real sockets are in tests/wire/test_subscriptions_wire.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from router_tools import node, resting_clock

from uwgate.config.settings import HashBy
from uwgate.config.values import hash_by
from uwgate.router.affinity import Sticky, cookie_pattern, mount_path, token_of
from uwgate.router.attempts import Attempts
from uwgate.router.balance import Node
from uwgate.router.clock import Clock
from uwgate.router.resolve import StaticResolver

# --- mountpoints --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "segments", "path"),
    [
        (b"/", 1, ""),
        (b"/app", 1, "/app"),
        (b"/app/", 1, "/app"),
        (b"/app/x/y", 1, "/app"),
        (b"/app/x/y", 2, "/app/x"),
        (b"/app/x/y", 3, "/app/x/y"),
        (b"/app/x/y", 9, "/app/x/y"),
        (b"/app?x=/y", 2, "/app"),
        (b"/app#f", 1, "/app"),
        (b"/App", 1, "/App"),
        # Every spelling of a path is that path.
        (b"/%61pp/x", 1, "/app"),
        (b"/app%2Fx", 1, "/app"),
        (b"/app%2Fx", 2, "/app/x"),
        (b"/./app/x", 1, "/app"),
        (b"/other/../app/x", 1, "/app"),
        (b"/other/%2e%2e/app/x", 1, "/app"),
        (b"/app/../other", 1, "/other"),
        (b"/app%2f..%2fother", 1, "/other"),
        (b"/../app", 1, "/app"),
        # Escapes are undone once.
        (b"/%2561pp", 1, "/%61pp"),
        # What no application sees under that name is not that application's.
        (b"//app", 1, ""),
        (b"/;app", 1, "/;app"),
        (b"/app;x", 1, "/app;x"),
        (b"*", 1, ""),
        (b"", 1, ""),
        (b"/app%00", 1, ""),
        (b"/app%zz", 1, ""),
        (b"/caf%C3%A9", 1, "/caf\u00c3\u00a9"),
    ],
)
def test_mount_path(target: bytes, segments: int, path: str) -> None:
    """uWSGI 2.1 cuts the raw URI, and so has as many mountpoints as there are spellings."""
    assert mount_path(target, segments) == path


@given(st.binary(max_size=40), st.integers(1, 4))
def test_mount_path_has_no_more_than_its_segments(target: bytes, segments: int) -> None:
    path = mount_path(b"/" + target, segments)
    parts = path.split("/")
    assert path == "" or (path[0] == "/" and "" not in parts[1:])
    assert len(parts) - 1 <= segments
    assert "." not in parts
    assert ".." not in parts


# --- tokens -------------------------------------------------------------------------------------


class Request:
    """A request as far as tokens look at it."""

    def __init__(self, target: bytes = b"/", **fields: bytes) -> None:
        self.target = target
        self.fields = {name.replace("_", "-").encode(): value for name, value in fields.items()}
        self.request = self.front = self
        self.stuck = b""
        self.node: Node | None = None

    def field(self, name: bytes) -> bytes:
        return self.fields.get(name, b"")

    def key(self) -> str:
        return "key"


@pytest.mark.parametrize(
    ("by", "request_", "token"),
    [
        ("path", Request(b"/a/b?c=d"), b"/a/b"),
        ("uri", Request(b"/a/b?c=d"), b"/a/b?c=d"),
        ("header:X-User", Request(x_user=b"me"), b"me"),
        ("header:x-user", Request(), b""),
        ("cookie:sid", Request(cookie=b"a=1; sid=42; b=2"), b"42"),
        ("cookie:sid", Request(cookie=b"sid=42"), b"42"),
        ("cookie:sid", Request(cookie=b"xsid=42; sid2=3; SID=4"), b""),
        ("cookie:sid", Request(cookie=b"sid="), b""),
        ("cookie:sid", Request(cookie=b"sid=1;sid=2"), b"1"),
        ("cookie:sid", Request(), b""),
    ],
)
def test_tokens(by: str, request_: Request, token: bytes) -> None:
    token_by = token_of(hash_by(by))
    assert token_by is not None
    assert token_by(cast(Attempts, request_)) == token


def test_the_client_needs_no_token() -> None:
    assert token_of(HashBy("client")) is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (b"uw.a=0123", b"0123"),
        (b"x=1; uw.a=0123", b"0123"),
        (b"x=1;\tuw.a=0123 ; y=2", b"0123"),
        (b"uwxa=0123", None),
        (b"uw.a=01234", None),
        (b"uw.a=0123x", None),
        (b"uw.a=\"0123\"", None),
        (b"x=uw.a=0123", None),
        (b"xuw.a=0123", None),
        (b"uw.a =0123", None),
    ],
)
def test_cookie_pattern(field: bytes, value: bytes | None) -> None:
    match = cookie_pattern(b"uw.a", rb"[0-9]{4}").search(field)
    assert (match[1] if match is not None else None) == value


@given(st.binary(max_size=2000))
def test_cookie_pattern_is_fast(field: bytes) -> None:
    cookie_pattern(b"a", rb"[^;\s]*").search(b";" * 2000 + b" " * 2000 + field)


# --- sticky sessions ----------------------------------------------------------------------------


@pytest.fixture
def clock() -> Iterator[Clock]:
    with resting_clock() as clock:
        yield clock


class Session:
    """Requests of one client, with the cookies that it was given."""

    def __init__(self, sticky: Sticky, clock: Clock, nodes: list[Node]) -> None:
        self.sticky = sticky
        self.clock = clock
        self.resolver = StaticResolver(nodes, "wrr", clock)
        self.cookie = b""

    def ask(self, *, secure: bool = False, fallback: Node | None = None) -> tuple[Node, bytes]:
        """The node, and the Set-Cookie line of the response."""
        request = Request(cookie=self.cookie)
        request.gateway = self  # type: ignore[attr-defined]
        attempts = cast(Attempts, request)
        found = self.sticky.node_of(attempts) or self.resolver.pick("key", b"", ())
        assert found is not None
        request.node = fallback or found
        head = b"HTTP/1.1 200 OK\r\nServer: x\r\n\r\n"
        marked = self.sticky.mark(attempts, head, secure=secure)
        if marked == head:
            return found, b""
        match = re.fullmatch(rb"HTTP/1.1 200 OK\r\nServer: x\r\n(Set-Cookie: .*)\r\n\r\n", marked)
        assert match is not None
        self.cookie = match[1].partition(b": ")[2].partition(b";")[0]
        return found, match[1]


def test_a_session_stays(clock: Clock) -> None:
    nodes = [node(port) for port in (1, 2, 3)]
    session = Session(Sticky("srv"), clock, nodes)
    first, line = session.ask()
    assert re.fullmatch(
        rb"Set-Cookie: srv=[0-9a-f]{16}; Path=/; HttpOnly; SameSite=Lax", line
    )
    assert b"127.0.0.1" not in line
    assert {session.ask() for _ in range(9)} == {(first, b"")}


def test_a_session_moves_when_its_node_is_dead_and_stays_then(clock: Clock) -> None:
    nodes = [node(port) for port in (1, 2, 3)]
    session = Session(Sticky("srv"), clock, nodes)
    first, _ = session.ask()
    first.failed(clock, 30)
    second, line = session.ask()
    assert second is not first
    assert line
    first.works()
    assert {session.ask() for _ in range(9)} == {(second, b"")}


def test_the_same_cookie_in_every_worker(clock: Clock) -> None:
    sessions = [Session(Sticky("srv"), clock, [node(1), node(2), node(3)]) for _ in range(2)]
    first, _ = sessions[0].ask()
    sessions[1].ask()
    sessions[1].cookie = sessions[0].cookie
    assert {found.name for found, _ in (sessions[1].ask() for _ in range(5))} == {first.name}


@pytest.mark.parametrize("cookie", [b"srv=0123456789abcdef", b"srv=x", b"srv=", b"other=1", b"srv"])
def test_cookies_of_others_are_replaced(clock: Clock, cookie: bytes) -> None:
    session = Session(Sticky("srv"), clock, [node(1)])
    session.cookie = cookie
    assert session.ask()[1]
    assert not session.ask()[1]


def test_secure_over_https_and_nothing_for_the_fallback(clock: Clock) -> None:
    session = Session(Sticky("srv"), clock, [node(1)])
    assert session.ask(secure=True)[1].endswith(b"; Secure")
    session.cookie = b""
    spare = node(9)
    spare.fallback = True
    assert session.ask(fallback=spare)[1] == b""
