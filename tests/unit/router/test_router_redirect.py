"""Where http-to-https leads, and Strict-Transport-Security in response heads."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uwgate.protocols.http1 import HOST
from uwgate.protocols.http1_response import ResponseHead, ResponseParser, ResponsePolicy
from uwgate.router.hsts import Hsts
from uwgate.router.redirect import host_of, location

LINE = b"Strict-Transport-Security: max-age=31536000\r\n"


@pytest.mark.parametrize(
    ("value", "host"),
    [
        (b"example.com", b"example.com"),
        (b"example.com:8080", b"example.com"),
        (b"example.com:", b"example.com"),
        (b"192.0.2.1:80", b"192.0.2.1"),
        (b"[2001:db8::1]", b"[2001:db8::1]"),
        (b"[2001:db8::1]:8080", b"[2001:db8::1]"),
    ],
)
def test_the_port_is_cut_off(value: bytes, host: bytes) -> None:
    assert host_of(value) == host


@given(st.from_regex(HOST, fullmatch=True))
def test_every_valid_host_keeps_its_name(value: bytes) -> None:
    host = host_of(value)
    assert value.startswith(host)
    assert HOST.fullmatch(host)
    rest = value[len(host) :]
    assert rest == b"" or (rest[:1] == b":" and b"]" not in rest)


@pytest.mark.parametrize(
    ("port", "target", "uri"),
    [
        (0, b"/a?b=c#", b"https://h/a?b=c#"),
        (8443, b"/", b"https://h:8443/"),
        (0, b"//evil.example/", b"https://h//evil.example/"),
        (0, b"*", b"https://h"),
    ],
)
def test_the_target_follows_as_it_came(port: int, target: bytes, uri: bytes) -> None:
    assert location(b"h", port, target) == uri


def parse(raw: bytes) -> ResponseHead:
    return ResponseParser(ResponsePolicy()).parse(raw)


def test_a_marked_head_differs_in_one_line() -> None:
    hsts = Hsts("max-age=31536000")
    head = parse(b"HTTP/1.1 200 OK\r\nDate: now\r\nContent-Length: 2\r\n\r\n")
    before = head.ready
    marked = hsts.mark(head)
    assert (head.ready, head.clean) == (before, True), "heads are shared"
    assert not marked.clean
    assert marked.lines == head.lines + LINE
    assert marked.ready == head.lines + LINE + b"Content-Length: 2\r\n\r\n"
    assert (marked.status, marked.length, marked.count) == (200, 2, head.count + 1)
    assert hsts.mark(head) is marked
    assert hsts.mark(marked) is marked


def test_a_head_without_date_keeps_room_for_it() -> None:
    marked = Hsts("max-age=31536000").mark(parse(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"))
    assert marked.undated == b"HTTP/1.1 200 OK\r\n" + LINE + b"Content-Length: 2\r\n"
    assert marked.ready == b""


@pytest.mark.parametrize("name", [b"Strict-Transport-Security", b"strict-transport-security"])
def test_what_the_node_says_counts(name: bytes) -> None:
    head = parse(b"HTTP/1.1 200 OK\r\n%b: max-age=0\r\n\r\n" % name)
    assert Hsts("max-age=1").mark(head) is head


def test_a_name_that_only_ends_so_is_another() -> None:
    head = parse(b"HTTP/1.1 200 OK\r\nX-Strict-Transport-Security: max-age=0\r\n\r\n")
    assert Hsts("max-age=1").mark(head) is not head


def test_what_is_remembered_is_bounded() -> None:
    hsts = Hsts("max-age=1")
    for number in range(2000):
        assert hsts.line in hsts.mark(parse(b"HTTP/1.1 200 OK\r\nX: %d\r\n\r\n" % number)).lines
        assert len(hsts._marked) <= 258
