"""Conditional requests for static files: RFC 9110 §13, clause by clause, and §15.4.5.

Ids name the clause. Each of them is asked of a file that is kept in memory, of one that is sent
with sendfile, and of one with a compressed variant.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.client import Client, Reply
from support.files import CHANGED, CHANGED_DATE, ask, named, request, write
from support.nodes import RawHttpNode
from support.uwgate import Gateway, StartGateway, running

CONTENT = {b"/small.txt": b"small\n", b"/large.txt": b"large\n" * 12_000, b"/both.txt": b"both\n"}
# The moment of the change, a second before and a second after, in the three forms of §5.6.7.
SAME = [CHANGED_DATE, b"Friday, 14-Jul-17 02:40:00 GMT", b"Fri Jul 14 02:40:00 2017"]
BEFORE = [
    b"Fri, 14 Jul 2017 02:39:59 GMT",
    b"Friday, 14-Jul-17 02:39:59 GMT",
    b"Fri Jul 14 02:39:59 2017",
]
AFTER = [
    b"Fri, 14 Jul 2017 02:40:01 GMT",
    b"Friday, 14-Jul-17 02:40:01 GMT",
    b"Fri Jul 14 02:40:01 2017",
]
FORMS = ["imf", "rfc850", "asctime"]
FUTURE = b"Fri, 01 Jan 2100 00:00:00 GMT"
NO_DATES = [
    b"yesterday", b"", b"0", b"1500000000", b"Fri, 14 Jul 2017 02:40:00", b'"an-etag"',
    b"Fri, 14 Jul 2017 02:40:00 UTC", b"Fri, 14 Jul 2017 02:40:00 +0000",
    b"fri, 14 jul 2017 02:40:00 gmt", b"Fri, 32 Jul 2017 02:40:00 GMT",
    b"Thu, 30 Feb 2017 02:40:00 GMT", b"Fri, 14 Jul 2017 24:40:00 GMT",
    b"Fri, 14 Jul 2017 2:40:00 GMT", b"Fri,  14 Jul 2017 02:40:00 GMT",
    b"Fri, 14 Jul 2017 02:40:00 GMT, Fri, 14 Jul 2017 02:40:00 GMT", b"\xff\xfe",
]  # fmt: skip


@dataclass
class Site:
    """The gateway, its node and the ETags of its files."""

    gateway: Gateway
    node: RawHttpNode
    etags: dict[bytes, bytes]

    def connect(self) -> Client:
        return self.gateway.connect()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    root = tmp_path_factory.mktemp("root")
    for path, content in CONTENT.items():
        write(root / path.decode()[1:], content)
    write(root / "both.txt.gz", b"packed")
    options = (
        f"--check-static={root}",
        f"--static-gzip={root}/both",
        "--static-expires-type=text/plain=3600",
    )
    with RawHttpNode() as node, running(*options, "--http-to", node.spec) as gateway:
        etags = {}
        with gateway.connect() as client:
            for path in CONTENT:
                reply = ask(client, path)
                assert reply.get(b"last-modified") == CHANGED_DATE
                etags[path] = reply.get(b"etag") or b""
                assert etags[path].startswith(b'"')
        yield Site(gateway, node, etags)


@pytest.fixture(autouse=True)
def fresh(site: Site) -> None:
    site.node.reset()


def _check(path: bytes, method: bytes, reply: Reply, status: int, etag: bytes) -> None:
    """The whole of what a response to a conditional request has to be."""
    assert reply.status == status, (path, method, reply)
    content = CONTENT[path]
    if status == 200:
        assert reply.body == (b"" if method == b"HEAD" else content)
        assert reply.get(b"content-length") == b"%d" % len(content)
    else:
        assert reply.body == b""
        assert reply.all(b"content-range") == reply.all(b"content-type") == []
    if status != 412:
        assert reply.get(b"etag") == etag
        assert reply.get(b"last-modified") == CHANGED_DATE
        assert reply.get(b"expires")
        assert reply.get(b"cache-control") == b"max-age=3600"
        assert reply.all(b"vary") == ([b"Accept-Encoding"] if path == b"/both.txt" else [])
    assert reply.get(b"date")
    assert not reply.closes


def _expect(site: Site, status: int, *fields: bytes) -> None:
    """What GET and HEAD for every file are answered; ``%E`` in a field is the file's ETag, ``%O``
    what is between its quotes."""
    with site.connect() as client:
        for path, method in itertools.product(CONTENT, (b"GET", b"HEAD")):
            etag = site.etags[path]
            filled = [each.replace(b"%E", etag).replace(b"%O", etag.strip(b'"')) for each in fields]
            reply = ask(client, path, *filled, method=method)
            _check(path, method, reply, status, etag)
            # The connection goes on, and the next request is not taken for a conditional one.
            _check(path, b"GET", ask(client, path), 200, etag)
    assert site.node.seen == []


LISTS = [
    ("exact", b"%E", True),
    ("first-of-a-list", b'%E, "other"', True),
    ("last-of-a-list", b'"other", W/"another", %E', True),
    ("list-without-blanks", b'"other",%E', True),
    ("empty-elements", b', ,"other" , ,%E,', True),
    ("tabs", b'"other"\t,\t%E\t', True),
    ("another", b'"other"', False),
    ("empty-tag", b'""', False),
    ("a-comma-in-a-tag", b'"a,b", %E', True),
    ("the-tag-within-a-tag", b'"x,%O,y"', False),
    ("prefix-of-it", b'"%O0"', False),
    ("one-more-letter", b'"0%O"', False),
    ("without-quotes", b"%O", False),
    ("single-quotes", b"'%O'", False),
    ("half-a-quote", b'"%O', False),
    ("list-without-comma", b'"other" %E', False),
    ("obs-text", b'"\xe4\xf6", %E', True),
    ("empty", b"", False),
    ("star-in-quotes", b'"*"', False),
    ("star-in-a-list", b'*, "other"', False),
]  # fmt: skip
"""(what, field value, whether it names the file's ETag)"""

IF_MATCH = [
    *((f"13.1.1-{name}", value, 200 if matches else 412) for name, value, matches in LISTS),
    ("13.1.1-star", b"*", 200),
    ("13.1.1-strong-comparison", b"W/%E", 412),
    ("13.1.1-strong-in-a-list", b"W/%E, %E", 200),
    ("13.1.1-weak-in-a-list", b'"other", W/%E', 412),
]  # fmt: skip


@pytest.mark.parametrize(("value", "status"), named(IF_MATCH))
def test_if_match(site: Site, value: bytes, status: int) -> None:
    _expect(site, status, b"If-Match: " + value)
    _expect(site, status, b"if-MATCH:" + value + b" ")


IF_NONE_MATCH = [
    *((f"13.1.2-{name}", value, 304 if matches else 200) for name, value, matches in LISTS),
    ("13.1.2-star", b"*", 304),
    ("13.1.2-weak-comparison", b"W/%E", 304),
    ("13.1.2-weak-in-a-list", b'"other", W/%E', 304),
    ("13.1.2-weak-is-case-sensitive", b"w/%E", 200),
]  # fmt: skip


@pytest.mark.parametrize(("value", "status"), named(IF_NONE_MATCH))
def test_if_none_match(site: Site, value: bytes, status: int) -> None:
    _expect(site, status, b"If-None-Match: " + value)
    _expect(site, status, b"IF-none-match:\t" + value + b"\t")


CASES = [
    # §5.3: lines of the same list are one list
    ("13.1.1-repeated", 200, [b'If-Match: "other"', b"If-Match: %E"]),
    ("13.1.1-repeated-and-none-is-it", 412, [b'If-Match: "other"', b'if-match: "another"']),
    ("13.1.2-repeated", 304, [b'If-None-Match: "other"', b"if-none-match: W/%E"]),
    ("13.1.2-repeated-and-none-is-it", 200, [b'If-None-Match: "a"', b'If-None-Match: "b"']),
    ("13.1.2-long-list", 304, [b"If-None-Match: " + b'"x", ' * 900 + b"%E"]),
    ("13.1.2-far-too-many", 200, [b"If-None-Match: " + b'"x", ' * 900 + b'"y"']),
    # §13.1.3
    ("13.1.3-future", 304, [b"If-Modified-Since: " + FUTURE]),
    ("13.1.3-epoch", 200, [b"If-Modified-Since: Thu, 01 Jan 1970 00:00:00 GMT"]),
    ("13.1.3-wrong-weekday", 304, [b"If-Modified-Since: Mon, 14 Jul 2017 02:40:00 GMT"]),
    ("13.1.3-last-century", 200, [b"If-Modified-Since: Thursday, 14-Jul-94 02:40:00 GMT"]),
    ("13.1.3-repeated", 200, [b"If-Modified-Since: " + FUTURE, b"If-Modified-Since: " + FUTURE]),
    # §13.1.4
    ("13.1.4-future", 200, [b"If-Unmodified-Since: " + FUTURE]),
    ("13.1.4-epoch", 412, [b"If-Unmodified-Since: Thu, 01 Jan 1970 00:00:00 GMT"]),
    ("13.1.4-repeated", 200, [b"If-Unmodified-Since: " + BEFORE[0]] * 2),
    # §13.2.2, step by step
    ("13.2.2-1-true-goes-on", 200, [b"If-Match: %E"]),
    ("13.2.2-1-to-3", 304, [b"If-Match: %E", b"If-None-Match: %E"]),
    ("13.2.2-1-to-4", 304, [b"If-Match: %E", b"If-Modified-Since: " + SAME[0]]),
    ("13.2.2-1-before-3", 412, [b"If-None-Match: %E", b'If-Match: "x"']),
    ("13.2.2-1-before-4", 412, [b"If-Modified-Since: " + SAME[0], b'If-Match: "x"']),
    ("13.2.2-1-without-2", 200, [b"If-Match: %E", b"If-Unmodified-Since: " + BEFORE[0]]),
    ("13.2.2-1-fails-with-2", 412, [b"If-Unmodified-Since: " + SAME[0], b'If-Match: "x"']),
    ("13.2.2-2-to-3", 304, [b"If-Unmodified-Since: " + SAME[0], b"If-None-Match: %E"]),
    ("13.2.2-2-to-4", 304, [b"If-Unmodified-Since: " + SAME[0], b"If-Modified-Since: " + SAME[0]]),
    ("13.2.2-2-before-3", 412, [b"If-None-Match: %E", b"If-Unmodified-Since: " + BEFORE[0]]),
    ("13.2.2-2-before-4", 412, [
        b"If-Modified-Since: " + SAME[0], b"If-Unmodified-Since: " + BEFORE[0],
    ]),
    ("13.2.2-3-without-4", 200, [b'If-None-Match: "x"', b"If-Modified-Since: " + SAME[0]]),
    ("13.2.2-3-with-4-older", 304, [b"If-None-Match: %E", b"If-Modified-Since: " + BEFORE[0]]),
    ("13.2.2-3-malformed-without-4", 200, [b"If-None-Match: x", b"If-Modified-Since: " + SAME[0]]),
    ("13.2.2-all-true", 200, [
        b"If-Match: %E", b'If-None-Match: "x"', b"If-Modified-Since: " + AFTER[0],
        b"If-Unmodified-Since: " + BEFORE[0],
    ]),
    ("13.2.2-invalid-dates-beside", 304, [b"If-Unmodified-Since: x", b"If-None-Match: %E"]),
    ("13.2.2-5-after-3", 304, [b"If-None-Match: %E", b"Range: bytes=0-1", b"If-Range: %E"]),
    ("13.2.2-5-after-4", 304, [b"If-Modified-Since: " + SAME[0], b"Range: bytes=0-1"]),
    ("13.2.2-5-after-1", 412, [b'If-Match: "x"', b"Range: bytes=0-1", b"If-Range: %E"]),
    ("13.2.2-5-after-2", 412, [b"If-Unmodified-Since: " + BEFORE[0], b"Range: bytes=0-1"]),
    ("13.2.2-5-unsatisfiable-after-3", 304, [b"If-None-Match: %E", b"Range: bytes=99999999-"]),
    # §13.1: fields that are none of these
    ("13.1-if-range-alone", 200, [b"If-Range: %E"]),
    ("13.1-unknown", 200, [b"If-Schedule-Tag-Match: %E", b"If: (<x>)"]),
    ("13.1-in-another-value", 200, [b"X-Note: If-None-Match: %E", b"X-If-None-Match: %E"]),
]  # fmt: skip


@pytest.mark.parametrize(("status", "fields"), named(CASES))
def test_precedence(site: Site, status: int, fields: list[bytes]) -> None:
    _expect(site, status, *fields)
    if len({each.partition(b":")[0].lower() for each in fields}) == len(fields):
        _expect(site, status, *reversed(fields))  # their order says nothing


@pytest.mark.parametrize("form", range(3), ids=FORMS)
def test_if_modified_since_13_1_3(site: Site, form: int) -> None:
    _expect(site, 304, b"If-Modified-Since: " + SAME[form])
    _expect(site, 304, b"If-Modified-Since: " + AFTER[form])
    _expect(site, 200, b"If-Modified-Since: " + BEFORE[form])


@pytest.mark.parametrize("form", range(3), ids=FORMS)
def test_if_unmodified_since_13_1_4(site: Site, form: int) -> None:
    _expect(site, 200, b"If-Unmodified-Since: " + SAME[form])
    _expect(site, 200, b"If-Unmodified-Since: " + AFTER[form])
    _expect(site, 412, b"If-Unmodified-Since: " + BEFORE[form])


@pytest.mark.parametrize("value", NO_DATES, ids=map(ascii, NO_DATES))
def test_dates_that_are_none_are_ignored_13_1_3_and_13_1_4(site: Site, value: bytes) -> None:
    _expect(site, 200, b"If-Modified-Since: " + value)
    _expect(site, 200, b"If-Unmodified-Since: " + value)


def test_a_range_after_true_conditions_13_2_2_5(site: Site) -> None:
    """Those that are true leave the range; HEAD has none."""
    with site.connect() as client:
        for path, content in CONTENT.items():
            fields = [b"If-Match: " + site.etags[path], b"If-Unmodified-Since: " + SAME[0]]
            reply = ask(client, path, *fields, b"Range: bytes=1-2")
            assert (reply.status, reply.body) == (206, content[1:3])
            reply = ask(client, path, *fields, b"Range: bytes=1-2", method=b"HEAD")
            _check(path, b"HEAD", reply, 200, site.etags[path])


def test_other_methods_are_left_to_the_node_13_2_1(site: Site) -> None:
    """A file answers GET and HEAD only; conditions of others are the node's to look at."""
    with site.connect() as client:
        for method in (b"POST", b"PUT", b"DELETE", b"OPTIONS"):
            fields = (b"If-None-Match: *", b'If-Match: "x"', b"Content-Length: 0")
            reply = ask(client, b"/small.txt", *fields, method=method)
            assert (reply.status, reply.body) == (200, method + b" /small.txt 0")
            assert site.node.seen[-1].field(b"if-none-match") == [b"*"]


def test_there_is_no_file_13_2_1(site: Site) -> None:
    """Conditions without a file are the node's as well."""
    with site.connect() as client:
        for fields in ([b"If-Match: *"], [b"If-None-Match: *"], [b"If-Modified-Since: " + FUTURE]):
            assert ask(client, b"/missing", *fields).status == 200
    assert len(site.node.seen) == 3


def test_there_is_no_file_and_no_node(tmp_path: Path, start_gateway: StartGateway) -> None:
    """§13.2.1: what would not be 2xx without conditions is that with them."""
    gateway = start_gateway(f"--check-static={write(tmp_path / 'a.txt', b'a').parent}")
    with gateway.connect() as client:
        for fields in ([b"If-Match: *"], [b"If-None-Match: *"], [b"If-Modified-Since: " + FUTURE]):
            assert ask(client, b"/missing", *fields).status == 404
        reply = ask(client, b"/a.txt", b"If-None-Match: *")
        assert reply.status == 304
        assert reply.all(b"expires") == reply.all(b"vary") == reply.all(b"cache-control") == []


# --- 304 ------------------------------------------------------------------------------------------


def test_what_a_304_has_15_4_5(site: Site) -> None:
    """The fields that a 200 would have had of these, and nothing that describes content."""
    with site.connect() as client:
        for path in CONTENT:
            whole = ask(client, path)
            reply = ask(client, path, b"If-None-Match: *")
            assert reply.status == 304
            for name in (b"etag", b"vary", b"last-modified", b"cache-control"):
                assert reply.all(name) == whole.all(name), name
            assert reply.get(b"expires")
            names = {name for name, _ in reply.headers}
            assert names <= {
                b"etag", b"last-modified", b"vary", b"expires", b"cache-control", b"date",
            }  # fmt: skip


def test_no_byte_follows_the_head_of_a_304_15_4_5(site: Site) -> None:
    with site.connect() as client:
        client.send(request(b"/large.txt", b"If-None-Match: *"))
        head = client.read_until(b"\r\n\r\n")
        assert b"transfer-encoding" not in head.lower()
        client.send(request(b"/small.txt"))
        assert client.read_until(b"\r\n").startswith(b"HTTP/1.1 200")


def test_http_1_0(site: Site) -> None:
    with site.connect() as client:
        client.send(b"GET /small.txt HTTP/1.0\r\nIf-None-Match: *\r\n\r\n")
        reply = client.read_response()
        assert (reply.status, reply.body) == (304, b"")
        client.assert_closed()


def test_pipelined(site: Site) -> None:
    """Each response is that of its own request."""
    etag = site.etags[b"/large.txt"]
    kinds = [
        (b"If-None-Match: " + etag, 304),
        (b"If-None-Match: " + b'"x"', 200),
        (b"If-Match: " + b'"x"', 412),
        (b"Range: bytes=5-8", 206),
        (b"X-Nothing: x", 200),
        (b"Range: bytes=99999999-", 416),
    ] * 3
    with site.connect() as client:
        client.send(b"".join(request(b"/large.txt", field) for field, _ in kinds))
        for field, status in kinds:
            reply = client.read_response()
            assert reply.status == status, field
            assert len(reply.body) == {200: len(CONTENT[b"/large.txt"]), 206: 4}.get(status, 0)


@pytest.mark.parametrize("path", CONTENT)
def test_conditions_that_change_from_request_to_request(site: Site, path: bytes) -> None:
    """What is remembered of the request before has no say in the next one."""
    etag = site.etags[path]
    kinds = [
        ([b"If-None-Match: " + etag], 304),
        ([b'If-None-Match: "wrong"'], 200),
        ([], 200),
        ([b"If-None-Match: W/" + etag], 304),
        ([b"If-Match: " + etag], 200),
        ([b"If-Match: W/" + etag], 412),
        ([b"If-Modified-Since: " + SAME[0]], 304),
        ([b"If-Modified-Since: " + BEFORE[0]], 200),
        ([b"Range: bytes=0-0"], 206),
    ]
    with site.connect() as client:
        for before, after in itertools.product(kinds, kinds):
            for fields, status in (before, after, after, before):
                assert ask(client, path, *fields).status == status, (before, after)


# --- variants and changes -------------------------------------------------------------------------


def test_a_variant_has_an_etag_of_its_own_8_8_3_3(site: Site) -> None:
    """The ETag of one representation is not that of another: 304 for the chosen one only."""
    packed = b"Accept-Encoding: gzip"
    with site.connect() as client:
        plain = site.etags[b"/both.txt"]
        reply = ask(client, b"/both.txt", packed)
        etag = reply.get(b"etag") or b""
        assert (reply.body, reply.get(b"content-encoding")) == (b"packed", b"gzip")
        assert etag != plain
        for fields, status in (
            ((packed, b"If-None-Match: " + etag), 304),
            ((packed, b"If-None-Match: " + plain), 200),
            ((b"If-None-Match: " + plain,), 304),
            ((b"If-None-Match: " + etag,), 200),
            ((packed, b"If-Match: " + plain), 412),
            ((packed, b"If-Match: " + etag), 200),
            ((b"If-None-Match: " + etag + b", " + plain,), 304),
        ):
            reply = ask(client, b"/both.txt", *fields)
            assert reply.status == status, fields
            if status != 412:
                assert reply.get(b"vary") == b"Accept-Encoding"
                assert reply.get(b"etag") == (etag if packed in fields else plain)


def test_a_file_that_changes_is_another_one(tmp_path: Path, start_gateway: StartGateway) -> None:
    """The old ETag does not match any more, even within the same second of Last-Modified."""
    file = write(tmp_path / "a.txt", b"old")
    gateway = start_gateway(f"--check-static={tmp_path}")
    with gateway.connect() as client:
        old = ask(client, b"/a.txt").get(b"etag") or b""
        new = write(tmp_path / "new", b"new")
        os.utime(new, ns=(CHANGED * 10**9 + 5, CHANGED * 10**9 + 5))
        new.rename(file)
        limit = time.monotonic() + 10
        while (reply := ask(client, b"/a.txt", b"If-None-Match: " + old)).status == 304:
            assert time.monotonic() < limit
            time.sleep(0.02)
        assert (reply.status, reply.body) == (200, b"new")
        assert reply.get(b"etag") != old
        assert reply.get(b"last-modified") == CHANGED_DATE
        assert ask(client, b"/a.txt", b"If-Match: " + old).status == 412


@pytest.mark.parametrize("field", [b"Range: bytes=0-0", b"If-None-Match: *", b'If-Match: "x"'])
def test_a_change_before_a_plain_request_is_not_answered_by_the_conditions_before(
    tmp_path: Path, start_gateway: StartGateway, field: bytes
) -> None:
    """What is looked at anew is asked for with the fields of this request, not of the last one."""
    file = write(tmp_path / "large.txt", b"a" * 70_000)
    gateway = start_gateway(f"--check-static={tmp_path}")
    with gateway.connect() as client:
        for number in range(1, 4):
            assert ask(client, b"/large.txt").status == 200
            assert ask(client, b"/large.txt", field).status in (206, 304, 412)
            with file.open("r+b") as handle:  # in place: the same file, with another time
                handle.write(b"%d" % number)
            os.utime(file, (CHANGED + number, CHANGED + number))
            reply = ask(client, b"/large.txt")
            assert reply.status == 200, (number, reply.status, reply.headers)
            assert reply.body == b"%d" % number + b"a" * 69_999


def test_a_file_of_the_future_8_8_2_1(tmp_path: Path, start_gateway: StartGateway) -> None:
    """It has no Last-Modified, so that conditions by date do not apply."""
    write(tmp_path / "a.txt", b"a", int(time.time()) + 100_000)
    gateway = start_gateway(f"--check-static={tmp_path}")
    with gateway.connect() as client:
        reply = ask(client, b"/a.txt")
        assert reply.all(b"last-modified") == []
        assert ask(client, b"/a.txt", b"If-Modified-Since: " + FUTURE).status == 200
        assert ask(client, b"/a.txt", b"If-Unmodified-Since: " + BEFORE[0]).status == 200
        etag = reply.get(b"etag") or b""
        assert ask(client, b"/a.txt", b"If-None-Match: " + etag).status == 304


def test_expires_by_time_of_change_is_in_a_304(tmp_path: Path, start_gateway: StartGateway) -> None:
    """§15.4.5: what a 200 would have said."""
    write(tmp_path / "a.txt", b"a")
    gateway = start_gateway(f"--check-static={tmp_path}", r"--static-expires-mtime=\.txt$ 60")
    with gateway.connect() as client:
        for fields, status in (([], 200), ([b"If-None-Match: *"], 304)):
            reply = ask(client, b"/a.txt", *fields)
            assert reply.status == status
            assert reply.get(b"expires") == b"Fri, 14 Jul 2017 02:41:00 GMT"
            assert reply.get(b"cache-control") == b"max-age=0"
