"""Ranges of static files: RFC 9110 §14, §13.1.5 and §15.3.7, clause by clause.

Ids name the clause. Each case is asked of a small file (kept in memory), of those on both sides of
the limit, and of a large one, in every way that bytes may go to a client.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.certificates import Authority
from support.client import Client, Reply
from support.files import CHANGED_DATE, ask, request, write
from support.nodes import RawHttpNode
from support.static import Connect, every_way, parts_of
from support.uwgate import StartGateway

# Printable and without line ends: `email` would take those for its own.
_LETTERS = bytes(random.Random(14).choices(range(0x21, 0x7F), k=100_000))
CONTENT = {
    b"/small.txt": _LETTERS[:1000],
    b"/edge.txt": _LETTERS[:65536],
    b"/above.txt": _LETTERS[:65537],
    b"/large.txt": _LETTERS,
}
WAYS = ["sendfile", "reading", "threads", "tls-sendfile", "tls-threads"]
NEVER = b"Mon, 01 Jan 1990 00:00:00 GMT"
FORMS = [CHANGED_DATE, b"Friday, 14-Jul-17 02:40:00 GMT", b"Fri Jul 14 02:40:00 2017"]


@dataclass
class Site:
    """Open connections in all ways, and the ETags of the files."""

    ways: dict[str, Connect]
    clients: dict[str, Client]
    etags: dict[bytes, bytes]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    root = tmp_path_factory.mktemp("root")
    for path, content in CONTENT.items():
        write(root / path.decode()[1:], content)
    write(root / "empty.txt", b"")
    options = (f"--check-static={root}", "--static-expires-type=text/plain=60")
    authority = Authority(tmp_path_factory.mktemp("ca"))
    with every_way(authority, *options) as ways, ExitStack() as stack:
        clients = {name: stack.enter_context(ways.connect[name]()) for name in WAYS}
        replies = {path: ask(clients["sendfile"], path) for path in CONTENT}
        etags = {path: reply.get(b"etag") or b"" for path, reply in replies.items()}
        assert all(etag.startswith(b'"') for etag in etags.values())
        yield Site(ways.connect, clients, etags)


def _check_whole(reply: Reply, content: bytes) -> None:
    assert (reply.status, reply.body == content) == (200, True)
    assert reply.get(b"content-length") == b"%d" % len(content)
    assert reply.all(b"content-range") == []
    assert reply.get(b"accept-ranges") == b"bytes"


def _check_part(reply: Reply, content: bytes, start: int, end: int) -> None:
    assert (reply.status, reply.body == content[start:end]) == (206, True), reply.headers
    assert reply.get(b"content-range") == b"bytes %d-%d/%d" % (start, end - 1, len(content))
    assert reply.get(b"content-length") == b"%d" % (end - start)
    assert reply.get(b"content-type") == b"text/plain; charset=utf-8"


def _check_unsatisfied(reply: Reply, content: bytes) -> None:
    assert (reply.status, reply.body) == (416, b"")
    assert reply.get(b"content-range") == b"bytes */%d" % len(content)
    for name in (b"etag", b"last-modified", b"content-type", b"expires"):
        assert reply.all(name) == []


def _check(reply: Reply, content: bytes, wanted: object) -> None:
    """``wanted``: a status, or a slice of the content."""
    if isinstance(wanted, slice):
        start, end, _ = wanted.indices(len(content))
        _check_part(reply, content, start, end)
    elif wanted == 416:
        _check_unsatisfied(reply, content)
    else:
        assert wanted == 200
        _check_whole(reply, content)
    assert reply.get(b"date")
    assert not reply.closes


# %N: the size of the file; %L: its last byte; %M: one byte less.
SINGLE: list[tuple[str, bytes, object]] = [
    ("14.1.1-first-byte", b"bytes=0-0", slice(0, 1)),
    ("14.1.1-first-500", b"bytes=0-499", slice(0, 500)),
    ("14.1.1-in-the-middle", b"bytes=300-310", slice(300, 311)),
    ("14.1.1-last-byte", b"bytes=%L-%L", slice(-1, None)),
    ("14.1.1-all-but-one", b"bytes=0-%M", slice(0, -1)),
    ("14.1.1-whole", b"bytes=0-%L", slice(0, None)),
    ("14.1.1-leading-zeros", b"bytes=00000000000000000000000000001-0000002", slice(1, 3)),
    ("14.1.1-last-before-first-is-invalid", b"bytes=5-4", 200),
    ("14.1.1-last-before-first-beyond-the-end", b"bytes=99999999-99999998", 200),
    ("14.1.2-open", b"bytes=990-", slice(990, None)),
    ("14.1.2-open-from-the-start", b"bytes=0-", slice(0, None)),
    ("14.1.2-open-last-byte", b"bytes=%L-", slice(-1, None)),
    ("14.1.2-clipped-one-beyond", b"bytes=1-%N", slice(1, None)),
    ("14.1.2-clipped", b"bytes=1-99999999", slice(1, None)),
    ("14.1.2-clipped-63-bits", b"bytes=1-9223372036854775807", slice(1, None)),
    ("14.1.2-clipped-64-bits", b"bytes=1-18446744073709551616", slice(1, None)),
    ("14.1.2-clipped-4000-digits", b"bytes=1-" + b"9" * 4000, slice(1, None)),
    ("14.1.2-suffix", b"bytes=-7", slice(-7, None)),
    ("14.1.2-suffix-one", b"bytes=-1", slice(-1, None)),
    ("14.1.2-suffix-of-all", b"bytes=-%N", slice(0, None)),
    ("14.1.2-suffix-longer-than-all", b"bytes=-99999999", slice(0, None)),
    ("14.1.2-suffix-4000-digits", b"bytes=-" + b"9" * 4000, slice(0, None)),
    ("14.1.2-suffix-of-nothing", b"bytes=-0", 416),
    ("14.1.2-suffix-of-nothing-in-zeros", b"bytes=-0000", 416),
    ("14.1.2-beyond", b"bytes=%N-", 416),
    ("14.1.2-beyond-and-closed", b"bytes=%N-99999999", 416),
    ("14.1.2-beyond-63-bits", b"bytes=9223372036854775808-", 416),
    ("14.1.2-beyond-64-bits", b"bytes=18446744073709551616-", 416),
    ("14.1.2-beyond-4000-digits", b"bytes=" + b"9" * 4000 + b"-", 416),
    ("14.1.2-several-beyond", b"bytes=%N-,99999999-,-0", 416),
    ("14.1-unit-in-any-case", b"ByTeS=1-2", slice(1, 3)),
    ("14.1-unit-unknown", b"lines=1-2", 200),
    ("14.1-unit-longer", b"bytesx=1-2", 200),
    ("14.1-unit-missing", b"=1-2", 200),
    ("14.1-unit-alone", b"bytes", 200),
    ("14.1-set-missing", b"bytes=", 200),
    ("14.1-other-range", b"bytes=abc", 200),
    ("5.6.1-empty-elements", b"bytes=,1-2,,", slice(1, 3)),
    ("5.6.1-only-empty-elements", b"bytes=,,,", 200),
    *((f"14.1.1-malformed-{each.decode('latin-1')!r}", b"bytes=" + each, 200) for each in (
        b"-", b"--1", b"1", b"1--2", b"1-2-3", b"+1-2", b"1-+2", b"-+1", b"0x1-2", b"1.0-2",
        b"1e0-2", b"1_0-20", b"1-2;q=1", b"1 -2", b"1- 2", b'"1-2"', b"1-2,", b"1-2 3-4",
        b"\xb2-3", b"\xd9\xa1-", b"*", b"1-*", b"1-2,x", b"1-2,5-4", b"1-2\t3-4",
    ) if each != b"1-2,"),
    ("14.1-blank-behind-the-unit", b"bytes =1-2", 200),
]  # fmt: skip


@pytest.mark.parametrize(("value", "wanted"), [c[1:] for c in SINGLE], ids=[c[0] for c in SINGLE])
def test_one_range(site: Site, value: bytes, wanted: object) -> None:
    for way, client in site.clients.items():
        for path, content in CONTENT.items():
            size = len(content)
            filled = value
            for mark, number in ((b"%N", size), (b"%L", size - 1), (b"%M", size - 2)):
                filled = filled.replace(mark, b"%d" % number)
            reply = ask(client, path, b"Range: " + filled)
            assert reply.status in (200, 206, 416), (way, path)
            _check(reply, content, wanted)
            if path == b"/small.txt":  # it is not remembered for the next request
                _check_whole(ask(client, path), content)


# --- 13.1.5 ---------------------------------------------------------------------------------------

IF_RANGE: list[tuple[str, bytes, bool]] = [
    ("13.1.5-same-etag", b"%E", True),
    ("13.1.5-other-etag", b'"other"', False),
    ("13.1.5-empty-etag", b'""', False),
    ("13.1.5-weak-etag-never-matches", b"W/%E", False),
    ("13.1.5-asterisk-is-no-etag", b"*", False),
    ("13.1.5-list-is-none", b'%E, "other"', False),
    ("13.1.5-etag-without-quotes", b"%O", False),
    ("13.1.5-nothing", b"", False),
    ("13.1.5-same-date", FORMS[0], True),
    ("13.1.5-same-date-rfc850", FORMS[1], True),
    ("13.1.5-same-date-asctime", FORMS[2], True),
    ("13.1.5-earlier-date", b"Fri, 14 Jul 2017 02:39:59 GMT", False),
    ("13.1.5-later-date-is-not-the-same", b"Fri, 14 Jul 2017 02:40:01 GMT", False),
    ("13.1.5-invalid-date", b"Fri, 14 Jul 2017 02:40:00", False),
]


@pytest.mark.parametrize(
    ("value", "applies"), [c[1:] for c in IF_RANGE], ids=[c[0] for c in IF_RANGE]
)
def test_if_range(site: Site, value: bytes, applies: bool) -> None:
    for client in site.clients.values():
        for path, content in CONTENT.items():
            etag = site.etags[path]
            filled = value.replace(b"%E", etag).replace(b"%O", etag.strip(b'"'))
            fields = [b"If-Range: " + filled, b"Range: bytes=10-19"]
            for order in (fields, fields[::-1]):
                reply = ask(client, path, *order)
                _check(reply, content, slice(10, 20) if applies else 200)
            reply = ask(client, path, b"Range: bytes=%d-" % len(content), fields[0])
            _check(reply, content, 416 if applies else 200)
            reply = ask(client, path, b"Range: bytes=0-9,500-509", fields[0])
            assert reply.status == (206 if applies else 200)


def test_if_range_13_1_5_of_a_date_that_is_no_strong_validator(
    tmp_path: Path, start_gateway: StartGateway
) -> None:
    """§8.8.2.2: changed within the last second, it may change once more without another date."""
    gateway = start_gateway(f"--check-static={tmp_path}")
    with gateway.connect() as client:
        for _ in range(20):
            write(tmp_path / "a.txt", b"0123456789", int(time.time()))
            reply = ask(client, b"/a.txt")
            date = reply.get(b"last-modified") or b""
            again = ask(client, b"/a.txt", b"Range: bytes=1-2", b"If-Range: " + date)
            if date == again.get(b"date") == reply.get(b"date"):
                break
        assert (again.status, again.body) == (200, b"0123456789")


def test_if_range_13_1_5_means_nothing_without_range(site: Site) -> None:
    for client in site.clients.values():
        for value in (b'"other"', b"W/x", CHANGED_DATE):
            _check_whole(ask(client, b"/large.txt", b"If-Range: " + value), _LETTERS)


# --- 14.2 -----------------------------------------------------------------------------------------

TWICE: list[tuple[str, list[bytes], object]] = [
    ("14.2-repeated-is-malformed", [b"Range: bytes=1-2", b"Range: bytes=5-6"], 200),
    ("14.2-repeated-with-if-range", [b"Range: bytes=1-2"] * 2 + [b"If-Range: %E"], 200),
    ("13.1.5-if-range-repeated", [b"Range: bytes=1-2", b"If-Range: %E", b"If-Range: %E"], 200),
    ("14.2-in-another-field", [b"X-Range: bytes=1-2", b"X: Range: bytes=1-2"], 200),
    ("14.2-name-in-any-case", [b"rANGE:bytes=1-2"], slice(1, 3)),
    ("14.2-blanks-around", [b"Range: \t bytes=1-2 \t "], slice(1, 3)),
    ("13.2.2-conditions-come-first-true", [b"If-Match: %E", b"Range: bytes=1-2"], slice(1, 3)),
    ("13.2.2-unsatisfiable-and-true", [b"If-Match: %E", b"Range: bytes=%N-"], 416),
]


@pytest.mark.parametrize(("fields", "wanted"), [c[1:] for c in TWICE], ids=[c[0] for c in TWICE])
def test_fields(site: Site, fields: list[bytes], wanted: object) -> None:
    for client in site.clients.values():
        for path, content in CONTENT.items():
            filled = [
                each.replace(b"%E", site.etags[path]).replace(b"%N", b"%d" % len(content))
                for each in fields
            ]
            _check(ask(client, path, *filled), content, wanted)


@pytest.mark.parametrize(
    ("field", "status"),
    [(b"If-None-Match: *", 304), (b'If-Match: "x"', 412), (b"If-Unmodified-Since: " + NEVER, 412)],
    ids=["13.2.2-304-wins", "13.2.2-412-wins", "13.2.2-412-by-date-wins"],
)
def test_false_conditions_win(site: Site, field: bytes, status: int) -> None:
    for client in site.clients.values():
        for value in (b"bytes=1-2", b"bytes=99999999-", b"bytes=0-1,500-501", b"x"):
            reply = ask(client, b"/large.txt", field, b"Range: " + value)
            assert (reply.status, reply.body, reply.all(b"content-range")) == (status, b"", [])


def test_head_14_2_has_no_ranges(site: Site) -> None:
    for client in site.clients.values():
        for path, content in CONTENT.items():
            for value in (b"bytes=1-2", b"bytes=99999999-", b"bytes=0-1,500-501"):
                reply = ask(client, path, b"Range: " + value, method=b"HEAD")
                assert (reply.status, reply.body) == (200, b"")
                assert reply.get(b"content-length") == b"%d" % len(content)
                assert reply.all(b"content-range") == []


def test_an_empty_file_14_2(site: Site) -> None:
    for client in site.clients.values():
        for value in (b"bytes=0-", b"bytes=0-0", b"bytes=-1", b"bytes=5-", b"bytes=0-0,1-1"):
            _check_whole(ask(client, b"/empty.txt", b"Range: " + value), b"")


def test_http_1_0(site: Site) -> None:
    for connect in site.ways.values():
        for path, content in CONTENT.items():
            with connect() as client:
                client.send(b"GET " + path + b" HTTP/1.0\r\nRange: bytes=5-14\r\n\r\n")
                reply = client.read_response()
                _check_part(reply, content, 5, 15)
                client.assert_closed()


# --- 14.6, 15.3.7 ---------------------------------------------------------------------------------

SEVERAL: list[tuple[str, bytes, list[tuple[int, int]]]] = [
    ("15.3.7.2-two", b"bytes=0-9,500-509", [(0, 10), (500, 510)]),
    ("15.3.7.2-order-of-the-request", b"bytes=500-509,0-9", [(500, 510), (0, 10)]),
    ("15.3.7.2-blanks", b"bytes=0-9 , \t500-509", [(0, 10), (500, 510)]),
    ("15.3.7.2-three-kinds", b"bytes=0-0,300-301,-2", [(0, 1), (300, 302), (-2, 0)]),
    ("15.3.7.2-unsatisfiable-left-out", b"bytes=0-9,99999999-,500-509", [(0, 10), (500, 510)]),
    ("15.3.7.2-one-is-left", b"bytes=5-9,99999999-,-0", [(5, 10)]),
    ("15.3.7.2-overlapping-are-one", b"bytes=0-9,5-19", [(0, 20)]),
    ("15.3.7.2-adjacent-are-one", b"bytes=0-9,10-19", [(0, 20)]),
    ("15.3.7.2-near-are-one", b"bytes=0-9,90-99", [(0, 100)]),
    ("15.3.7.2-just-not-near", b"bytes=0-9,91-99", [(0, 10), (91, 100)]),
    ("15.3.7.2-coalesced-of-three", b"bytes=500-509,0-9,505-520", [(500, 521), (0, 10)]),
    ("15.3.7.2-all-in-pieces", b"bytes=0-499,500-", [(0, 0)]),
]


@pytest.mark.parametrize(("value", "wanted"), [c[1:] for c in SEVERAL], ids=[c[0] for c in SEVERAL])
def test_several_ranges(site: Site, value: bytes, wanted: list[tuple[int, int]]) -> None:
    for client in site.clients.values():
        for path, content in CONTENT.items():
            size = len(content)
            ranges = [(s % size if s < 0 else s, e or size) for s, e in wanted]
            reply = ask(client, path, b"Range: " + value)
            if len(ranges) == 1:
                _check_part(reply, content, *ranges[0])
                continue
            assert reply.status == 206
            assert reply.all(b"content-range") == []
            kind = b"text/plain; charset=utf-8"
            expected = [(s, e - 1, size, kind, content[s:e]) for s, e in ranges]
            assert parts_of(reply) == expected
            assert reply.get(b"content-length") == b"%d" % len(reply.body)
            assert not reply.closes


def test_fields_of_a_206_15_3_7(site: Site) -> None:
    """Those that a 200 has."""
    names = (b"etag", b"last-modified", b"cache-control", b"expires", b"accept-ranges", b"vary")
    for client in site.clients.values():
        for path in CONTENT:
            for _ in range(5):  # until no second has begun between them
                whole = ask(client, path)
                one = ask(client, path, b"Range: bytes=0-9")
                two = ask(client, path, b"Range: bytes=0-9,500-509")
                if two.get(b"date") == whole.get(b"date"):
                    break
            for reply in (one, two):
                assert reply.status == 206
                for name in (*names, b"x-content-type-options"):
                    assert reply.all(name) == whole.all(name), (name, path)


def test_a_boundary_14_6_is_not_the_next_one(site: Site) -> None:
    kinds = {
        ask(client, b"/large.txt", b"Range: bytes=0-9,500-509").get(b"content-type")
        for client in site.clients.values()
        for _ in range(3)
    }
    assert len(kinds) == 3 * len(site.clients)


MANY = {
    "14.2-16-are-served": (b",".join(b"%d-%d" % (n * 1000, n * 1000) for n in range(16)), 206),
    "14.2-17-are-too-many": (b",".join(b"%d-%d" % (n * 1000, n * 1000) for n in range(17)), 200),
    "14.2-many-that-are-one": (b",".join(b"%d-%d" % (n, n) for n in range(100)), 206),
    "14.2-101-specs": (b",".join(b"%d-%d" % (n, n) for n in range(101)), 200),
    "14.2-all-three-times": (b"0-,0-,0-", 200),
    "14.2-overlapping-three-times": (b"0-100,50-150,90-200", 200),
    "14.2-twice-is-fine": (b"0-100,50-150", 206),
    "14.2-many-overlapping": (b",".join(b"%d-" % n for n in range(90)), 200),
}


@pytest.mark.parametrize(("specs", "status"), MANY.values(), ids=MANY)
def test_many_ranges(site: Site, specs: bytes, status: int) -> None:
    for client in site.clients.values():
        reply = ask(client, b"/large.txt", b"Range: bytes=" + specs)
        assert reply.status == status
        if status == 200:
            _check_whole(reply, _LETTERS)
        assert len(reply.body) <= len(_LETTERS)


def test_pipelined(site: Site) -> None:
    """Answers of all kinds, behind one another."""
    kinds: list[tuple[bytes, int]] = [
        (b"bytes=5-9", 206), (b"bytes=0-9,500-509", 206), (b"bytes=9999999-", 416),
        (b"x", 200), (b"bytes=-70000", 206), (b"bytes=0-0,600-", 206),
    ]  # fmt: skip
    for client in site.clients.values():
        for path in (b"/small.txt", b"/large.txt"):
            client.send(b"".join(request(path, b"Range: " + value) for value, _ in kinds * 3))
            replies = [client.read_response() for _ in kinds * 3]
            assert [reply.status for reply in replies] == [status for _, status in kinds * 3]
            for reply, (value, _) in zip(replies, kinds * 3, strict=True):
                if reply.status == 206 and b"," in value:
                    assert len(parts_of(reply)) == 2


# --- a model --------------------------------------------------------------------------------------

_position = st.one_of(st.integers(0, 1100), st.integers(0, 110_000))
_spec = st.one_of(
    st.tuples(_position, _position).map(lambda two: b"%d-%d" % (min(two), max(two))),
    _position.map(lambda at: b"%d-" % at),
    _position.map(lambda size: b"-%d" % size),
)


def _bytes_of(spec: bytes, size: int) -> tuple[int, int]:
    first, _, last = spec.partition(b"-")
    if not first:
        return max(0, size - int(last)), size
    return int(first), min(int(last) + 1, size) if last else size


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    specs=st.lists(_spec, min_size=1, max_size=4),
    path=st.sampled_from(sorted(CONTENT)),
    way=st.sampled_from(WAYS),
)
def test_ranges_are_slices(site: Site, specs: list[bytes], path: bytes, way: str) -> None:
    content = CONTENT[path]
    wanted = [_bytes_of(spec, len(content)) for spec in specs]
    wanted = [(start, end) for start, end in wanted if start < end]
    reply = ask(site.clients[way], path, b"Range: bytes=" + b",".join(specs))
    if not wanted:
        _check_unsatisfied(reply, content)
        return
    if reply.status == 200:
        assert len(wanted) > 2  # a byte that is asked for three times
        _check_whole(reply, content)
        return
    assert reply.status == 206
    if reply.get(b"content-range") is not None:
        match = re.fullmatch(rb"bytes (\d+)-(\d+)/(\d+)", reply.get(b"content-range") or b"")
        assert match is not None
        sent = [(*map(int, match.groups()), reply.body)]
    else:
        sent = [(first, last, size, data) for first, last, size, _, data in parts_of(reply)]
        assert len(sent) > 1
    for first, last, size, data in sent:
        assert size == len(content)
        assert data == content[first : last + 1]
        assert any(start == first for start, _ in wanted)
        assert any(end == last + 1 for _, end in wanted)
    for start, end in wanted:
        assert sum(first <= start and end <= last + 1 for first, last, _, _ in sent) == 1


# --- honour-range = false, and ranges of others ---------------------------------------------------


def test_honour_range_false_14_3(tmp_path: Path, start_gateway: StartGateway) -> None:
    gateway = start_gateway(f"--check-static={tmp_path}", "--honour-range=false")
    for path, content in CONTENT.items():
        write(tmp_path / path.decode()[1:], content)
    with gateway.connect() as client:
        for path, content in CONTENT.items():
            for value in (b"bytes=1-2", b"bytes=99999999-", b"bytes=0-1,500-501"):
                reply = ask(client, path, b"Range: " + value)
                assert (reply.status, reply.body == content) == (200, True)
                assert reply.all(b"accept-ranges") == reply.all(b"content-range") == []
            assert ask(client, path, b"If-None-Match: *", b"Range: bytes=1-2").status == 304


def test_ranges_of_what_is_no_file_are_the_nodes_14_2(
    tmp_path: Path, start_gateway: StartGateway, http_node: RawHttpNode
) -> None:
    write(tmp_path / "a.txt", b"0123456789")
    gateway = start_gateway(f"--check-static={tmp_path}", "--http-to", http_node.spec)
    fields = (b"Range: bytes=1-2", b'If-Range: "x"')
    with gateway.connect() as client:
        assert ask(client, b"/none", *fields).body == b"GET /none 0"
        post = ask(client, b"/a.txt", *fields, b"Content-Length: 0", method=b"POST")
        assert post.body == b"POST /a.txt 0"
    for seen in http_node.seen:
        assert seen.field(b"range") == [b"bytes=1-2"]
        assert seen.field(b"if-range") == [b'"x"']
