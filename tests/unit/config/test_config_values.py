"""Values that are not addresses."""

from __future__ import annotations

import grp
import ipaddress
import os
import pwd
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uwgate.config import values
from uwgate.config.settings import HashBy


@pytest.mark.parametrize("text", ["false", "False", "OFF", "no", "0"])
def test_off(text: str) -> None:
    assert values.boolean(text) is False
    assert values.switch_or_number(text) == 0


@pytest.mark.parametrize("text", ["true", "TRUE", "yes", "on", "1", ""])
def test_on(text: str) -> None:
    assert values.boolean(text) is True
    assert values.switch_or_number(text) == 1
    assert not values.odd_boolean(text)


def test_anything_else_is_on_but_odd() -> None:
    assert values.boolean("flase") is True
    assert values.odd_boolean("flase")


@pytest.mark.parametrize(
    ("convert", "text", "expected"),
    [
        (values.switch_or_number, "75", 75),
        (values.switch_or_number, "1m", 1 << 20),
        (values.integer(0, 9), "007", 7),
        (values.socket_number, "", 0),
        (values.socket_number, "true", 0),
        (values.socket_number, "2", 2),
        (values.seconds(), "60", 60.0),
        (values.seconds(), "1.5", 1.5),
        (values.seconds(), "500ms", 0.5),
        (values.seconds(), "2m", 120.0),
        (values.seconds(), "1h", 3600.0),
        (values.seconds(), "1d", 86400.0),
        (values.seconds(low=0.0), "0", 0.0),
        (values.size(), "64k", 65536),
        (values.size(), "2M", 2 << 20),
        (values.size(), "1g", 1 << 30),
        (values.size(), "10", 10),
        (values.mode, "", 0o666),
        (values.mode, "660", 0o660),
        (values.mode, "0660", 0o660),
        (values.creation_mask, "022", 0o022),
        (values.choice("a", "b"), "b", "b"),
        (values.filename, "x", "x"),
        (values.user, "0", 0),
        (values.user, pwd.getpwuid(os.getuid()).pw_name, os.getuid()),
        (values.group, grp.getgrgid(os.getgid()).gr_name, os.getgid()),
        (values.network, "unix", None),
        (values.network, "10.0.0.0/8", ipaddress.ip_network("10.0.0.0/8")),
        (values.network, "::1", ipaddress.ip_network("::1/128")),
        (values.address_literal, "2001:DB8::0", "2001:db8::"),
        (values.variable, "A=b=c", (b"A", b"b=c")),
        (values.variable, "A=", (b"A", b"")),
        (values.variable, "A=é\udcff", (b"A", b"\xc3\xa9\xff")),
        (values.pseudonym, "gw1", "gw1"),
        (values.pseudonym, "gw.example:80", "gw.example:80"),
        (values.pseudonym, "", ""),
        (values.pseudonym, "off", ""),
        (values.hash_by, "path", HashBy("path")),
        (values.hash_by, "uri", HashBy("uri")),
        (values.hash_by, "client", HashBy("client")),
        (values.hash_by, "header:X-User", HashBy("header", "x-user")),
        (values.hash_by, "cookie:SID", HashBy("cookie", "SID")),
        (values.process_name, "my gate", "my gate"),
        (values.log_format, "%(uri) é", "%(uri) é"),
    ],
)
def test_accepted(convert: Callable[[str], object], text: str, expected: object) -> None:
    assert convert(text) == expected


@pytest.mark.parametrize(
    ("convert", "text", "complaint"),
    [
        (values.integer(0, 9), "", "a value is missing; expected a whole number"),
        (values.integer(0, 9), "-1", "'-1' is negative"),
        (values.integer(0, 9), "+1", "is not a number"),
        (values.integer(0, 9), "1_0", "is not a number"),
        (values.integer(0, 9), "\u0663", "is not a number"),
        (values.integer(0, 9, "seconds"), "10", "expected 0 to 9 seconds"),
        (values.integer(0, 9), "1 ", "is not a number"),
        (values.switch_or_number, "often", "is not a number; expected bytes"),
        (values.seconds(), "0", "out of range"),
        (values.seconds(), "-5", "is negative"),
        (values.seconds(), "soon", "expected seconds, or a number with ms"),
        (values.seconds(), "1w", "is not a number"),
        (values.seconds(), "9" * 12, "out of range"),
        (values.seconds(), "999999999", "31536000 seconds"),
        (values.size(), "1t", "is not a number; expected bytes"),
        (values.size(), "1" * 17, "out of range"),
        (values.size(1024), "1", "expected 1024 to 1125899906842624 bytes"),
        (values.mode, "true", "three octal digits"),
        (values.mode, "888", "three octal digits"),
        (values.creation_mask, "", "three octal digits"),
        (values.choice("a", "b"), "c", "expected one of a, b"),
        (values.filename, "", "file name is missing"),
        (values.user, "no-such-user-here", "no user named 'no-such-user-here'"),
        (values.group, "no-such-group-here", "no group named"),
        (values.group, "", "no group named"),
        (values.user, "a\0b", "no user named"),
        (values.user, "9999999999", "out of range"),
        (values.network, "10.0.0.1/8", "did you mean 10.0.0.0/8?"),
        (values.network, "localhost", "is not a network"),
        (values.address_literal, "localhost", "is not an IP address"),
        (values.variable, "A", "has no '='"),
        (values.variable, "=b", "is not a variable name"),
        (values.variable, "A B=c", "is not a variable name"),
        (values.variable, "A=b\r\nc", "control characters"),
        (values.variable, "A=" + "x" * 65001, "longer than 65000"),
        (values.pseudonym, "two words", "cannot stand in a Via field"),
        (values.pseudonym, "gw\r\n", "cannot stand in a Via field"),
        (values.hash_by, "", "expected path, uri, header:NAME, cookie:NAME or client"),
        (values.hash_by, "query", "'query' is not known"),
        (values.hash_by, "path:x", "'path:x' is not known"),
        (values.hash_by, "header", "expected header:NAME, as in header:x-user"),
        (values.hash_by, "cookie:", "'' is not a name"),
        (values.hash_by, "header:two words", "'two words' is not a name"),
        (values.process_name, "", "process name"),
        (values.process_name, "a\x1b", "process name"),
        (values.log_format, "", "a format is missing"),
        (values.log_format, "a\nb", "control characters"),
    ],
)
def test_refused(convert: Callable[[str], object], text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        convert(text)
    assert complaint in str(caught.value)


CONVERTERS = [
    values.switch_or_number,
    values.integer(0, 10**9),
    values.socket_number,
    values.seconds(),
    values.size(),
    values.mode,
    values.creation_mask,
    values.user,
    values.group,
    values.network,
    values.address_literal,
    values.variable,
    values.pseudonym,
    values.hash_by,
    values.process_name,
    values.log_format,
]


def complaint_about(convert: Callable[[str], object], text: str) -> str:
    try:
        convert(text)
    except ValueError as error:
        return str(error)
    return ""


@given(st.text(max_size=30))
def test_any_text_is_a_value_or_a_clear_error(text: str) -> None:
    for convert in CONVERTERS:
        complaint = complaint_about(convert, text)
        assert "invalid literal" not in complaint
        assert "could not convert" not in complaint


@given(st.integers(0, 10**9))
def test_numbers_come_back(number: int) -> None:
    assert values.integer(0, 10**9)(str(number)) == number
    assert values.size()(f"{number}k") == number * 1024
