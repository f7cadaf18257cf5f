"""Addresses: every form, and every wrong form with what it says."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uwgate.config.addresses import bindable, connecting, listening, node
from uwgate.config.settings import Endpoint, NodeSettings


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (":8080", Endpoint("tcp", ":8080", port=8080)),
        (":0", Endpoint("tcp", ":0")),
        ("127.0.0.1:80", Endpoint("tcp", "127.0.0.1:80", host="127.0.0.1", port=80)),
        ("gate.example:80", Endpoint("tcp", "gate.example:80", host="gate.example", port=80)),
        ("my_host:80", Endpoint("tcp", "my_host:80", host="my_host", port=80)),
        ("[::]:80", Endpoint("tcp", "[::]:80", host="::", port=80)),
        ("[0:0::1]:80", Endpoint("tcp", "[0:0::1]:80", host="::1", port=80)),
        ("[fe80::1%eth0]:80", Endpoint("tcp", "[fe80::1%eth0]:80", host="fe80::1%eth0", port=80)),
        ("=3", Endpoint("shared", "=3", number=3)),
        ("fd://4", Endpoint("fd", "fd://4", number=4)),
        ("@name", Endpoint("abstract", "@name", path="name")),
        ("\\0name", Endpoint("abstract", "@name", path="name")),
        ("/run/a.sock", Endpoint("unix", "/run/a.sock", path="/run/a.sock")),
        ("/run/a:b", Endpoint("unix", "/run/a:b", path="/run/a:b")),
        ("./a:b", Endpoint("unix", "./a:b", path="./a:b")),
        ("app.sock", Endpoint("unix", "app.sock", path="app.sock")),
    ],
)
def test_listening(text: str, expected: Endpoint) -> None:
    assert listening(text) == expected


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "address is missing"),
        ("8080", "write :8080"),
        ("127.0.0.1", "write 127.0.0.1:PORT"),
        ("127.*", "has no port"),
        ("a\nb:1", "control characters"),
        ("localhost:", "no port after the colon"),
        ("localhost:x", "'x' is not a port"),
        ("localhost:65536", "expected 0 to 65535"),
        ("localhost:-1", "is not a port"),
        ("localhost:1_0", "is not a port"),
        ("localhost:\u0661", "is not a port"),
        ("300.1.1.1:80", "is not an IPv4 address"),
        ("1.2.3:80", "is not an IPv4 address"),
        ("::1:80", "needs brackets"),
        ("[::1]", "expected [IPV6]:PORT"),
        ("[::1]x:1", "expected [IPV6]:PORT"),
        ("[1.2.3.4]:80", "not an IPv6 address"),
        ("-bad-:80", "is not a host name"),
        ("a b:80", "is not a host name"),
        ("203.0.113.*:80", "no network interface"),
        ("=", "expected =N"),
        ("=x", "expected =N"),
        ("fd://", "expected fd://N"),
        ("http://:80", "without a scheme"),
        ("@", "name of the abstract socket is missing"),
        ("@" + "x" * 107, "106 are possible"),
        ("/" + "x" * 107, "at most 107"),
    ],
)
def test_listening_refused(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        listening(text)
    assert complaint in str(caught.value)


def test_local_address_is_detected() -> None:
    found = listening("127.*:8080")
    assert found.host.startswith("127.")
    assert found.text == f"{found.host}:8080"


def test_bindable() -> None:
    assert bindable("127.0.0.1:") == Endpoint("tcp", "127.0.0.1:0", host="127.0.0.1")
    assert bindable("/run/odd:").kind == "unix"
    with pytest.raises(ValueError, match="refers to a shared socket"):
        bindable("=0")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("fd://3", "cannot be connected to"),
        ("=0:", "no port"),
        ("localhost:0", "expected 1 to 65535"),
        ("3031", "write :3031"),
    ],
)
def test_connecting_refused(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        connecting(text)
    assert complaint in str(caught.value)


def test_connecting_to_this_machine() -> None:
    assert connecting(":3031") == Endpoint("tcp", ":3031", host="127.0.0.1", port=3031)


def tcp(text: str, host: str, port: int) -> Endpoint:
    return Endpoint("tcp", text, host=host, port=port)


def unix(path: str) -> Endpoint:
    return Endpoint("unix", path, path=path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:3031", NodeSettings(tcp("127.0.0.1:3031", "127.0.0.1", 3031))),
        ("uwsgi://app:1", NodeSettings(tcp("app:1", "app", 1))),
        ("[::1]:3031", NodeSettings(tcp("[::1]:3031", "::1", 3031))),
        ("/a.sock,modifier1=5", NodeSettings(unix("/a.sock"), modifier1=5)),
        (
            "@x,weight=3,modifier1=0,modifier2=255",
            NodeSettings(
                Endpoint("abstract", "@x", path="x"), modifier1=0, modifier2=255, weight=3
            ),
        ),
        ("http://app:80", NodeSettings(tcp("app:80", "app", 80), protocol="http")),
        ("HTTP://[::1]:80", NodeSettings(tcp("[::1]:80", "::1", 80), protocol="http")),
        ("http:///a.sock,weight=2", NodeSettings(unix("/a.sock"), protocol="http", weight=2)),
        ("/a.sock,backup=1", NodeSettings(unix("/a.sock"), backup=1)),
        ("http:///a.sock,backup=100", NodeSettings(unix("/a.sock"), protocol="http", backup=100)),
        ("http://@x", NodeSettings(Endpoint("abstract", "@x", path="x"), protocol="http")),
    ],
)
def test_node(text: str, expected: NodeSettings) -> None:
    assert node(text) == expected


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("127.0.0.1:3031,5", "write 127.0.0.1:3031,modifier1=5"),
        ("/run/a.sock,5", "write /run/a.sock,modifier1=5"),
        ("https://app:443", "TLS towards nodes is not supported"),
        ("suwsgi://app:443", "TLS towards nodes is not supported"),
        ("fcgi://app:1", "unknown scheme"),
        ("http://app:80/x", "a node has no path, but '/x' follows the port; write app:80"),
        ("http://app:80/", "a node has no path"),
        ("app:80/x", "a node has no path"),
        ("http://app", "write http://app:80"),
        ("http://app:80,modifier1=3", "an http:// node has none"),
        ("app:1,", "',' is not understood"),
        ("app:1,color=3", "',color=3' is not understood"),
        ("app:1,weight", "weight is ''"),
        ("app:1,weight=0", "expected 1 to"),
        ("app:1,modifier1=256", "expected 0 to 255"),
        ("app:1,backup=101", "expected 0 to 100"),
        ("app:1,backup=-1", "backup is '-1'"),
        ("app:1,weight=1,weight=2", "given twice"),
        ("", "address is missing"),
        ("uwsgi://", "address is missing"),
    ],
)
def test_node_refused(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        node(text)
    assert complaint in str(caught.value)


@given(st.ip_addresses(), st.integers(1, 65535))
def test_every_literal_is_an_address(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int
) -> None:
    text = f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"
    assert connecting(text) == tcp(text, str(address), port)
    assert node(text).endpoint == listening(text)


def complaint_about(reader: Callable[[str], object], text: str) -> str | None:
    try:
        reader(text)
    except ValueError as error:
        return str(error)
    return None


@given(st.text(max_size=40))
def test_any_text_is_an_address_or_a_clear_error(text: str) -> None:
    for reader in (listening, bindable, connecting, node):
        complaint = complaint_about(reader, text)
        assert complaint is None or (complaint and "invalid literal" not in complaint)
