"""Lines that change with every request: what is cut and put back means what a full parse says."""

from __future__ import annotations

from collections import defaultdict

import pytest
from http1_tools import block_of, decode, facts, forwarded
from hypothesis import example, given, settings
from hypothesis import strategies as st

from uwgate.protocols.http1 import Http1Error
from uwgate.protocols.http1_request import RequestBlock, RequestParser, RequestPolicy
from uwgate.protocols.http1_varying import VaryingLines

ALLOWING = RequestPolicy(x_forwarded=False, allow_underscores=True)
HOST = b"Host: h"


def learned(*names: bytes) -> VaryingLines:
    """An instance that has seen these names with two values."""
    varying = VaryingLines(RequestPolicy())
    varying.learn(
        block_of(HOST, *(name + b": 1" for name in names)),
        block_of(HOST, *(name + b": 2" for name in names)),
    )
    return varying


def cuts(varying: VaryingLines, name: bytes) -> bool:
    """Whether ``varying`` knows this name alone."""
    return varying.cut(block_of(HOST, name + b": x")) == block_of(HOST)


# --- cutting --------------------------------------------------------------------------------------


def test_nothing_is_cut_before_something_is_learned() -> None:
    assert VaryingLines(RequestPolicy()).cut(block_of(HOST, b"X-Id: 1")) is None


def test_a_learned_line_is_cut_and_kept() -> None:
    varying = learned(b"X-Id")
    assert varying.cut(block_of(HOST, b"X-Id: \t7 ", b"A: b")) == block_of(HOST, b"A: b")
    assert varying.extra == b"\r\nX-Id: \t7 "
    assert decode(varying.extra_variables()) == [(b"HTTP_X_ID", b"7")]
    assert varying.cut(block_of(HOST, b"X-Id:", b"A: b")) == block_of(HOST, b"A: b")
    assert varying.extra == b"\r\nX-Id:"
    assert decode(varying.extra_variables()) == [(b"HTTP_X_ID", b"")]


def test_several_lines() -> None:
    varying = learned(b"X-Id", b"traceparent", b"Cookie", b"Content-Type")
    raw = block_of(b"Cookie: a=b", b"traceparent: t", HOST, b"Content-Type: c/d", b"X-Id: 7")
    assert varying.cut(raw) == block_of(HOST)
    assert sorted(varying.extra.split(b"\r\n")) == [
        b"", b"Content-Type: c/d", b"Cookie: a=b", b"X-Id: 7", b"traceparent: t",
    ]  # fmt: skip
    assert sorted(decode(varying.extra_variables())) == [
        (b"CONTENT_TYPE", b"c/d"),
        (b"HTTP_COOKIE", b"a=b"),
        (b"HTTP_TRACEPARENT", b"t"),
        (b"HTTP_X_ID", b"7"),
    ]


def test_all_lines_of_a_block_may_go() -> None:
    assert learned(b"X-Id").cut(block_of(b"X-Id: 1")) == b"\r\n\r\n"


@pytest.mark.parametrize(
    "raw",
    [
        block_of(HOST),  # not there
        block_of(HOST, b"x-id: 1"),  # spelled in another way
        block_of(HOST, b"X-Id : 1"),
        block_of(HOST, b"X-Id: \x00"),
        block_of(HOST, b"X-Id: a\x0bb"),
        block_of(HOST, b"X-Id: a\nb"),
        block_of(HOST, b"X-Id: a\rb"),
        block_of(HOST, b"X-Id: \x7f"),
        block_of(HOST, b"X-Id: " + b"a" * 70_000),  # no uwsgi variable holds it
        block_of(HOST, b"X-Id: 1", b"X-Id: 2"),  # lines of one name keep their order
        block_of(HOST, b"X-Id: 1", b"x-iD: 2"),
        block_of(HOST, b"X_Id: 2", b"X-Id: 1"),  # one uwsgi variable
        block_of(HOST, b"X-Id: 1", b"Connection: close, x-id"),  # of this connection only
        block_of(HOST, b"Connection: X-Id", b"X-Id: 1"),
    ],
)
def test_what_is_left_to_a_full_parse(raw: bytes) -> None:
    assert learned(b"X-Id").cut(raw) is None


def test_a_learned_name_inside_a_value_is_no_second_line() -> None:
    lines = (HOST, b"Referer: http://h/?x-id: 1", b"Connection: close")
    assert learned(b"X-Id").cut(block_of(*lines, b"X-Id: 1")) == block_of(*lines)


@pytest.mark.parametrize(
    "raw",
    [
        b"\r\nHost: h\r\nX-Id: 1",  # not all there yet
        b"\r\nHost: h\r\nX-Id: 1\r\n",
        b"\r\nHost: h\r\n\r\r\nX-Id: 1\n",  # a cut would leave a blank line that was not sent
        b"\r\nHost: h\r\n\r\nX-Id: 1\r\n",  # behind the blank line: not a field
        b"\r\nHost: h\r\n\r\nX-Id: 1\r\n\r\n",
        b"\r\nHost: h\r\nX-Id: 1\r\n\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n",
        b"\r\r\nX-Id: 1\r\n",
        b"\r\nX-Id:",
        b"",
    ],
)
def test_only_a_whole_block_is_cut(raw: bytes) -> None:
    assert learned(b"X-Id").cut(raw) is None


def test_a_refused_cut_leaves_the_next_one_right() -> None:
    varying = learned(b"X-Id")
    usual = block_of(HOST, b"X-Id: 1")
    for other in (block_of(HOST), block_of(HOST, b"X-Id: 1", b"x-id: 2"), b"\r\nX-Id: 1"):
        assert varying.cut(usual) == block_of(HOST)
        assert varying.cut(other) is None
        assert varying.cut(other) is None
    assert varying.cut(usual) == block_of(HOST)
    assert varying.extra == b"\r\nX-Id: 1"


# --- learning -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ((HOST, b"X-Id: 1"), (HOST, b"X-Id: 1")),  # nothing changed
        ((HOST, b"X-Id: 1"), (HOST, b"X-Id: 2", b"A: b")),  # a line more
        ((HOST, b"X-Id: 1"), (b"X-Id: 2", HOST)),  # another order
        ((HOST, b"X-Other: 1"), (HOST, b"X-Id: 2")),
        ((HOST, b"x-id: 1"), (HOST, b"X-Id: 2")),
        ((), (b"X-Id: 2",)),
        ((HOST, b"X-Id: 0", b"X-Id: 1"), (HOST, b"X-Id: 0", b"X-Id: 2")),
        ((HOST, b"X_Id: 0", b"X-Id: 1"), (HOST, b"X_Id: 0", b"X-Id: 2")),
        ((HOST, b"x-id: 0", b"X-Id: 1"), (HOST, b"x-id: 0", b"X-Id: 2")),
        ((HOST, b"Connection: x-id", b"X-Id: 1"), (HOST, b"Connection: x-id", b"X-Id: 2")),
        ((b"Host: a", b"X-Id: 1"), (b"Host: b", b"X-Id: 2")),  # a steering line changes too
    ],
)
def test_what_teaches_nothing(before: tuple[bytes, ...], now: tuple[bytes, ...]) -> None:
    varying = VaryingLines(RequestPolicy())
    varying.learn(block_of(*before), block_of(*now))
    assert not cuts(varying, b"X-Id")


@pytest.mark.parametrize(
    "name",
    [
        b"Host", b"Content-Length", b"Transfer-Encoding", b"Connection", b"Keep-Alive", b"Upgrade",
        b"Proxy-Connection", b"TE", b"Expect", b"Forwarded", b"X-Forwarded-For",
        b"X-Forwarded-Host",
        b"X-Forwarded-Proto", b"Via", b"Proxy", b"Accept-Encoding", b"HTTP2-Settings", b"X_Id",
        b"Content_Length",
    ],
)  # fmt: skip
def test_steering_fields_are_never_learned(name: bytes) -> None:
    for spelling in (name, name.upper(), name.lower()):
        varying = learned(spelling)
        assert varying.cut(block_of(spelling + b": 3")) is None
        assert varying.cut(block_of(HOST, spelling + b": 3")) is None


def test_lines_learned_one_after_the_other() -> None:
    varying = learned(b"A")
    before, now = (varying.cut(block_of(HOST, b"A: 3", b"B: %d" % i)) for i in range(2))
    assert before is not None
    assert now is not None
    varying.learn(before, now)
    assert varying.cut(block_of(HOST, b"A: 4", b"B: 5")) == block_of(HOST)
    assert sorted(decode(varying.extra_variables())) == [(b"HTTP_A", b"4"), (b"HTTP_B", b"5")]


def test_clients_may_change_their_habits() -> None:
    varying = learned(b"A", b"B")
    assert not cuts(varying, b"A")
    varying.learn(block_of(HOST, b"A: 3"), block_of(HOST, b"A: 4"))
    assert cuts(varying, b"A")


def test_eight_lines_and_no_more() -> None:
    names = [b"X-%d" % i for i in range(9)]
    assert learned(*names).cut(block_of(HOST, *(name + b": 3" for name in names))) is None
    varying = learned(*names[:8])
    raw = block_of(HOST, *(name + b": 3" for name in names))
    assert varying.cut(raw) == block_of(HOST, names[8] + b": 3")
    varying.learn(block_of(HOST, b"X-8: 1"), block_of(HOST, b"X-8: 2"))
    assert varying.cut(raw) == block_of(HOST, names[8] + b": 3")


def test_every_comparison_costs_an_attempt() -> None:
    varying = VaryingLines(RequestPolicy())
    first = varying.attempts
    assert first > 0
    varying.learn(block_of(HOST), block_of(HOST))
    varying.learn(block_of(HOST, b"A: 1"), block_of(HOST, b"A: 2"))
    assert varying.attempts == first - 2


# --- equivalence ----------------------------------------------------------------------------------

_NAMES = [
    b"Host", b"X-Id", b"x-id", b"X_Id", b"Cookie", b"cookie", b"Traceparent", b"Connection",
    b"Accept",
    b"Content-Length", b"Content-Type", b"Upgrade", b"X-Forwarded-For", b"Via", b"Expect", b"id",
]  # fmt: skip
_VALUES = [
    b"", b"0", b"5", b"h", b"close", b"X-Id", b"cookie, close", b"upgrade", b" a=b\t",
    b"100-continue",
    b"\x00", b"x\ny", b"x\r", b"host",
]  # fmt: skip
_line = st.tuples(st.sampled_from(_NAMES), st.sampled_from(_VALUES)).map(b":".join)
_lines = st.lists(_line, max_size=6)
_varied = st.lists(st.sampled_from([b"X-Id", b"Cookie", b"Traceparent"]), max_size=3, unique=True)


def _by_name(lines: list[bytes]) -> dict[bytes, list[bytes]]:
    """Lines in order, each name apart: all that their order may mean (RFC 9110 §5.3)."""
    names: dict[bytes, list[bytes]] = defaultdict(list)
    for line in lines:
        names[line.split(b":")[0].lower()].append(line)
    return names


def _said(block: RequestBlock) -> dict[str, object]:
    said = facts(block)
    for name in ("raw", "forward", "variables"):
        del said[name]
    return said


def _agree(varying: VaryingLines, raw: bytes) -> None:
    """What ``cut`` leaves and keeps means what ``raw`` means, or both are refused."""
    parser = RequestParser(ALLOWING)
    rest = varying.cut(raw)
    if rest is None:
        return
    try:
        composed: RequestBlock | None = parser.parse(rest)
    except Http1Error:
        composed = None
    try:
        full: RequestBlock | None = parser.parse(raw)
    except Http1Error:
        full = None
    assert (composed is None) == (full is None)
    if composed is None or full is None:
        return
    assert _said(composed) == _said(full)
    together = forwarded(composed) + varying.extra.split(b"\r\n")[1:]
    assert _by_name(together) == _by_name(forwarded(full))
    assert sorted(decode(composed.variables + varying.extra_variables())) == sorted(
        decode(full.variables)
    )


@settings(max_examples=150, deadline=None)
@given(start=_lines, varied=_varied, requests=st.lists(_lines, min_size=1, max_size=4))
@example(start=[HOST], varied=[b"X-Id"], requests=[[HOST, b"X-Id: 1", b"x-id: 2"]])
@example(start=[HOST], varied=[b"X-Id"], requests=[[HOST, b"Connection: X-Id", b"X-Id: 1"]])
@example(start=[HOST], varied=[b"X-Id"], requests=[[HOST, b"X_Id: 1", b"X-Id: 1"]])
def test_a_cut_means_what_a_full_parse_says(
    start: list[bytes], varied: list[bytes], requests: list[list[bytes]]
) -> None:
    """As the router uses it: learn from two blocks, then cut every block that comes."""
    parser = RequestParser(ALLOWING)
    varying = VaryingLines(RequestPolicy())
    before, now = (block_of(*start, *(name + b": %d" % i for name in varied)) for i in range(2))
    for raw in (before, now):
        try:
            parser.parse(raw)
        except Http1Error:
            return  # the router compares only blocks that were understood
    varying.learn(before, now)
    _agree(varying, now)
    for lines in requests:
        _agree(varying, block_of(*lines))
        _agree(varying, block_of(*start, *(name + b": x" for name in varied)))
        _agree(varying, block_of(*lines, *(name + b": x" for name in varied)))


@settings(max_examples=120, deadline=None)
@given(
    data=st.lists(
        st.sampled_from(
            [b"\r\n", b"\r", b"\n", b"X-Id: 1", b"X-Id:", b"Host: h", b"Cookie: c", b"x"]
        ),
        max_size=10,
    ).map(b"".join)
)
@example(data=b"\r\nHost: h\r\n\r\nX-Id: 1\r\n")
@example(data=b"\r\nHost: h\r\n\r\r\nX-Id: 1\n")
@example(data=b"\r\r\nX-Id: 1\r\n")
def test_bytes_that_are_no_block_never_become_one(data: bytes) -> None:
    for varying in (learned(b"X-Id"), learned(b"X-Id", b"Cookie")):
        if varying.cut(data) is not None:
            assert data.find(b"\r\n\r\n") == len(data) - 4
            _agree(varying, data)


def test_who_the_client_is_may_not_be_a_line_that_varies() -> None:
    """Such lines are removed from every block, and must not come back by the side."""
    claims = (b"X-Real-IP", b"X-Forwarded-Port", b"Front-End-Https")
    facts_of_tls = (b"X-SSL-Client-Verify", b"x-ssl-cipher")
    for policy, refused, allowed in (
        (RequestPolicy(), claims, facts_of_tls),
        (RequestPolicy(strip_tls=True), (*claims, *facts_of_tls), ()),
        (RequestPolicy(trusted=True), (), (*claims, *facts_of_tls)),
        (RequestPolicy(trusted=True, strip_tls=True), facts_of_tls, claims),
    ):
        for name in (*refused, *allowed):
            varying = VaryingLines(policy)
            varying.learn(block_of(HOST, name + b": 1"), block_of(HOST, name + b": 2"))
            assert cuts(varying, name) == (name in allowed), (policy, name)
