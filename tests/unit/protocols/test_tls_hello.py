"""ClientHellos: real ones of OpenSSL, pieces of them, and whatever else may come."""

from __future__ import annotations

import ssl
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uwgate.protocols.tls_hello import MAX_HELLO, HelloError, is_whole, parse_hello

NAME = "www.example.com"


def hello_of(configure: Callable[[ssl.SSLContext], object], name: str | None = NAME) -> bytes:
    """What OpenSSL sends first."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    configure(context)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def modern(context: ssl.SSLContext) -> None:
    context.set_alpn_protocols(["h2", "http/1.1"])


def old(context: ssl.SSLContext) -> None:
    context.maximum_version = ssl.TLSVersion.TLSv1_2


MODERN = hello_of(modern)
OLD = hello_of(old)


def u16(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data


def record(fragment: bytes, kind: int = 22) -> bytes:
    return bytes((kind, 3, 1)) + u16(fragment)


def message(body: bytes, kind: int = 1) -> bytes:
    return bytes((kind,)) + len(body).to_bytes(3, "big") + body


def body(
    extensions: bytes | None = b"",
    session_id: bytes = b"",
    suites: bytes = b"\x13\x01",
    methods: bytes = b"\x01\x00",
) -> bytes:
    start = b"\x03\x03" + bytes(32) + bytes((len(session_id),)) + session_id
    return start + u16(suites) + methods + (u16(extensions) if extensions is not None else b"")


def extension(kind: int, content: bytes) -> bytes:
    return kind.to_bytes(2, "big") + u16(content)


def server_name(name: bytes) -> bytes:
    return extension(0, u16(b"\0" + u16(name)))


def whole(extensions: bytes) -> bytes:
    return record(message(body(extensions)))


def reason(data: bytes) -> str:
    with pytest.raises(HelloError) as caught:
        parse_hello(data)
    return caught.value.reason


def outcome(data: bytes) -> str:
    """What parsing comes to; anything but HelloError is a fault."""
    try:
        hello = parse_hello(data)
    except HelloError as error:
        return error.reason
    return "incomplete" if hello is None else "whole"


def test_of_tls_1_3() -> None:
    hello = parse_hello(MODERN)
    assert hello is not None
    assert hello.server_name == NAME
    assert hello.alpn == (b"h2", b"http/1.1")
    assert hello.versions[0] == 0x0304
    assert hello.ticket == b""
    assert hello.psk_identities == ()
    assert len(hello.session_id) == 32


def test_of_tls_1_2_without_a_name() -> None:
    hello = parse_hello(hello_of(old, None))
    assert hello is not None
    assert (hello.server_name, hello.versions, hello.alpn) == ("", (0x0303,), ())
    assert hello.session_id == b""


def test_no_ticket_is_not_an_empty_one() -> None:
    def without(context: ssl.SSLContext) -> None:
        old(context)
        context.options |= ssl.OP_NO_TICKET

    hello = parse_hello(hello_of(without))
    assert hello is not None
    assert hello.ticket is None


@pytest.mark.parametrize("data", [MODERN, OLD])
def test_every_beginning_is_incomplete(data: bytes) -> None:
    for end in range(len(data)):
        assert parse_hello(data[:end]) is None


@given(st.sampled_from([MODERN, OLD]), st.lists(st.integers(1, 100), min_size=1, max_size=8))
def test_fragments_say_the_same(data: bytes, sizes: list[int]) -> None:
    """RFC 8446 §5.1: a message may be spread over records."""
    rest, parts = data[5:], []
    for size in sizes:
        parts.append(rest[:size])
        rest = rest[size:]
    split = b"".join(record(part) for part in [*parts, rest] if part)
    one, other = parse_hello(data), parse_hello(split)
    assert one is not None
    assert other is not None
    assert all(getattr(one, name) == getattr(other, name) for name in one.__slots__)
    for end in range(0, len(split), 7):
        assert parse_hello(split[:end]) is None


def test_what_follows_is_not_looked_at() -> None:
    hello = parse_hello(OLD + b"\x17\x03\x03\x00\x01x")
    assert hello is not None
    assert hello.server_name == NAME


@given(st.binary(max_size=200))
def test_whatever_comes(data: bytes) -> None:
    assert outcome(data) in ("incomplete", "whole", "http", "malformed", "too-large")


@given(
    st.sampled_from([MODERN, OLD]),
    st.lists(st.tuples(st.integers(0, 600), st.integers(0, 255)), min_size=1, max_size=6),
)
def test_changed_bytes(data: bytes, changes: list[tuple[int, int]]) -> None:
    changed = bytearray(data)
    for position, value in changes:
        changed[position % len(changed)] = value
    assert outcome(bytes(changed)) in ("incomplete", "whole", "http", "malformed", "too-large")


@pytest.mark.parametrize(
    "data",
    [b"GET / HTTP/1.1\r\n", b"G", b"POST /x", b"PRI * HTTP/2.0", b"OPTIONS *", b"M-SEARCH * H"],
)
def test_http_in_clear(data: bytes) -> None:
    assert reason(data) == "http"


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x2e\x01\x00\x02",  # SSL 2.0
        b"get / http/1.1",
        b"SSH-2.0-OpenSSH_9",
        b"\x16\x02",
        b"\x16\x04\x00\x00\x10",
        b"\x16\x03\x01\x00\x00",  # an empty fragment
        b"\x16\x03\x01\x40\x01",  # more than a record holds
        b"\x17\x03\x03\x00\x05hello",
        record(message(body(), kind=2)),
        record(b"\x02") + record(message(body())),
        record(b"\x01\x00") + record(b"x" * 10, kind=23),
    ],
)
def test_no_handshake(data: bytes) -> None:
    assert reason(data) == "malformed"


def test_an_empty_message() -> None:
    assert reason(record(message(b""))) == "malformed"
    assert reason(record(b"\x01\0") + record(b"\0\0")) == "malformed"


def test_too_large() -> None:
    head = b"\x01" + (MAX_HELLO + 1).to_bytes(3, "big")
    assert reason(record(head)) == "too-large"
    assert reason(record(head[:2]) + record(head[2:])) == "too-large"


def test_too_many_records() -> None:
    start = message(body())
    assert reason(b"".join(record(start[pos : pos + 1]) for pos in range(40))) == "too-large"


@pytest.mark.parametrize(
    "inside",
    [
        b"",
        b"\x03",
        b"\x03\x03" + bytes(32) + b"\x21" + bytes(33) + u16(b"\x13\x01") + b"\x01\x00",
        body(session_id=b"x" * 32)[:50],
        body(suites=b""),
        body(suites=b"\x13"),
        body(methods=b"\x00"),
        body(methods=b"\x05\x00", extensions=None),
        body() + b"x",
        body(b"")[:-1],
        body(extension(1, b"x")[:-1]),
        body(b"\x00"),
        body(extension(0xFF, b"") * 2),
        body(server_name(b"a.example") + extension(16, u16(b"\x02h2")) + server_name(b"b.example")),
        body(extension(35, b"ticket")[:-1]),
    ],
)
def test_broken_messages(inside: bytes) -> None:
    assert reason(record(message(inside))) == "malformed"


def test_without_extensions() -> None:
    hello = parse_hello(record(message(body(None, b"id"))))
    assert hello is not None
    assert hello.session_id == b"id"
    assert hello.versions == (0x0303,)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        u16(b""),
        u16(b"\0" + u16(b"")),
        u16(b"\x01" + u16(b"a.example")),
        u16(b"\0" + u16(b"a.example")) + b"x",
        u16(b"\0" + u16(b"a.example")[:-1]),
        u16(b"\0" + u16(b"a") + b"\0" + u16(b"b")),
    ],
)
def test_broken_names(content: bytes) -> None:
    assert reason(whole(extension(0, content))) == "malformed"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (b"WWW.Example.COM", "www.example.com"),
        (b"a.example.", "a.example"),
        (b"_acme.example", "_acme.example"),
        (b"xn--bcher-kva.example", "xn--bcher-kva.example"),
        (b"a" * 64 + b".example", ""),
        (b"../../etc/passwd", ""),
        (b"a..b", ""),
        (b".a", ""),
        (b"-a.example", ""),
        (b"a\0.example", ""),
        (b"a\xff", ""),
        (b"a." * 126 + b"ab", ""),
    ],
)
def test_names(name: bytes, expected: str) -> None:
    hello = parse_hello(whole(server_name(name)))
    assert hello is not None
    assert hello.server_name == expected


@pytest.mark.parametrize(
    "content", [b"", u16(b""), u16(b"\x02h"), u16(b"\x00"), u16(b"\x02h2") + b"x", b"\0"]
)
def test_broken_protocols(content: bytes) -> None:
    assert reason(whole(extension(16, content))) == "malformed"


def psk(*identities: bytes) -> bytes:
    return u16(b"".join(u16(each) + bytes(4) for each in identities)) + u16(b"\x20" + bytes(32))


def test_pre_shared_keys() -> None:
    hello = parse_hello(whole(extension(41, psk(b"one", b"x" * 32))))
    assert hello is not None
    assert hello.psk_identities == (b"one", b"x" * 32)


@pytest.mark.parametrize(
    "content", [b"", u16(b""), u16(b"ab"), u16(u16(b"one") + b"\0\0"), b"\0\x09" + b"x" * 3]
)
def test_broken_pre_shared_keys(content: bytes) -> None:
    assert reason(whole(extension(41, content))) == "malformed"


@pytest.mark.parametrize("content", [b"", b"\0", b"\x01\x03", b"\x04\x03\x04", b"\x02\x03\x04x"])
def test_broken_versions(content: bytes) -> None:
    assert reason(whole(extension(43, content))) == "malformed"


def test_versions_with_grease() -> None:
    hello = parse_hello(whole(extension(43, b"\x06\xfa\xfa\x03\x04\x03\x03")))
    assert hello is not None
    assert hello.versions == (0xFAFA, 0x0304, 0x0303)


@pytest.mark.parametrize("data", [MODERN, OLD])
def test_whole_ones(data: bytes) -> None:
    assert is_whole(data)
    assert is_whole(data + b"more")
    assert not any(is_whole(data[:end]) for end in range(len(data)))


@pytest.mark.parametrize(
    "data",
    [b"GET / HTTP/1.1\r\n\r\n", record(message(body(), kind=2)), record(b"\x01\0\xff\xff" * 9)],
)
def test_ones_that_are_not_whole(data: bytes) -> None:
    assert not is_whole(data)
