"""Conditional requests for static files against a second reading of RFC 9110 §13.

`test_files_conditional` has the clauses one by one, in clear text. Here every combination of the
kinds of fields is compared with a model that is written down from §13.2.2 step by step, in all ways
that bytes may go, with threads and over TLS, many on one connection; and with others between them.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.certificates import Authority
from support.client import Client, Reply
from support.files import CHANGED, CHANGED_DATE, ask, request, write
from support.static import every_way
from support.uwgate import StartGateway
from support.waiting import wait_until

WAYS = ["sendfile", "reading", "threads", "tls-sendfile", "tls-threads"]
CONTENT = {b"/small": b"0123456789" * 5, b"/large": b"0123456789" * 5000}

# Values of a field, and what they say of a file: whether its ETag is named strongly, weakly;
# whether its date is later than, the same as, or before the one that is named.
NOTHING = ""
ETAGS: dict[str, tuple[bool, bool]] = {
    "*": (True, True),
    "%E": (True, True),
    "W/%E": (False, True),
    '"x"': (False, False),
    '"x", %E': (True, True),
    'W/"x" , W/%E,': (False, True),
    '"x", W/"y"': (False, False),
    '""': (False, False),
    "%E %E": (False, False),  # no list: it names nothing
    "w/%E": (False, False),
    "%E, x": (False, False),
}
DATES: dict[str, int | None] = {
    "Fri, 14 Jul 2017 02:40:00 GMT": CHANGED,
    "Friday, 14-Jul-17 02:40:00 GMT": CHANGED,
    "Fri Jul 14 02:40:00 2017": CHANGED,
    "Fri, 14 Jul 2017 02:39:59 GMT": CHANGED - 1,
    "Friday, 14-Jul-17 02:40:01 GMT": CHANGED + 1,
    "Thu Jan  1 00:00:00 1970": 0,
    "Wed, 01 Jan 2100 00:00:00 GMT": 4_102_444_800,
    "14 Jul 2017": None,
    "1500000000": None,
    "": None,
}
RANGES: dict[str, int] = {"bytes=1-3": 206, "bytes=1-1,2-3": 206, "bytes=99999999-": 416, "x": 200}
IF_RANGES: dict[str, bool] = {
    "%E": True,
    "W/%E": False,
    '"x"': False,
    "Fri, 14 Jul 2017 02:40:00 GMT": True,
    "Fri Jul 14 02:40:00 2017": True,
    "Fri, 14 Jul 2017 02:40:01 GMT": False,
    "14 Jul 2017": False,
}


@dataclass(frozen=True)
class Asked:
    """A request's fields; None: without it."""

    match: str | None = None  # §13.1.1
    none_match: str | None = None  # §13.1.2
    modified: str | None = None  # §13.1.3
    unmodified: str | None = None  # §13.1.4
    if_range: str | None = None  # §13.1.5
    range: str | None = None  # §14.2

    def lines(self, etag: bytes) -> list[bytes]:
        """As fields, in any order."""
        named = {
            "If-Match": self.match,
            "If-None-Match": self.none_match,
            "If-Modified-Since": self.modified,
            "If-Unmodified-Since": self.unmodified,
            "If-Range": self.if_range,
            "Range": self.range,
        }
        return [
            f"{name}: {value}".encode().replace(b"%E", etag)
            for name, value in named.items()
            if value is not None
        ]


def expected(asked: Asked, method: bytes) -> int:
    """The status, by the numbered steps of §13.2.2."""
    if asked.match is not None:  # 1
        if not ETAGS[asked.match][0]:
            return 412
    elif asked.unmodified is not None:  # 2
        limit = DATES[asked.unmodified]
        if limit is not None and limit < CHANGED:
            return 412
    if asked.none_match is not None:  # 3
        if ETAGS[asked.none_match][1]:
            return 304
    elif asked.modified is not None:  # 4
        limit = DATES[asked.modified]
        if limit is not None and limit >= CHANGED:
            return 304
    applies = asked.if_range is None or IF_RANGES[asked.if_range]
    if method == b"GET" and asked.range is not None and applies:  # 5
        return RANGES[asked.range]
    return 200  # 6


@dataclass
class Site:
    """Open connections, and the ETags of the files."""

    clients: dict[str, Client]
    etags: dict[bytes, bytes]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    root = tmp_path_factory.mktemp("root")
    for path, content in CONTENT.items():
        write(root / path.decode()[1:], content)
    authority = Authority(tmp_path_factory.mktemp("ca"))
    with every_way(authority, f"--check-static={root}") as ways, ExitStack() as stack:
        clients = {name: stack.enter_context(ways.connect[name]()) for name in WAYS}
        etags = {path: ask(clients["reading"], path).get(b"etag") or b"" for path in CONTENT}
        yield Site(clients, etags)


def _check(reply: Reply, path: bytes, method: bytes, status: int, etag: bytes) -> None:
    assert reply.status == status
    assert not reply.closes
    content = CONTENT[path]
    if status == 200:
        assert reply.body == (content if method == b"GET" else b"")
    elif status == 206:
        assert reply.body == content[1:4]
        assert reply.get(b"content-range") == b"bytes 1-3/%d" % len(content)
    else:
        assert reply.body == b""
    if status in (200, 206, 304):  # §15.4.5, §15.3.7
        assert reply.get(b"etag") == etag
        assert reply.get(b"last-modified") == CHANGED_DATE


def _agree(site: Site, way: str, asked: list[Asked], methods: list[bytes], path: bytes) -> None:
    """All of them behind one another, and what comes is what the model says."""
    client, etag = site.clients[way], site.etags[path]
    pairs = list(zip(asked, methods, strict=True))
    client.send(b"".join(request(path, *each.lines(etag), method=m) for each, m in pairs))
    for each, method in pairs:
        reply = client.read_response(method)
        assert reply.status == expected(each, method), (each, method, reply)
        _check(reply, path, method, reply.status, etag)


def _only(name: str, values: dict[str, object]) -> list[Asked]:
    return [Asked(**{name: value}) for value in values]


CLAUSES: dict[str, list[Asked]] = {
    "13.1.1-if-match": _only("match", {**ETAGS}),
    "13.1.2-if-none-match": _only("none_match", {**ETAGS}),
    "13.1.3-if-modified-since": _only("modified", {**DATES}),
    "13.1.4-if-unmodified-since": _only("unmodified", {**DATES}),
    "13.1.5-if-range": [Asked(if_range=i, range=r) for i, r in product(IF_RANGES, RANGES)],
    "13.1.5-if-range-without-range": _only("if_range", {**IF_RANGES}),
    "13.2.2-1-is-before-2": [Asked(match=m, unmodified=u) for m, u in product(ETAGS, DATES)],
    "13.2.2-1-then-3": [Asked(match=m, none_match=n) for m, n in product(ETAGS, ETAGS)],
    "13.2.2-2-then-3": [Asked(unmodified=u, none_match=n) for u, n in product(DATES, ETAGS)],
    "13.2.2-3-is-before-4": [Asked(none_match=n, modified=d) for n, d in product(ETAGS, DATES)],
    "13.2.2-1-then-4": [Asked(match=m, modified=d) for m, d in product(ETAGS, DATES)],
    "13.2.2-2-then-4": [Asked(unmodified=u, modified=d) for u, d in product(DATES, DATES)],
    "13.2.2-3-then-5": [
        Asked(none_match=n, if_range=i, range=r)
        for n, i, r in product(ETAGS, (None, *IF_RANGES), RANGES)
    ],
    "13.2.2-1-then-5": [Asked(match=m, range=r) for m, r in product(ETAGS, RANGES)],
    "13.2.2-4-then-5": [Asked(modified=d, range=r) for d, r in product(DATES, RANGES)],
}


@pytest.mark.parametrize("clause", CLAUSES)
def test_every_combination(site: Site, clause: str) -> None:
    asked = CLAUSES[clause]
    for method, path in product((b"GET", b"HEAD"), CONTENT):
        for start in range(0, len(asked), 40):
            some = asked[start : start + 40]
            if path == b"/large":  # their bodies are large, too
                some = some[:8]
            way = WAYS[(start // 40) % len(WAYS)]
            _agree(site, way, some, [method] * len(some), path)


_any = st.builds(
    Asked,
    match=st.none() | st.sampled_from(sorted(ETAGS)),
    none_match=st.none() | st.sampled_from(sorted(ETAGS)),
    modified=st.none() | st.sampled_from(sorted(DATES)),
    unmodified=st.none() | st.sampled_from(sorted(DATES)),
    if_range=st.none() | st.sampled_from(sorted(IF_RANGES)),
    range=st.none() | st.sampled_from(sorted(RANGES)),
)


@settings(max_examples=60, deadline=None)
@given(
    asked=st.lists(st.tuples(_any, st.sampled_from([b"GET", b"HEAD"])), min_size=1, max_size=8),
    path=st.sampled_from(sorted(CONTENT)),
    way=st.sampled_from(WAYS),
)
def test_all_fields_at_once(
    site: Site, asked: list[tuple[Asked, bytes]], path: bytes, way: str
) -> None:
    """On one connection: what one request asked has no say in the next one."""
    _agree(site, way, [each for each, _ in asked], [method for _, method in asked], path)


@pytest.mark.parametrize("way", WAYS)
def test_with_others_between_them(site: Site, way: str) -> None:
    """One client's conditions are not another one's: plain requests come on both connections."""
    choice = random.Random(way)
    plain, conditional = site.clients[way], site.clients["sendfile"]
    for _ in range(100):
        path = choice.choice(sorted(CONTENT))
        asked = Asked(none_match=choice.choice(sorted(ETAGS)))
        _agree(site, way, [asked], [b"GET"], path)
        for client in (plain, conditional):
            _check(ask(client, path), path, b"GET", 200, site.etags[path])


def test_validators_8_8_1_change_with_the_file(tmp_path: Path, start_gateway: StartGateway) -> None:
    """Size, time and both; never with what is not the file's: its name, its rights, a copy's."""
    file = write(tmp_path / "a", b"12345")
    gateway = start_gateway(f"--check-static={tmp_path}")
    seen: list[bytes] = []
    with gateway.connect() as client:

        def is_another() -> bool:
            etag = ask(client, b"/a").get(b"etag") or b""
            return etag not in seen and not seen.append(etag)  # type: ignore[func-returns-value]

        assert is_another()
        for content, when in ((b"12345", CHANGED + 1), (b"123456", CHANGED + 1), (b"12", CHANGED)):
            write(tmp_path / "new", content, when).rename(file)
            wait_until(is_another, "another ETag")
        file.chmod(0o600)
        (tmp_path / "same").hardlink_to(file)
        assert ask(client, b"/same").get(b"etag") == seen[-1]
        assert not is_another()
        assert all(each.startswith(b'"') for each in seen)


def test_a_young_file_8_8_1_is_weak(tmp_path: Path, start_gateway: StartGateway) -> None:
    """Until it can be told from what may yet be written within the same instant."""
    gateway = start_gateway(f"--check-static={tmp_path}")
    with gateway.connect() as client:
        etag = b""
        for number in range(50):  # until the gateway was quick enough
            (tmp_path / f"{number}").write_bytes(b"x")
            reply = ask(client, b"/%d" % number)
            etag = reply.get(b"etag") or b""
            if etag.startswith(b"W/"):
                break
        assert etag.startswith(b"W/")
        path = b"/%d" % number
        assert ask(client, path, b"If-None-Match: " + etag).status == 304
        assert ask(client, path, b"If-Match: " + etag).status == 412
        reply = ask(client, path, b"Range: bytes=0-0", b"If-Range: " + etag)
        assert reply.status == 200
        started = time.monotonic()
        os.utime(tmp_path / path.decode()[1:], (CHANGED, CHANGED))
        wait_until(
            lambda: (ask(client, path).get(b"etag") or b"").startswith(b'"'), "a strong one"
        )
        assert time.monotonic() - started < 5
