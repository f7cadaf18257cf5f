"""Before the first request: PROXY headers and stud prefixes, and who may send them."""

from __future__ import annotations

import socket
from ipaddress import ip_network

import pytest

from uwgate.config.settings import HttpSettings, Network
from uwgate.router.preface import Preface, PrefaceError, may_announce

V1 = b"PROXY TCP4 192.0.2.1 198.51.100.1 1234 80\r\n"
V2_FIXED = b"\r\n\r\n\x00\r\nQUIT\n"
V2 = (
    V2_FIXED
    + b"\x21\x11\x00\x0c"
    + socket.inet_aton("192.0.2.1")
    + socket.inet_aton("198.51.100.1")
    + (1234).to_bytes(2, "big")
    + (80).to_bytes(2, "big")
)
V2_TLS = V2_FIXED + b"\x21\x11\x00\x14" + V2[16:] + b"\x20\x00\x05\x01\x00\x00\x00\x00"
STUD4 = bytes((socket.AF_INET,)) + socket.inet_aton("192.0.2.1")
STUD6 = bytes((socket.AF_INET6,)) + socket.inet_pton(socket.AF_INET6, "2001:db8::1")
REQUEST = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"


def proxied(*, allowed: bool = True) -> Preface:
    return Preface(stud=False, allowed=allowed)


def stud() -> Preface:
    return Preface(stud=True, allowed=True)


@pytest.mark.parametrize(
    ("preface", "header", "address", "tls"),
    [
        (proxied, V1, (b"192.0.2.1", 1234), False),
        (
            proxied,
            V1.replace(b"TCP4 192.0.2.1 198.51.100.1", b"TCP6 ::2 ::1"),
            (b"::2", 1234),
            False,
        ),
        (proxied, V2, (b"192.0.2.1", 1234), False),
        (proxied, V2_TLS, (b"192.0.2.1", 1234), True),
        (proxied, b"PROXY UNKNOWN\r\n", None, False),
        (proxied, V2_FIXED + b"\x20\x00\x00\x00", None, False),  # LOCAL
        (stud, STUD4, (b"192.0.2.1", 0), True),
        (stud, STUD6, (b"2001:db8::1", 0), True),
    ],
)
@pytest.mark.parametrize("behind", [b"", REQUEST, V1, STUD4])
def test_prefaces(
    preface: object, header: bytes, address: tuple[bytes, int] | None, tls: bool, behind: bytes
) -> None:
    assert callable(preface)
    for size in range(1, len(header)):
        reader = preface()
        assert reader.read(header[:size]) == -1
        assert reader.read(header + behind) == len(header)
        assert (reader.address, reader.tls) == (address, tls)


@pytest.mark.parametrize(
    "data", [REQUEST, b"POST / HTTP/1.1\r\n", b"PROX / HTTP/1.1\r\n", b"\r\nGET /", b"\x16\x03"]
)
@pytest.mark.parametrize("allowed", [False, True])
def test_requests_without_a_preface(data: bytes, allowed: bool) -> None:
    reader = proxied(allowed=allowed)
    assert reader.read(data) == 0
    assert (reader.address, reader.tls) == (None, False)


@pytest.mark.parametrize(
    "data",
    [
        b"PROXY TCP4 192.0.2.1 198.51.100.1 1234\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.1 1234 65536\r\n",
        b"PROXY TCP4 192.0.2.256 198.51.100.1 1 2\r\n",
        b"PROXY tcp4 192.0.2.1 198.51.100.1 1 2\r\n",
        b"PROXY  TCP4 192.0.2.1 198.51.100.1 1 2\r\n",
        b"PROXY " + b"x" * 200,
        V2_FIXED + b"\x31\x11\x00\x0c",
        V2_FIXED + b"\x21\x11\x00\x04" + b"1234",
    ],
)
def test_malformed_headers(data: bytes) -> None:
    with pytest.raises(PrefaceError):
        proxied().read(data)


@pytest.mark.parametrize("data", [b"\x00", b"GET / HTTP/1.1", b"\x03abcd", b"\xff"])
def test_malformed_stud_prefixes(data: bytes) -> None:
    with pytest.raises(PrefaceError, match="unknown address family"):
        stud().read(data)


@pytest.mark.parametrize("header", [V1, V2])
def test_a_header_of_somebody_who_may_not_send_one(header: bytes) -> None:
    reader = proxied(allowed=False)
    with pytest.raises(PrefaceError, match="may not announce"):
        reader.read(header)
    for size in range(1, len(header)):
        try:
            assert proxied(allowed=False).read(header[:size]) == -1
        except PrefaceError:
            assert size > 5
    assert reader.address is None


# --- who may --------------------------------------------------------------------------------------


def settings(*networks: str, unix: bool = False, stud: tuple[str, ...] = ()) -> HttpSettings:
    trusted: tuple[Network, ...] = tuple(ip_network(network) for network in networks)
    return HttpSettings(
        listeners=(),
        proxy_protocol=True,
        stud_prefix=stud,
        trusted_proxies=trusted,
        trust_unix=unix,
    )


@pytest.mark.parametrize(
    ("allowed", "client", "believed"),
    [
        (settings(), b"203.0.113.9", True),  # as uWSGI: anybody
        (settings(), b"", True),
        (settings("10.0.0.0/8"), b"10.1.2.3", True),
        (settings("10.0.0.0/8"), b"11.1.2.3", False),
        (settings("10.0.0.0/8"), b"", False),
        (settings("10.0.0.0/8", unix=True), b"", True),
        (settings(unix=True), b"10.1.2.3", False),
        (settings("::1/128", "fe80::/10"), b"::1", True),
        (settings("::1/128", "fe80::/10"), b"fe80::1%eth0", True),
        (settings("::1/128", "10.0.0.0/8"), b"::2", False),
        (settings("127.0.0.1/32"), b"127.0.0.2", False),
    ],
)
def test_whose_headers_are_believed(allowed: HttpSettings, client: bytes, believed: bool) -> None:
    assert may_announce(allowed, client) is believed
    reader = Preface.for_peer(allowed, client)
    assert reader is not None
    if believed:
        assert reader.read(V1) == len(V1)
    else:
        with pytest.raises(PrefaceError):
            reader.read(V1)


def test_which_peers_have_a_preface() -> None:
    off = HttpSettings(listeners=(), stud_prefix=("127.0.0.1", "::1"))
    for client, has_one in (
        (b"127.0.0.1", True),
        (b"::1", True),
        (b"127.0.0.2", False),
        (b"", False),
    ):
        assert (Preface.for_peer(off, client) is not None) is has_one
    both = settings("10.0.0.0/8", stud=("127.0.0.1",))
    reader = Preface.for_peer(both, b"127.0.0.1")
    assert reader is not None
    assert reader.read(STUD4) == len(STUD4)  # stud's off-loader, whatever else is configured
