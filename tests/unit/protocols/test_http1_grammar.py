"""Grammar shared by requests and responses: every byte on its side of the line."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uwgate.protocols.http1 import (
    BROKEN_LINE,
    HOST,
    Fault,
    Http1Error,
    LineMemo,
    accepts_gzip,
    content_length,
    split_field,
    split_list,
    transfer_coding,
    upgrade_protocols,
)

ALL_BYTES = [bytes((i,)) for i in range(256)]
# RFC 9110 §5.6.2, written out.
TCHAR = set(b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
# RFC 9110 §5.5: VCHAR, obs-text, SP, HTAB.
VALUE_BYTES = {0x09, *range(0x20, 0x7F), *range(0x80, 0x100)}


def _fault(function: object, *arguments: object) -> Fault:
    assert callable(function)
    with pytest.raises(Http1Error) as caught:
        function(*arguments)
    assert caught.value.fault.value in str(caught.value)
    return caught.value.fault


# --- field lines (RFC 9112 §5) -------------------------------------------------------------------


@pytest.mark.parametrize("byte", ALL_BYTES)
def test_field_names_are_tokens(byte: bytes) -> None:
    line = b"X" + byte + b"Y: v"
    if byte == b":":
        assert split_field(line) == (b"x", b"Y: v")
    elif byte[0] in TCHAR:
        assert split_field(line) == (b"x" + byte.lower() + b"y", b"v")
    else:
        assert _fault(split_field, line) is Fault.BAD_MESSAGE


@pytest.mark.parametrize("byte", ALL_BYTES)
def test_field_values_have_no_controls(byte: bytes) -> None:
    line = b"X: a" + byte + b"b"
    if byte[0] in VALUE_BYTES:
        assert split_field(line) == (b"x", b"a" + byte + b"b")
    else:
        assert _fault(split_field, line) is Fault.BAD_MESSAGE


@pytest.mark.parametrize(
    ("line", "value"),
    [
        (b"A:", b""),
        (b"A: ", b""),
        (b"A: \t \t", b""),
        (b"A:v", b"v"),
        (b"A: \t v \t ", b"v"),
        (b"A: v  w", b"v  w"),
        (b"A:::", b"::"),
        (b"A: \xa0v\xa0", b"\xa0v\xa0"),  # no white space of HTTP
        (b"A: \x85", b"\x85"),
    ],
)
def test_only_sp_and_htab_around_a_value_are_not_part_of_it(line: bytes, value: bytes) -> None:
    assert split_field(line) == (b"a", value)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"A",
        b": v",
        b"A : v",  # §5.1: no white space before the colon
        b"A\t: v",
        b" A: v",  # §5.2: obs-fold
        b"\tA: v",
        b" folded",
        b"A: v\r",
        b"A: v\n",
        b"A: \x00",
        b"\xc3\x84: v",
        b'"A": v',
        b"A(): v",
    ],
)
def test_lines_that_are_no_field_lines(line: bytes) -> None:
    assert _fault(split_field, line) is Fault.BAD_MESSAGE


# --- lists (RFC 9110 §5.6.1) ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "tokens"),
    [
        (b"", []),
        (b",", []),
        (b" , ,\t", []),
        (b"close", [b"close"]),
        (b"Close, X-A", [b"close", b"x-a"]),
        (b"a,b\t,\tc", [b"a", b"b", b"c"]),
        (b",,a,,b,,", [b"a", b"b"]),
    ],
)
def test_lists_of_tokens(value: bytes, tokens: list[bytes]) -> None:
    assert split_list(value) == tokens


@pytest.mark.parametrize(
    "value", [b"a b", b"a;b", b'"close"', b"clo\xa0se", b"\xa0close", b"a, b c"]
)
def test_list_elements_must_be_tokens(value: bytes) -> None:
    assert _fault(split_list, value) is Fault.BAD_MESSAGE


# --- Content-Length (RFC 9110 §8.6) --------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "length"),
    [(b"0", 0), (b"1", 1), (b"007", 7), (b"9" * 18, 10**18 - 1), (b"0" * 17 + b"5", 5)],
)
def test_content_lengths(value: bytes, length: int) -> None:
    assert content_length(value) == length


@pytest.mark.parametrize(
    "value",
    [
        b"", b"+1", b"-1", b"1_0", b"1,1", b"1, 1", b"1 ", b" 1", b"1 1", b"0x10", b"1e3", b"1.0",
        b"\xb2", "١".encode(), b"\xa01", b"1\x0b", b"1;", b"9" * 19, b"0" * 19, b"a", b"1a",
    ],
)  # fmt: skip
def test_content_lengths_that_python_might_take_but_http_does_not(value: bytes) -> None:
    assert _fault(content_length, value) is Fault.BAD_FRAMING


@given(st.binary(max_size=6))
def test_a_content_length_is_digits_and_nothing_else(value: bytes) -> None:
    digits = re.compile(rb"[0123456789]{1,18}").fullmatch(value)
    if digits:
        assert content_length(value) == sum(
            (byte - 48) * 10**i for i, byte in enumerate(reversed(value))
        )
    else:
        assert _fault(content_length, value) is Fault.BAD_FRAMING


# --- Transfer-Encoding (RFC 9112 §6.1, §7) -------------------------------------------------------


@pytest.mark.parametrize("value", [b"chunked", b"Chunked", b"CHUNKED", b"cHuNkEd"])
def test_chunked_alone_is_the_one_transfer_coding(value: bytes) -> None:
    transfer_coding(value)


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        (b"", Fault.UNKNOWN_CODING),
        (b"gzip", Fault.UNKNOWN_CODING),
        (b"identity", Fault.UNKNOWN_CODING),
        (b"xchunked", Fault.UNKNOWN_CODING),
        (b"chunkedx", Fault.UNKNOWN_CODING),
        (b"chunked;q=1", Fault.UNKNOWN_CODING),
        (b"\x0bchunked", Fault.BAD_FRAMING),
        (b'"chunked"', Fault.UNKNOWN_CODING),
        (b"gzip, chunked", Fault.UNKNOWN_CODING),  # its end is certain, its content not for us
        (b"gzip,\tchunked", Fault.UNKNOWN_CODING),
        (b"chunked, gzip", Fault.BAD_FRAMING),  # §6.1: chunked must be the final coding
        (b"chunked, chunked", Fault.BAD_FRAMING),  # and must not be applied twice
        (b"chunked,chunked", Fault.BAD_FRAMING),
        (b"chunked, identity", Fault.BAD_FRAMING),
        (b"chunked gzip", Fault.BAD_FRAMING),
        (b"gzip\tchunked", Fault.BAD_FRAMING),
    ],
)
def test_other_transfer_codings(value: bytes, fault: Fault) -> None:
    assert _fault(transfer_coding, value) is fault


@given(st.binary(max_size=12) | st.sampled_from([b" chunked", b"chunked ", b"\xa0chunked"]))
def test_nothing_else_passes_for_chunked(value: bytes) -> None:
    if value.lower() != b"chunked":
        assert _fault(transfer_coding, value) in (Fault.BAD_FRAMING, Fault.UNKNOWN_CODING)


# --- Accept-Encoding (RFC 9110 §12.5.3) ----------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "allowed"),
    [
        (b"gzip", True),
        (b"GZIP", True),
        (b"deflate, gzip;q=0.5, br", True),
        (b"gzip ; q=1.0", True),
        (b"gzip;q=0.001", True),
        (b"*", True),
        (b"*;q=0.5", True),
        (b"", False),
        (b"identity", False),
        (b"br, deflate", False),
        (b"gzip;q=0", False),
        (b"gzip;q=0.", False),
        (b"gzip;q=0.0", False),
        (b"gzip; Q=0.000", False),
        (b"*;q=0", False),
        (b"*, gzip;q=0", False),  # the more specific one decides
        (b"gzip;q=0, *", False),
        (b"*;q=0, gzip", True),
        (b"gzipped", False),
        (b"x-gz", False),
        (b"gzip" + b" " * 1020, True),
        (b"gzip" + b" " * 1021, False),  # to read it would take longer than it saves
    ],
)
def test_whether_gzip_is_wanted(value: bytes, allowed: bool) -> None:
    assert accepts_gzip(value) is allowed


# --- Upgrade (RFC 9110 §7.8) ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "protocols"),
    [
        (b"", []),
        (b"WebSocket", [b"websocket"]),
        (b"HTTP/2.0, SHTTP/1.3 ,,\tIRC/6.9", [b"http/2.0", b"shttp/1.3", b"irc/6.9"]),
    ],
)
def test_protocols_of_an_upgrade(value: bytes, protocols: list[bytes]) -> None:
    assert upgrade_protocols(value) == protocols


# --- Host (RFC 9110 §7.2) ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        b"h", b"example.com", b"EXAMPLE.com:8080", b"h:", b"127.0.0.1:1", b"[::1]",
        b"[2001:db8::1]:443",
        b"[::ffff:1.2.3.4]:", b"a_b", b"a~b", b"a-b.", b"a" * 255,
    ],
)  # fmt: skip
def test_hosts(value: bytes) -> None:
    assert HOST.fullmatch(value)


@pytest.mark.parametrize(
    "value",
    [
        b"", b":80", b"h:80:80", b"h:8a", b"h:123456", b"h:-1", b"h/", b"h/..", b"u@h", b"a b",
        b"a,b",
        b"h?", b"h#", b"h%41", b"[::1", b"::1", b"[::1]x", b"[::1%25eth0]", b"[v1.x]", b"h\\x",
        "ä".encode(), b"h\t", b"a" * 256, b"h:\xb2", b"<h>", b"h;", b"'h'", b'"h"', b"h\x00",
    ],
)  # fmt: skip
def test_hosts_that_are_refused(value: bytes) -> None:
    assert HOST.fullmatch(value) is None


# --- what can never become a head ----------------------------------------------------------------


@pytest.mark.parametrize(
    "data", [b"a\nb", b"\n", b"\x00", b"a\rb", b"\r\rx", b"a\r\n\n", b"a\r\r\n"]
)
def test_bytes_that_break_a_head(data: bytes) -> None:
    assert BROKEN_LINE.search(data)


@pytest.mark.parametrize(
    "data", [b"", b"GET", b"GET / HTTP/1.1\r", b"a\r\nb\r\n", b"a\r\n\r\n", b"\r"]
)
def test_beginnings_that_may_become_a_head(data: bytes) -> None:
    assert BROKEN_LINE.search(data) is None


# --- the memo ------------------------------------------------------------------------------------


def test_a_key_is_worth_keeping_the_second_time() -> None:
    memo = LineMemo(4)
    assert not memo.worth_keeping(b"a")
    assert not memo.worth_keeping(b"b")
    assert memo.worth_keeping(b"a")
    assert memo.worth_keeping(b"a")


def test_a_full_memo_is_emptied_before_it_grows() -> None:
    memo = LineMemo(3)
    for key in (b"%d" % i for i in range(100)):
        memo.worth_keeping(key)
        assert memo.worth_keeping(key)
        memo.entries[key] = key
        assert memo.entries[key] == key
        assert len(memo.entries) <= 3


def test_unique_keys_neither_grow_the_memo_nor_push_out_the_useful() -> None:
    memo = LineMemo(8)
    memo.worth_keeping(b"useful")
    assert memo.worth_keeping(b"useful")
    memo.entries[b"useful"] = 1
    for i in range(1000):
        memo.worth_keeping(b"unique %d" % i)
        assert len(memo.seen) <= 8 * 4
    assert memo.entries == {b"useful": 1}
