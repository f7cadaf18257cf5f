"""Ranges of static files: RFC 9110 §14, §13.1.5 and §15.3.7, clause by clause.

Each over every way in which files are sent: from memory, with sendfile, in pieces, and over TLS.
"""

from __future__ import annotations

import email
import email.policy
import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.certificates import Authority
from support.client import Client, Reply
from support.files import CHANGED_DATE, ask, named, request, write
from support.nodes import RawHttpNode
from support.tls import terminating
from support.uwgate import StartGateway, running

SMALL = random.Random(1).randbytes(1000)
LARGE = random.Random(2).randbytes(3 << 20)
FILES = {b"/small.bin": SMALL, b"/large.bin": LARGE}
TYPE = b"application/octet-stream"
MIB = 1 << 20


@dataclass
class Way:
    """One way to ask for one file."""

    connect: Callable[[], Client]
    path: bytes
    content: bytes

    @property
    def size(self) -> int:
        return len(self.content)


@dataclass
class Connections:
    """How to get a connection, by the name of the way; ``off``: ranges are switched off."""

    clear: Callable[[], Client]
    pieces: Callable[[], Client]
    tls: Callable[[], Client]
    off: Callable[[], Client]


@pytest.fixture(scope="module")
def connections(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Connections]:
    root = tmp_path_factory.mktemp("root")
    for path, content in FILES.items():
        write(root / path.decode()[1:], content)
    write(root / "empty.bin", b"")
    write(root / "page.html", b"<p>page</p>" * 100)
    write(root / "page.html.gz", bytes(range(256)) * 2)
    directory = f"--check-static={root}"
    more = (directory, "--static-gzip-ext=.html", "--static-expires-type=text/html=60")
    with ExitStack() as stack:
        node = stack.enter_context(RawHttpNode())
        authority = Authority(tmp_path_factory.mktemp("ca"))
        yield Connections(
            stack.enter_context(running(*more)).connect,
            stack.enter_context(running(directory, "--disable-sendfile")).connect,
            stack.enter_context(terminating(authority, node, directory)).connect,
            stack.enter_context(running(directory, "--honour-range=false")).connect,
        )
        assert node.seen == []


WAYS = [(how, path) for how in ("clear", "pieces", "tls") for path in FILES]


@pytest.fixture(params=WAYS, ids=[f"{how}-{path.decode()[1:6]}" for how, path in WAYS])
def way(request: pytest.FixtureRequest, connections: Connections) -> Way:
    how, path = request.param
    return Way(getattr(connections, how), path, FILES[path])


def _part(reply: Reply, content: bytes, start: int, end: int) -> None:
    """It is exactly this range (``end`` excluded) and says so."""
    assert reply.status == 206, reply.headers
    wanted = b"bytes %d-%d/%d" % (start, end - 1, len(content))
    assert reply.get(b"content-range") == wanted
    assert reply.get(b"content-length") == b"%d" % (end - start)
    assert reply.body == content[start:end]


def _whole(reply: Reply, content: bytes) -> None:
    assert reply.status == 200, reply.headers
    assert reply.all(b"content-range") == []
    assert reply.get(b"content-length") == b"%d" % len(content)
    assert reply.body == content


def _parts(reply: Reply, size: int) -> list[tuple[int, int, bytes]]:
    """The parts of multipart/byteranges, as Python's email package sees them: (start, end, bytes),
    ``end`` excluded. The response as a whole has no Content-Range (§15.3.7.2)."""
    assert reply.status == 206, reply.headers
    assert reply.all(b"content-range") == []
    kind = reply.get(b"content-type") or b""
    assert kind.startswith(b"multipart/byteranges; boundary=")
    raw = b"Content-Type: " + kind + b"\r\n\r\n" + reply.body
    message = email.message_from_bytes(raw, policy=email.policy.HTTP)
    assert message.is_multipart()
    assert message.defects == []
    found = []
    for part in message.iter_parts():  # type: ignore[attr-defined]
        assert part.defects == []
        assert sorted(part.keys()) == ["Content-Range", "Content-Type"]
        assert part["Content-Type"] == TYPE.decode()
        match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", part["Content-Range"])
        assert match is not None
        assert int(match[3]) == size
        content = part.get_payload(decode=True)
        start, end = int(match[1]), int(match[2]) + 1
        found.append((start, end, content))
    return found


def _split(reply: Reply) -> list[tuple[int, int, bytes]]:
    """The parts once more, byte by byte, so that it is not email's leniency that makes it right."""
    boundary = (reply.get(b"content-type") or b"").partition(b"boundary=")[2]
    delimiter = b"\r\n--" + boundary
    first, *parts, last = (b"\r\n" + reply.body.removeprefix(b"\r\n")).split(delimiter)
    assert (first, last) == (b"", b"--\r\n")
    found = []
    for part in parts:
        head, blank, content = part.partition(b"\r\n\r\n")
        assert blank
        match = re.search(rb"\r\nContent-Range: bytes (\d+)-(\d+)/\d+", head)
        assert match is not None
        assert b"\r\nContent-Type: " in head
        found.append((int(match[1]), int(match[2]) + 1, content))
    return found


# --- one range ------------------------------------------------------------------------------------

SINGLE: list[tuple[str, bytes, Callable[[int], tuple[int, int]]]] = [
    ("14.1.2-first-byte", b"0-0", lambda size: (0, 1)),
    ("14.1.2-first-and-last", b"10-19", lambda size: (10, 20)),
    ("14.1.2-one-byte", b"999-999", lambda size: (999, 1000)),
    ("14.1.2-open", b"500-", lambda size: (500, size)),
    ("14.1.2-open-from-0", b"0-", lambda size: (0, size)),
    ("14.1.2-clipped", b"990-99999999", lambda size: (990, size)),
    ("14.1.2-clipped-huge", b"1-" + b"9" * 400, lambda size: (1, size)),
    ("14.1.2-whole", b"0-99999999", lambda size: (0, size)),
    ("14.1.2-suffix", b"-100", lambda size: (size - 100, size)),
    ("14.1.2-suffix-1", b"-1", lambda size: (size - 1, size)),
    ("14.1.2-suffix-larger-than-the-file", b"-99999999", lambda size: (0, size)),
    ("14.1.2-suffix-huge", b"-" + b"9" * 400, lambda size: (0, size)),
    ("14.1.2-leading-zeros", b"0010-0000000000000000000000000000019", lambda size: (10, 20)),
    ("5.6.1-empty-elements", b", ,10-19,\t,", lambda size: (10, 20)),
    ("14.1.2-only-one-is-satisfiable", b"99999999-,5-6,-0", lambda size: (5, 7)),
    ("14.2-the-same-twice", b"5-6,5-6", lambda size: (5, 7)),
    ("14.2-overlapping", b"5-60,50-99", lambda size: (5, 100)),
    ("14.2-neighbours", b"50-59,0-49", lambda size: (0, 60)),
    ("14.2-80-bytes-between", b"0-9,90-99", lambda size: (0, 100)),
]


@pytest.mark.parametrize(("value", "expected"), named(SINGLE))
def test_a_single_range(way: Way, value: bytes, expected: Callable[[int], tuple[int, int]]) -> None:
    with way.connect() as client:
        reply = ask(client, way.path, b"Range: bytes=" + value)
        _part(reply, way.content, *expected(way.size))
        assert reply.get(b"content-type") == TYPE
        _whole(ask(client, way.path), way.content)


def test_what_a_206_has_15_3_7(way: Way) -> None:
    """The fields of a 200; of the same representation."""
    with way.connect() as client:
        whole = ask(client, way.path)
        reply = ask(client, way.path, b"Range: bytes=1-2")
    for name in (b"etag", b"last-modified", b"content-type", b"accept-ranges"):
        assert reply.get(name) == whole.get(name)
        assert reply.get(name)
    assert reply.get(b"date")
    assert not reply.closes


@pytest.mark.parametrize("unit", [b"bytes", b"BYTES", b"Bytes", b"bYtEs"])
def test_the_unit_is_case_insensitive_14_1(way: Way, unit: bytes) -> None:
    with way.connect() as client:
        _part(ask(client, way.path, b"RANGE:" + unit + b"=3-7 "), way.content, 3, 8)


def test_accept_ranges_14_3(connections: Connections) -> None:
    with connections.clear() as client:
        for path in (*FILES, b"/empty.bin", b"/page.html"):
            for method in (b"GET", b"HEAD"):
                assert ask(client, path, method=method).get(b"accept-ranges") == b"bytes"


UNSATISFIABLE = [
    b"%d-", b"%d-%d", b"99999999-", b"9999999999999999999999999-", b"-0", b"-0,-00", b"%d-,-0",
    b"99999999-,88888888-99999999",
]  # fmt: skip


@pytest.mark.parametrize("value", UNSATISFIABLE, ids=ascii)
def test_all_behind_the_end_15_5_17(way: Way, value: bytes) -> None:
    value = value.replace(b"%d", b"%d" % way.size)
    with way.connect() as client:
        reply = ask(client, way.path, b"Range: bytes=" + value)
        assert (reply.status, reply.body) == (416, b"")
        assert reply.get(b"content-range") == b"bytes */%d" % way.size
        assert not reply.closes
        _part(ask(client, way.path, b"Range: bytes=0-4"), way.content, 0, 5)


def test_the_last_byte_and_the_one_behind_it_14_1_2(way: Way) -> None:
    with way.connect() as client:
        last = way.size - 1
        _part(ask(client, way.path, b"Range: bytes=%d-" % last), way.content, last, way.size)
        assert ask(client, way.path, b"Range: bytes=%d-" % way.size).status == 416


IGNORED = [
    ("14.1.1-last-before-first", [b"Range: bytes=5-4"]),
    ("14.1.1-last-before-first-in-a-list", [b"Range: bytes=0-1,500-400"]),
    ("14.1.1-last-before-first-behind-the-end", [b"Range: bytes=99999999-88888888"]),
    ("14.2-other-unit", [b"Range: seconds=0-1"]),
    ("14.2-unit-with-more", [b"Range: bytesx=0-1"]),
    ("14.2-none", [b"Range: none"]),
    ("14.2-empty", [b"Range: "]),
    ("14.2-no-ranges", [b"Range: bytes="]),
    ("14.2-only-commas", [b"Range: bytes=,,"]),
    ("14.2-no-unit", [b"Range: 0-1"]),
    ("14.2-blanks-around-the-dash", [b"Range: bytes=0 - 1"]),
    ("14.2-blank-before-the-sign", [b"Range: bytes =0-1"]),
    ("14.2-two-dashes", [b"Range: bytes=0--1"]),
    ("14.2-only-a-dash", [b"Range: bytes=-"]),
    ("14.2-no-dash", [b"Range: bytes=5"]),
    ("14.2-plus", [b"Range: bytes=+0-1"]),
    ("14.2-hexadecimal", [b"Range: bytes=0x0-0x1"]),
    ("14.2-letters-in-a-list", [b"Range: bytes=0-1,a-b"]),
    ("14.2-other-digits", ["Range: bytes=٠-١".encode()]),
    ("14.2-underscore", [b"Range: bytes=1_0-2_0"]),
    ("14.2-content-range-as-range", [b"Range: bytes 0-1/1000"]),
    ("14.2-repeated", [b"Range: bytes=0-1", b"Range: bytes=0-1"]),
    ("14.2-a-byte-three-times", [b"Range: bytes=0-9,5-9,9-20"]),
    ("14.2-101-specs", [b"Range: bytes=" + b"0-0," * 100 + b"0-0"]),
    ("14.2-thousands", [b"Range: bytes=" + b"0-," * 1500 + b"0-"]),
    ("14.2-no-field", [b"X-Range: bytes=0-1", b"Content-Range: bytes 0-1/1000"]),
]  # fmt: skip


@pytest.mark.parametrize("fields", named(IGNORED))
def test_ignored(way: Way, fields: list[bytes]) -> None:
    with way.connect() as client:
        _whole(ask(client, way.path, *fields), way.content)


def test_an_empty_file_14_2(connections: Connections) -> None:
    for connect in (connections.clear, connections.pieces, connections.tls):
        with connect() as client:
            for value in (b"0-", b"0-0", b"-1", b"-0", b"5-", b"0-0,5-5"):
                _whole(ask(client, b"/empty.bin", b"Range: bytes=" + value), b"")


def test_head_has_no_range_14_2(way: Way) -> None:
    with way.connect() as client:
        for value in (b"0-0", b"99999999-", b"0-0,500-500", b"nonsense"):
            for fields in ((), (b"If-Range: x",)):
                field = b"Range: bytes=" + value
                reply = ask(client, way.path, field, *fields, method=b"HEAD")
                assert (reply.status, reply.body) == (200, b"")
                assert reply.get(b"content-length") == b"%d" % way.size
                assert reply.all(b"content-range") == []


def test_honour_range_false(connections: Connections) -> None:
    with connections.off() as client:
        for path, content in FILES.items():
            for value in (b"0-0", b"99999999-", b"0-0,500-500"):
                reply = ask(client, path, b"Range: bytes=" + value)
                _whole(reply, content)
                assert reply.all(b"accept-ranges") == []
            assert ask(client, path, b"If-None-Match: *", b"Range: bytes=0-0").status == 304


# --- several --------------------------------------------------------------------------------------


def test_several_15_3_7_2(way: Way) -> None:
    """In the order of the request; each with its Content-Range, a Content-Type and its bytes."""
    size = way.size
    with way.connect() as client:
        for value, expected in (
            (b"0-0,-1", [(0, 1), (size - 1, size)]),
            (b"500-599, 0-99", [(500, 600), (0, 100)]),
            (b"-10,100-109,  300-309 ,", [(size - 10, size), (100, 110), (300, 310)]),
            (b"0-9,91-99", [(0, 10), (91, 100)]),  # 81 bytes between them
            (b"800-810,0-9,805-820", [(800, 821), (0, 10)]),
            (b"700-,0-9,99999999-", [(700, size), (0, 10)]),
        ):
            reply = ask(client, way.path, b"Range: bytes=" + value)
            found = [(start, end, way.content[start:end]) for start, end in expected]
            assert _split(reply) == found, value
            assert _parts(reply, size) == found, value
            assert not reply.closes
        _whole(ask(client, way.path), way.content)


def test_sixteen_are_allowed_and_no_more_14_2(connections: Connections) -> None:
    for connect in (connections.clear, connections.pieces, connections.tls):
        with connect() as client:
            starts = [number * 190_000 for number in range(16)]
            value = b",".join(b"%d-%d" % (start, start + 99) for start in starts)
            reply = ask(client, b"/large.bin", b"Range: bytes=" + value)
            assert _split(reply) == [(s, s + 100, LARGE[s : s + 100]) for s in starts]
            _whole(ask(client, b"/large.bin", b"Range: bytes=" + value + b",-1"), LARGE)


def test_a_hundred_specs_that_are_one_range_14_2(way: Way) -> None:
    value = b",".join(b"%d-%d" % (i * 10, i * 10 + 5) for i in range(100))
    with way.connect() as client:
        _part(ask(client, way.path, b"Range: bytes=" + value), way.content, 0, 996)


def test_large_parts(connections: Connections) -> None:
    """More than any buffer holds at once."""
    for connect in (connections.clear, connections.pieces, connections.tls):
        with connect() as client:
            value = b"%d-%d,0-%d" % (MIB * 2, MIB * 3 - 2, MIB)
            reply = ask(client, b"/large.bin", b"Range: bytes=" + value)
            one, two = _split(reply)
            assert one == (MIB * 2, MIB * 3 - 1, LARGE[MIB * 2 : MIB * 3 - 1])
            assert two == (0, MIB + 1, LARGE[: MIB + 1])
            _part(ask(client, b"/large.bin", b"Range: bytes=1-"), LARGE, 1, len(LARGE))


def test_each_multipart_has_a_boundary_of_its_own(way: Way) -> None:
    """Nobody knows it before: it cannot be written into a file."""
    with way.connect() as client:
        kinds = {
            ask(client, way.path, b"Range: bytes=0-0,500-500").get(b"content-type")
            for _ in range(5)
        }
    assert len(kinds) == 5


def test_pipelined(way: Way) -> None:
    """Parts, wholes, refusals and texts in turn, on one connection, asked for at once."""
    fields = [b"bytes=5-9", b"", b"bytes=99999999-", b"bytes=0-0,500-509", b"bytes=-1"] * 2
    with way.connect() as client:
        client.send(b"".join(request(way.path, b"Range: " + field) for field in fields))
        for number in range(2):
            _part(client.read_response(), way.content, 5, 10)
            _whole(client.read_response(), way.content)
            assert client.read_response().status == 416
            assert _split(client.read_response())[1] == (500, 510, way.content[500:510]), number
            _part(client.read_response(), way.content, way.size - 1, way.size)


def test_http_1_0_14_2(way: Way) -> None:
    with way.connect() as client:
        client.send(b"GET " + way.path + b" HTTP/1.0\r\nRange: bytes=2-3\r\n\r\n")
        _part(client.read_response(), way.content, 2, 4)
        client.assert_closed()


# --- If-Range -------------------------------------------------------------------------------------

IF_RANGE = [
    ("13.1.5-etag", b"%E", True),
    ("13.1.5-weak-etag", b"W/%E", False),
    ("13.1.5-another-etag", b'"other"', False),
    ("13.1.5-list-of-etags", b'%E, "other"', False),
    ("13.1.5-star", b"*", False),
    ("13.1.5-without-quotes", b"%O", False),
    ("13.1.5-empty", b"", False),
    ("13.1.5-date", CHANGED_DATE, True),
    ("13.1.5-date-rfc850", b"Friday, 14-Jul-17 02:40:00 GMT", True),
    ("13.1.5-date-asctime", b"Fri Jul 14 02:40:00 2017", True),
    ("13.1.5-older-date", b"Fri, 14 Jul 2017 02:39:59 GMT", False),
    ("13.1.5-newer-date", b"Fri, 14 Jul 2017 02:40:01 GMT", False),
    ("13.1.5-invalid-date", b"Fri, 14 Jul 2017 02:40:00", False),
]


@pytest.mark.parametrize(("value", "applies"), named(IF_RANGE))
def test_if_range(way: Way, value: bytes, applies: bool) -> None:
    with way.connect() as client:
        etag = ask(client, way.path, method=b"HEAD").get(b"etag") or b""
        field = b"If-Range: " + value.replace(b"%E", etag).replace(b"%O", etag.strip(b'"'))
        reply = ask(client, way.path, b"Range: bytes=1-5", field)
        if applies:
            _part(reply, way.content, 1, 6)
            assert ask(client, way.path, field, b"Range: bytes=99999999-").status == 416
            assert len(_split(ask(client, way.path, field, b"Range: bytes=0-0,500-500"))) == 2
        else:
            _whole(reply, way.content)
            _whole(ask(client, way.path, field, b"Range: bytes=99999999-"), way.content)
        _whole(ask(client, way.path, field), way.content)


def test_if_range_twice_13_1_5(way: Way) -> None:
    """Nobody can tell what is meant: the whole file is always right."""
    with way.connect() as client:
        etag = ask(client, way.path, method=b"HEAD").get(b"etag") or b""
        for second in (etag, b'"other"'):
            fields = (b"Range: bytes=0-0", b"If-Range: " + etag, b"If-Range: " + second)
            _whole(ask(client, way.path, *fields), way.content)


def test_a_file_of_this_moment_has_no_strong_date_8_8_2_2(
    tmp_path: Path, start_gateway: StartGateway
) -> None:
    """It could change again within the second of its Last-Modified."""
    gateway = start_gateway(f"--check-static={tmp_path}")
    with gateway.connect() as client:
        for attempt in range(20):
            write(tmp_path / f"{attempt}.bin", SMALL, now := int(time.time()))
            path = b"/%d.bin" % attempt
            date = ask(client, path).get(b"last-modified")
            reply = ask(client, path, b"Range: bytes=0-0", b"If-Range: " + (date or b""))
            if date is not None and int(time.time()) == now:  # all within that second
                _whole(reply, SMALL)
                return
    pytest.fail("twenty times slower than a second")


# --- of variants ----------------------------------------------------------------------------------


def test_ranges_are_those_of_the_variant_14_1(connections: Connections) -> None:
    """§14.1: of the selected representation, after its content coding."""
    packed, plain = bytes(range(256)) * 2, b"<p>page</p>" * 100
    with connections.clear() as client:
        for fields, content in (((b"Accept-Encoding: gzip",), packed), ((), plain)):
            reply = ask(client, b"/page.html", *fields, b"Range: bytes=100-")
            _part(reply, content, 100, len(content))
            assert reply.all(b"content-encoding") == ([b"gzip"] if fields else [])
            assert reply.get(b"vary") == b"Accept-Encoding"
            assert reply.get(b"cache-control") == b"max-age=60"
            etag = reply.get(b"etag") or b""
            more = (b"Range: bytes=0-9", b"If-Range: " + etag)
            _part(ask(client, b"/page.html", *fields, *more), content, 0, 10)
            other = () if fields else (b"Accept-Encoding: gzip",)
            assert ask(client, b"/page.html", *other, *more).status == 200


# --- any ------------------------------------------------------------------------------------------


def _expected(specs: list[tuple[int | None, int | None]], size: int) -> set[int] | None:
    """All offsets that are asked for, plainly; None where there is a malformed one."""
    wanted: set[int] = set()
    for first, last in specs:
        if first is None:
            wanted.update(range(max(0, size - (last or 0)), size))
        elif last is not None and last < first:
            return None
        else:
            wanted.update(range(first, size if last is None else min(size, last + 1)))
    return wanted


_offset = st.integers(0, 1100)
_spec = st.one_of(
    st.tuples(_offset, _offset),
    st.tuples(_offset, st.none()),
    st.tuples(st.none(), _offset),
    st.builds(lambda first, more: (first, first + more), _offset, st.integers(0, 30)),
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    specs=st.lists(_spec, min_size=1, max_size=20), comma=st.sampled_from([b",", b", ", b",,\t"])
)
def test_any_list_of_ranges(
    connections: Connections, specs: list[tuple[int | None, int | None]], comma: bytes
) -> None:
    """Whatever is asked for, what comes is slices of the file that cover all of it, with at most
    80 bytes between them that nobody wanted; or the whole, or 416."""
    value = comma.join(
        b"%b-%b" % (b"" if a is None else b"%d" % a, b"" if b is None else b"%d" % b)
        for a, b in specs
    )
    wanted = _expected(specs, len(SMALL))
    with connections.clear() as client:
        reply = ask(client, b"/small.bin", b"Range: bytes=" + value)
    if reply.status == 200:
        _whole(reply, SMALL)
        assert wanted is None or len(specs) > 1  # a single one is never ignored
        return
    assert wanted is not None
    if not wanted:
        assert reply.status == 416
        return
    if reply.all(b"content-range"):
        match = re.fullmatch(rb"bytes (\d+)-(\d+)/1000", reply.get(b"content-range") or b"")
        assert match is not None
        parts = [(int(match[1]), int(match[2]) + 1, reply.body)]
    else:
        parts = _split(reply)
        assert len(parts) > 1
    sent: set[int] = set()
    for start, end, content in parts:
        assert content == SMALL[start:end]
        assert not sent & set(range(start, end))  # no byte twice
        assert {start, end - 1} <= wanted
        sent.update(range(start, end))
    assert wanted <= sent
