"""uwsgi packets and variables: the wire of uWSGI 2.0.31, and paths that stay inside the root."""

from __future__ import annotations

from urllib.parse import quote_from_bytes, unquote_to_bytes

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from uwgate.protocols.uwsgi import (
    MAX_DATASIZE,
    Packet,
    PacketError,
    header_name,
    packet,
    parse_packet,
    path_info,
    request_line_vars,
    var,
)

# What uWSGI 2.0.31 sent for: POST /hi%20x?y=1 HTTP/1.1, Host: ex.com, Content-Length: 2, "ok",
# with --http-modifier1 5. Its REMOTE_PORT is byte-swapped; 10449 is taken here as the port itself.
CAPTURED = bytes.fromhex(
    "050a01000e00524551554553545f4d4554484f440400504f5354090050415448"
    "5f494e464f05002f686920780b00524551554553545f5552490b002f68692532"
    "30783f793d310c0051554552595f535452494e470300793d310f005345525645"
    "525f50524f544f434f4c0800485454502f312e310b005343524950545f4e414d"
    "4500000b005345525645525f4e414d450200766d0b005345525645525f504f52"
    "54050032343030310c0055575347495f524f555445520400687474700b005245"
    "4d4f54455f4144445209003132372e302e302e310b0052454d4f54455f504f52"
    "54050031303434390900485454505f484f5354060065782e636f6d0e00434f4e"
    "54454e545f4c454e4754480100326f6b"
)


def test_packet_is_byte_for_byte_that_of_uwsgi() -> None:
    built = packet(
        5,
        0,
        request_line_vars(b"POST", b"/hi%20x?y=1", b"HTTP/1.1"),
        var(b"SCRIPT_NAME", b""),
        var(b"SERVER_NAME", b"vm"),
        var(b"SERVER_PORT", b"24001"),
        var(b"UWSGI_ROUTER", b"http"),
        var(b"REMOTE_ADDR", b"127.0.0.1"),
        var(b"REMOTE_PORT", b"10449"),
        var(header_name(b"Host"), b"ex.com"),
        var(header_name(b"Content-Length"), b"2"),
    )
    assert built + b"ok" == CAPTURED


def test_captured_packet_is_decoded() -> None:
    decoded = parse_packet(CAPTURED)
    assert decoded is not None
    assert (decoded.modifier1, decoded.modifier2) == (5, 0)
    assert CAPTURED[decoded.end :] == b"ok"
    assert decoded.variables[:4] == [
        (b"REQUEST_METHOD", b"POST"),
        (b"PATH_INFO", b"/hi x"),
        (b"REQUEST_URI", b"/hi%20x?y=1"),
        (b"QUERY_STRING", b"y=1"),
    ]
    assert decoded.variables[-1] == (b"CONTENT_LENGTH", b"2")


# --- variables and packets ---------------------------------------------------------------------


def test_var_layout() -> None:
    assert var(b"KEY", b"value") == b"\x03\x00KEY\x05\x00value"
    assert var(b"K", b"v" * 0x0102) == b"\x01\x00K\x02\x01" + b"v" * 0x0102


def test_var_without_a_name_is_refused() -> None:
    with pytest.raises(PacketError, match="needs a name"):
        var(b"", b"value")


@pytest.mark.parametrize(("key", "value"), [(b"k" * 65536, b""), (b"k", b"v" * 65536)])
def test_var_too_long_is_refused(key: bytes, value: bytes) -> None:
    with pytest.raises(PacketError, match="65535"):
        var(key, value)


@pytest.mark.parametrize(
    ("name", "variable"),
    [
        (b"Host", b"HTTP_HOST"),
        (b"x-forwarded-for", b"HTTP_X_FORWARDED_FOR"),
        (b"CONTENT-type", b"CONTENT_TYPE"),
        (b"content-length", b"CONTENT_LENGTH"),
        (b"Content-Encoding", b"HTTP_CONTENT_ENCODING"),
        (b"X_Y", b"HTTP_X_Y"),
        (b"!#$%&'*+.^`|~09", b"HTTP_!#$%&'*+.^`|~09"),
        # No field name reaches the variables that steer uWSGI itself.
        (b"UWSGI-FILE", b"HTTP_UWSGI_FILE"),
    ],
)
def test_header_name(name: bytes, variable: bytes) -> None:
    assert header_name(name) == variable


def test_largest_packet_and_one_byte_more() -> None:
    full = b"x" * MAX_DATASIZE
    assert packet(0, 0, full) == b"\x00\xff\xff\x00" + full
    with pytest.raises(PacketError, match="65536 bytes"):
        packet(0, 0, full, b"x")


@pytest.mark.parametrize(("modifier1", "modifier2"), [(256, 0), (-1, 0), (0, 256), (0, -1)])
def test_modifier_out_of_range_is_refused(modifier1: int, modifier2: int) -> None:
    with pytest.raises(PacketError, match="modifiers"):
        packet(modifier1, modifier2)


def test_empty_packet() -> None:
    assert packet(1, 2) == b"\x01\x00\x00\x02"
    assert parse_packet(b"\x01\x00\x00\x02rest") == Packet(1, 2, [], 4)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (b"\x00\x00\x01\x00v", "no name"),
        (b"\x01", "inside a length"),
        (b"\x02\x00k", "inside a string"),
        (b"\x01\x00k", "inside a length"),
        (b"\x01\x00k\x01", "inside a length"),
        (b"\x01\x00k\x02\x00v", "inside a string"),
        (b"\x01\x00k\x01\x00vX", "inside a length"),
    ],
)
def test_malformed_variables_are_refused(block: bytes, message: str) -> None:
    with pytest.raises(PacketError, match=message):
        parse_packet(b"\x00" + len(block).to_bytes(2, "little") + b"\x00" + block + b"body")


pairs = st.lists(st.tuples(st.binary(min_size=1, max_size=40), st.binary(max_size=300)), max_size=9)
modifiers = st.integers(0, 255)


@given(modifiers, modifiers, pairs, st.binary(max_size=20))
def test_what_is_built_is_decoded_from_any_prefix(
    modifier1: int, modifier2: int, variables: list[tuple[bytes, bytes]], body: bytes
) -> None:
    built = packet(modifier1, modifier2, *(var(key, value) for key, value in variables))
    for cut in range(len(built)):
        assert parse_packet(built[:cut]) is None
    assert parse_packet(built + body) == Packet(modifier1, modifier2, variables, len(built))


@given(st.binary(max_size=200))
@example(b"\x00\x03\x00\x00\x01\x00k")
def test_any_bytes_are_decoded_exactly_or_refused(data: bytes) -> None:
    try:
        decoded = parse_packet(data)
    except PacketError:
        return
    if decoded is not None:
        variables = (var(key, value) for key, value in decoded.variables)
        again = packet(decoded.modifier1, decoded.modifier2, *variables)
        assert again == data[: decoded.end]


# --- PATH_INFO ---------------------------------------------------------------------------------

# Answers of uWSGI 2.0.31 for targets without escaped dots and slashes.
AS_UWSGI = [
    (b"/", b"/"),
    (b"/a%20b/../c/./d//e?x", b"/c/d//e"),
    (b"/a/b/..", b"/a/"),
    (b"/a/b/.", b"/a/b/"),
    (b"/a%23x", b"/a#x"),
    (b"/a#frag", b"/a"),
    (b"/#", b"/"),
    (b"/a?b#c", b"/a"),
    (b"/a#b?c", b"/a"),
    (b"/a/..?x", b"/"),
    (b"/..", b""),
    (b"/../", b"/"),
    (b"/.", b"/"),
    (b"/./", b"/"),
    (b"/./..", b""),
    (b"/../.", b"/"),
    (b"/a/..", b"/"),
    (b"/a/../..", b""),
    (b"/a/../../", b"/"),
    (b"/a/../../../z", b"/z"),
    (b"/a//../b", b"/a/b"),
    (b"/a//../..", b"/"),
    (b"//..", b"/"),
    (b"/..//", b"//"),
    (b"/a/.//../b", b"/a/b"),
    (b"/a+b", b"/a+b"),
    (b"/...", b"/..."),
    (b"/.a", b"/.a"),
    (b"/..a", b"/..a"),
    (b"/a/b..", b"/a/b.."),
    (b"/a/..b", b"/a/..b"),
    (b"a/../b", b"/b"),
    (b"../b", b"/b"),
    (b"./a", b"/a"),
    (b"a/..", b""),
    (b"a/.", b"a/"),
    (b"..", b""),
    (b".", b"/"),
    (b".a", b".a"),
    (b"?x", b""),
    (b"a/b/../c", b"a/c"),
    (b"http://h/x/y?z", b"http://h/x/y"),
    (b"http://h/../../../x", b"/x"),
    (b"*", b"*"),
    (b"host:443", b"host:443"),
    (b"/%7Euser/%e2%82%ac", b"/~user/\xe2\x82\xac"),
]


@pytest.mark.parametrize(("target", "path"), AS_UWSGI)
def test_path_info_as_uwsgi(target: bytes, path: bytes) -> None:
    assert path_info(target) == path


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"/%2e%2e/x", b"/x"),
        (b"/a/%2E%2e/%2e./.%2E/etc/passwd", b"/etc/passwd"),
        (b"/a/%2e/b", b"/a/b"),
        (b"/a%2F..%2fb", b"/b"),
        (b"/a%2f%2e%2e%2f%2e%2e%2fb", b"/b"),
        (b"/%2e%2e", b""),
        (b"/%2Fetc", b"//etc"),
        (b"%2e%2e/x", b"/x"),
        # Undone once only, and what was escaped neither ends the path nor begins a query.
        (b"/%252e%252e/x", b"/%2e%2e/x"),
        (b"/a%3Fb%23c?d", b"/a?b#c"),
        (b"/a?%zz", b"/a"),
    ],
)
def test_encoded_dots_and_slashes_do_not_escape(target: bytes, path: bytes) -> None:
    assert path_info(target) == path


@pytest.mark.parametrize(
    "target",
    [b"/a%", b"/a%4", b"/a%%20", b"/%zz", b"/%+1", b"/%1_", b"/%-1", b"/% 1", b"/%u0041", b"/%0x"],
)
def test_invalid_escape_is_refused(target: bytes) -> None:
    with pytest.raises(PacketError, match="invalid percent escape"):
        path_info(target)


def test_escaped_nul_is_refused() -> None:
    with pytest.raises(PacketError, match="NUL"):
        path_info(b"/a.php%00.jpg")


spellings = st.sampled_from(
    [b"/", b"%2f", b"%2F", b".", b"%2e", b"%2E", b"a", b"%61", b"..", b"%25", b"?", b"#", b"\\"]
)


@given(st.lists(spellings, max_size=25).map(b"".join))
def test_no_spelling_leaves_the_root(tail: bytes) -> None:
    path = path_info(b"/" + tail)
    assert path == b"" or path.startswith(b"/")
    assert not {b".", b".."} & set(path.split(b"/"))
    raw = b"/" + tail.partition(b"?")[0].partition(b"#")[0]
    assert path == path_info(quote_from_bytes(unquote_to_bytes(raw), safe="").encode())


@given(st.binary(max_size=60))
def test_any_target_gives_a_path_or_a_packet_error(target: bytes) -> None:
    try:
        path_info(target)
    except PacketError:
        assert b"%" in target


# --- request line ------------------------------------------------------------------------------


def _keys_and_values(block: bytes) -> list[tuple[bytes, bytes]]:
    decoded = parse_packet(packet(0, 0, block))
    assert decoded is not None
    return decoded.variables


def test_order_with_a_query() -> None:
    assert _keys_and_values(request_line_vars(b"GET", b"/a/%2e?x=%zz?#y", b"HTTP/1.1")) == [
        (b"REQUEST_METHOD", b"GET"),
        (b"PATH_INFO", b"/a/"),
        (b"REQUEST_URI", b"/a/%2e?x=%zz?#y"),
        (b"QUERY_STRING", b"x=%zz?#y"),
        (b"SERVER_PROTOCOL", b"HTTP/1.1"),
    ]


def test_order_without_a_query() -> None:
    assert _keys_and_values(request_line_vars(b"BREW", b"/pot", b"HTCPCP/1.0")) == [
        (b"REQUEST_METHOD", b"BREW"),
        (b"REQUEST_URI", b"/pot"),
        (b"PATH_INFO", b"/pot"),
        (b"QUERY_STRING", b""),
        (b"SERVER_PROTOCOL", b"HTCPCP/1.0"),
    ]


@pytest.mark.parametrize(
    ("method", "target", "protocol"),
    [
        (b"GET", b"/" * 65536, b"HTTP/1.1"),
        (b"G" * 65536, b"/", b"HTTP/1.1"),
        (b"GET", b"/", b"H" * 65536),
    ],
)
def test_parts_too_long_are_refused(method: bytes, target: bytes, protocol: bytes) -> None:
    with pytest.raises(PacketError, match="65535"):
        request_line_vars(method, target, protocol)
