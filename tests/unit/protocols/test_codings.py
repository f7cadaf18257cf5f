"""Accept-Encoding (RFC 9110 §12.5.3)."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uwgate.protocols.codings import accepted

ALL = (b"br", b"zstd", b"gzip")


@pytest.mark.parametrize(
    ("value", "codings"),
    [
        pytest.param(None, (), id="12.5.3 no field"),
        pytest.param(b"", (), id="12.5.3 an empty field: identity only"),
        pytest.param(b"compress, gzip", (b"gzip",), id="12.5.3 example 1"),
        pytest.param(b"*", ALL, id="12.5.3 example 3"),
        pytest.param(b"compress;q=0.5, gzip;q=1.0", (b"gzip",), id="12.5.3 example 4"),
        pytest.param(b"gzip;q=1.0, identity; q=0.5, *;q=0", (b"gzip",), id="12.5.3 example 5"),
        pytest.param(b"gzip, deflate, br, zstd", ALL, id="browsers: ties as available"),
        pytest.param(b"gzip, br;q=0.9, zstd;q=0.95", (b"gzip", b"zstd", b"br"), id="12.4.2 by q"),
        pytest.param(b"gzip;q=0.5, br;q=0.5", (b"br", b"gzip"), id="12.4.2 ties below 1"),
        pytest.param(b"gzip;q=0", (), id="12.4.2 q=0"),
        pytest.param(b"gzip;q=0.000, br;q=0.001", (b"br",), id="12.4.2 three digits"),
        pytest.param(b"gzip;q=0., br;q=1.", (b"br",), id="12.4.2 no digit behind the dot"),
        pytest.param(b"*;q=0", (), id="12.5.3 star excludes"),
        pytest.param(b"gzip, *;q=0", (b"gzip",), id="12.5.3 star is for what is not named"),
        pytest.param(b"gzip;q=0, *", (b"br", b"zstd"), id="12.5.3 star after an exclusion"),
        pytest.param(b"*;q=0.5, gzip", (b"gzip", b"br", b"zstd"), id="12.5.3 star below gzip"),
        pytest.param(
            b"*;q=0.5, gzip;q=0.4", (b"br", b"zstd"), id="12.5.3 star is for identity too"
        ),
        pytest.param(
            b"*;q=0.5, gzip, identity;q=0.1", (b"gzip", b"br", b"zstd"), id="12.5.3 identity named"
        ),
        pytest.param(b"identity", (), id="12.5.3 identity alone"),
        pytest.param(b"identity, gzip;q=0.9, br", (b"br",), id="12.5.3 identity above gzip"),
        pytest.param(b"identity;q=0.5, gzip;q=0.5", (b"gzip",), id="12.5.3 identity beside gzip"),
        pytest.param(b"identity;q=0, gzip;q=0.1", (b"gzip",), id="12.5.3 identity excluded"),
        pytest.param(b"identity;q=0", (), id="12.5.3 identity excluded, nothing else named"),
        pytest.param(b"x-gzip", (b"gzip",), id="8.4.1.3 x-gzip"),
        pytest.param(b"x-gzip;q=0, gzip", (), id="8.4.1.3 one coding, the first counts"),
        pytest.param(b"gzip;q=0.1, gzip;q=0, br;q=0.2", (b"br", b"gzip"), id="the first counts"),
        pytest.param(b"GZip;Q=0.5, BR;q=0.4", (b"gzip", b"br"), id="8.4.1 case-insensitive"),
        pytest.param(b" , ,\tgzip \t; \tq=1\t,,", (b"gzip",), id="5.6.1 empty elements, 5.6.3 OWS"),
        pytest.param(b"gzip;q=2, br", (b"br",), id="malformed: q above 1"),
        pytest.param(b"gzip;q=1.001, br", (b"br",), id="malformed: q just above 1"),
        pytest.param(b"gzip;q=0.1234, br", (b"br",), id="malformed: four digits"),
        pytest.param(b"gzip;q=-1, br", (b"br",), id="malformed: a sign"),
        pytest.param(b"gzip;q=.5, br", (b"br",), id="malformed: no digit before the dot"),
        pytest.param(b"gzip;q = 1, br", (b"br",), id="malformed: spaces at ="),
        pytest.param(b"gzip;level=1, br", (b"br",), id="malformed: another parameter"),
        pytest.param(b"gzip;q=1;q=1, br", (b"br",), id="malformed: two weights"),
        pytest.param(b"gzip;, br", (b"br",), id="malformed: no parameter"),
        pytest.param(b"g zip, gzip gzip, br", (b"br",), id="malformed: a space"),
        pytest.param(b"gzip\xe9, \xff, br", (b"br",), id="malformed: no ASCII"),
        pytest.param(b'"gzip", br', (b"br",), id="malformed: quotes"),
        pytest.param(b"gzip;q=x, *;q=0.5, identity;q=0", ALL, id="malformed: star goes on"),
        pytest.param(b"gzipped, brotli", (), id="longer names"),
    ],
)
def test_accepted(value: bytes | None, codings: tuple[bytes, ...]) -> None:
    assert accepted(value, ALL) == codings


def test_nothing_is_available() -> None:
    assert accepted(b"gzip, *", ()) == ()


def test_long_values_are_read_in_linear_time() -> None:
    for junk in (b" " * 60000, b"gzip;" * 12000, b"," * 60000, b"a" * 60000):
        assert accepted(junk + b",br", ALL) == (b"br",)


@settings(max_examples=100)
@given(
    st.permutations([b"br", b"zstd", b"gzip", b"identity"]),
    st.lists(st.integers(0, 1000), min_size=4, max_size=4),
)
def test_order_and_exclusion(names: list[bytes], weights: list[int]) -> None:
    q = dict(zip(names, weights, strict=True))
    value = b", ".join(b"%b;q=%.3f" % (name, weight / 1000) for name, weight in q.items())
    result = accepted(value, ALL)
    assert set(result) == {name for name in ALL if q[name] and q[name] >= q[b"identity"]}
    assert list(result) == sorted(result, key=lambda name: (-q[name], ALL.index(name)))


@settings(max_examples=100)
@given(st.binary(max_size=40) | st.text("brgzip*;q=01., ", max_size=40).map(str.encode))
def test_any_bytes(value: bytes) -> None:
    result = accepted(value, ALL)
    assert set(result) <= set(ALL)
    assert len(set(result)) == len(result)
