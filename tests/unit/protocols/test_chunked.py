"""Chunked messages: any split, nothing ambiguous, and h11 reads what we forward as we do."""

from __future__ import annotations

from dataclasses import dataclass

import h11
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from uwgate.protocols.chunked import (
    LAST_CHUNK,
    ChunkedError,
    ChunkedReader,
    encode_chunk,
    filter_trailer,
    last_chunk,
)


@dataclass
class Result:
    """What a reader made of a message, collected over all feeds."""

    payload: bytes
    wire: bytes
    rewritten: bytes
    trailer: bytes
    end: int
    done: bool


def read(*feeds: bytes, max_trailer: int = 16384) -> Result:
    reader = ChunkedReader(max_trailer)
    payload = wire = rewritten = b""
    end = 0
    for data in feeds:
        used = reader.feed(data)
        assert used == len(data) or reader.done
        end += used
        piece = b"".join(reader.payload)
        payload += piece
        wire += b"".join(reader.wire)
        # How a caller who frames anew uses ``verbatim``.
        if reader.verbatim:
            rewritten += data[:used]
        else:
            rewritten += encode_chunk(piece)
            if reader.done and used:
                rewritten += last_chunk(filter_trailer(reader.trailer))
    assert reader.size == len(payload)
    return Result(payload, wire, rewritten, reader.trailer, end, reader.done)


def feed_all(reader: ChunkedReader, feeds: list[bytes]) -> None:
    for data in feeds:
        reader.feed(data)


def bytewise(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


def h11_reads(message: bytes) -> tuple[bytes, list[tuple[bytes, bytes]], bytes]:
    """Content, trailer fields and left-over bytes, according to h11."""
    server = h11.Connection(h11.SERVER)
    server.receive_data(
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n" + message
    )
    assert isinstance(server.next_event(), h11.Request)
    payload = b""
    while isinstance(event := server.next_event(), h11.Data):
        payload += bytes(event.data)
    assert isinstance(event, h11.EndOfMessage)
    return payload, list(event.headers), server.trailing_data[0]


# --- whole messages ----------------------------------------------------------------------------


def test_plain_message_in_one_feed() -> None:
    reader = ChunkedReader()
    data = b"XX5\r\nhello\r\n00A\r\n, worlds..\r\n0\r\n\r\nGET /"
    assert reader.feed(data, 2) == len(data) - 5
    assert reader.payload == [b"hello", b", worlds.."]
    assert reader.wire == [data[2:-5]]
    assert (reader.verbatim, reader.done, reader.trailer, reader.size) == (True, True, b"", 15)


def test_whole_chunks_are_verbatim_and_pass_without_a_copy() -> None:
    reader = ChunkedReader()
    data = b"5\r\nhello\r\n1\r\n!\r\n"
    assert reader.feed(data) == len(data)
    assert (reader.verbatim, reader.done) == (True, False)
    assert len(reader.wire) == 1
    assert reader.wire[0] is data


def test_inside_a_large_chunk_bytes_pass_without_a_copy() -> None:
    reader = ChunkedReader()
    assert reader.feed(b"fffffff\r\nab") == 11
    assert (reader.payload, reader.wire) == ([b"ab"], [b"fffffff\r\nab"])
    data = b"x" * 1000
    assert reader.feed(data) == 1000
    assert reader.payload[0] is data
    assert reader.wire[0] is data
    assert not reader.verbatim
    assert reader.size == 1002


def test_nothing_is_consumed_after_the_end() -> None:
    reader = ChunkedReader()
    assert reader.feed(LAST_CHUNK + b"next") == 5
    assert reader.feed(b"next") == 0
    assert reader.feed(b"next", 3) == 3
    assert (reader.payload, reader.wire, reader.done) == ([], [], True)


def test_empty_feed_changes_nothing() -> None:
    reader = ChunkedReader()
    assert reader.feed(b"") == 0
    assert reader.feed(b"abc", 3) == 3
    assert (reader.payload, reader.wire, reader.verbatim, reader.done) == ([], [], True, False)


def test_lists_are_the_callers() -> None:
    reader = ChunkedReader()
    reader.feed(b"1\r\na\r\n")
    taken = reader.payload
    reader.feed(b"1\r\nb\r\n")
    assert (taken, reader.payload) == ([b"a"], [b"b"])


# --- extensions --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "extension",
    [
        b";a",
        b";a=b",
        b";a;b=c;d",
        b';a="quoted; \\" \t\\\\ \xe9"',
        b';a=""',
        b" ; a = b\t;\tc",
        b";" + b"x" * 252,
    ],
)
def test_extensions_are_read_and_cut_out(extension: bytes) -> None:
    message = b"1" + extension + b"\r\nA\r\n0" + extension + b"\r\n\r\n"
    for feeds in ([message], bytewise(message)):
        result = read(*feeds)
        assert (result.payload, result.done) == (b"A", True)
        assert result.wire == b"1\r\nA\r\n0\r\n\r\n"


def test_an_extension_makes_a_feed_not_verbatim() -> None:
    reader = ChunkedReader()
    reader.feed(b"1\r\nA\r\n1;x\r\nB\r\n1\r\nC\r\n")
    assert (reader.verbatim, reader.payload) == (False, [b"A", b"B", b"C"])
    assert b"".join(reader.wire) == b"1\r\nA\r\n1\r\nB\r\n1\r\nC\r\n"
    reader.feed(b"1\r\nD\r\n")
    assert reader.verbatim


def test_half_a_size_line_is_held_back() -> None:
    reader = ChunkedReader()
    reader.feed(b"1\r\nA\r\n1")
    assert (reader.verbatim, reader.wire) == (False, [b"1\r\nA\r\n"])
    reader.feed(b"0;x")
    assert (reader.verbatim, reader.wire) == (False, [])
    reader.feed(b"\r\n")
    assert reader.wire == [b"10\r\n"]


def test_extensions_must_not_outweigh_the_content() -> None:
    wasteful = b"1;" + b"x" * 250 + b"\r\nA\r\n"
    reader = ChunkedReader()
    with pytest.raises(ChunkedError, match="outweigh"):
        feed_all(reader, [wasteful] * 1000)
    assert reader.size < 100
    signed = b"400;chunk-signature=" + b"0" * 64 + b"\r\n" + b"A" * 1024 + b"\r\n"
    assert len(read(signed * 1000).payload) == 1024 * 1000


# --- refusals ----------------------------------------------------------------------------------

MALFORMED = [
    b"\r\n",
    b"x\r\n",
    b"g\r\n",
    b" 1\r\nA\r\n",
    b"1 \r\nA\r\n",
    b"1\t\r\nA\r\n",
    b"+1\r\nA\r\n",
    b"-1\r\nA\r\n",
    b"0x1\r\nA\r\n",
    b"1_0\r\nA\r\n",
    b"1h\r\nA\r\n",
    b"\xd9\xa1\r\nA\r\n",
    b"1,1\r\nA\r\n",
    b"0000000000000001\r\nA\r\n",
    b"fffffffffffffffff\r\n",
    b"1\nA\r\n",
    b"1\r\r\nA\r\n",
    b"1\rA\r\n",
    b"\n1\r\nA\r\n",
    b"1\r\nA\n",
    b"1\r\nA\r\r\n",
    b"1\r\nAB\r\n",
    b"1\r\nA\rB",
    b"1\r\nA0\r\n",
    b"2\r\nA\r\n0\r\n\r\n",
    b"1;\r\nA\r\n",
    b"1;a=\r\nA\r\n",
    b"1;a=b c\r\nA\r\n",
    b"1;=b\r\nA\r\n",
    b"1;;a\r\nA\r\n",
    b'1;a="\r\nA\r\n',
    b'1;a="\x00"\r\nA\r\n',
    b'1;a="\\\x00"\r\nA\r\n',
    b'1;a="b"c\r\nA\r\n',
    b"1;a\nb\r\nA\r\n",
    b"1;a\rb\r\nA\r\n",
    b"1;a\x00\r\nA\r\n",
    b"1;" + b"x" * 253 + b"\r\n",
    b"1;" + b"x" * 300,
    b"0\r\n\n",
    b"0\r\n\r\r\n",
    b"0\r\n\rX\r\n\r\n",
    b"0\r\nA: b\n\r\n",
    b"0\r\nA: b\r\n\n",
    b"0\r\nA\r\n\r\n",
    b"0\r\n: b\r\n\r\n",
    b"0\r\nA : b\r\n\r\n",
    b"0\r\n A: b\r\n\r\n",
    b"0\r\nA: b\r\n c\r\n\r\n",
    b"0\r\nA: b\rc\r\n\r\n",
    b"0\r\nA: b\x00c\r\n\r\n",
    b"0\r\nA: b\x7fc\r\n\r\n",
    b"0\r\n\xc3\xa9: b\r\n\r\n",
]


@pytest.mark.parametrize("message", MALFORMED)
def test_malformed_message_is_refused_however_it_comes(message: bytes) -> None:
    for feeds in ([message], bytewise(message)):
        reader = ChunkedReader()
        with pytest.raises(ChunkedError):
            feed_all(reader, feeds)
        with pytest.raises(ChunkedError):
            reader.feed(LAST_CHUNK)
        assert not reader.done


# --- trailers ----------------------------------------------------------------------------------


def test_trailer_is_kept_raw_and_forwarded_filtered() -> None:
    trailer = b"Digest:  abc \r\nContent-Length: 5\r\nX-Empty:\r\nx-obs: \xe9\t!\r\n"
    message = b"1\r\nA\r\n0\r\n" + trailer + b"\r\n"
    for feeds in ([message], bytewise(message), [message[:8], message[8:30], message[30:]]):
        result = read(*feeds, b"rest")
        assert (result.payload, result.trailer, result.end) == (b"A", trailer, len(message))
        expected = b"1\r\nA\r\n0\r\nDigest:  abc \r\nX-Empty:\r\nx-obs: \xe9\t!\r\n\r\n"
        assert result.wire == result.rewritten == expected


def test_a_trailer_makes_a_feed_not_verbatim() -> None:
    reader = ChunkedReader()
    assert reader.feed(b"0\r\nA: b\r\n\r\n") == 11
    assert (reader.done, reader.verbatim) == (True, False)


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_trailer_is_bounded(step: int) -> None:
    fields = b"A: 345\r\nB: 345\r\n"
    message = b"0\r\n" + fields + b"\r\n"
    feeds = [message[i : i + step] for i in range(0, len(message), step)]
    assert read(*feeds, max_trailer=len(fields)).trailer == fields
    with pytest.raises(ChunkedError, match="more than 15 bytes"):
        read(*feeds, max_trailer=len(fields) - 1)


def test_endless_trailer_line_is_cut_short() -> None:
    with pytest.raises(ChunkedError, match="more than 100 bytes"):
        read(b"0\r\nA: " + b"x" * 200, max_trailer=100)


def test_no_trailer_field_fits_no_bytes() -> None:
    assert read(*bytewise(LAST_CHUNK), max_trailer=0).done
    with pytest.raises(ChunkedError):
        read(b"0\r\nA:\r\n\r\n", max_trailer=0)


@pytest.mark.parametrize(
    "name",
    [
        b"Transfer-Encoding", b"content-length", b"Content_Length", b"CONTENT-TYPE",
        b"Content-Encoding", b"Content-Range", b"Content-Digests", b"Host", b"Connection",
        b"Keep-Alive", b"TE", b"Trailer", b"Upgrade", b"HTTP2-Settings", b"Expect", b"Set-Cookie",
        b"set_cookie2", b"Cookie", b"Authorization", b"WWW-Authenticate", b"Proxy",
        b"Proxy-Authorization", b"Proxy-Authenticate", b"Proxy-Connection", b"X-Forwarded-For",
        b"X_Forwarded_Proto", b"Forwarded", b"X-Real-IP", b"Cache-Control", b"Max-Forwards",
        b"Pragma", b"Range", b"If-Match", b"If-None-Match", b"If-Modified-Since",
        b"If-Unmodified-Since", b"If-Range", b"Age", b"Date", b"Expires", b"Location",
        b"Retry-After", b"Vary", b"Warning", b"X-SSL-Client-Verify", b"x_ssl_cipher",
    ],
)  # fmt: skip
def test_fields_that_may_not_be_trailers_are_dropped(name: bytes) -> None:
    assert filter_trailer(b"A: 1\r\n" + name + b": x\r\n" + name + b":\r\nB: 2\r\n") == (
        b"A: 1\r\nB: 2\r\n"
    )
    # The value of another field is not a name.
    assert filter_trailer(b"A: " + name + b": x\r\n") == b"A: " + name + b": x\r\n"


@pytest.mark.parametrize(
    "line",
    [
        b"Content-Digest: sha-256=:x:\r\n",
        b"Server-Timing: a\r\n",
        b"ETag: x\r\n",
        b"Hosts: x\r\n",
        b"Proxied: x\r\n",
        b"X-Host: x\r\n",
        b"grpc-status: 0\r\n",
        b"",
    ],
)
def test_other_fields_pass(line: bytes) -> None:
    assert filter_trailer(line) == line


# --- writing -----------------------------------------------------------------------------------


def test_writing() -> None:
    assert encode_chunk(b"x" * 26) == b"1a\r\n" + b"x" * 26 + b"\r\n"
    assert encode_chunk(b"") == b""
    assert last_chunk(b"") == LAST_CHUNK
    assert last_chunk(b"A: b\r\n") == b"0\r\nA: b\r\n\r\n"


# --- properties --------------------------------------------------------------------------------

tokens = st.text("abcXYZ09-_!#", min_size=1, max_size=6).map(str.encode)
quoted = st.sampled_from([b'""', b'"a;b"', b'"\\""', b'"\\\\"'])
extensions = st.lists(
    st.one_of(tokens, st.tuples(tokens, st.one_of(tokens, quoted)).map(b"=".join)), max_size=3
).map(lambda items: b"".join(b";" + item for item in items))
zeros = st.sampled_from([b"", b"", b"0", b"000"])
contents = st.binary(min_size=1, max_size=50)
chunks = st.tuples(zeros, contents, extensions).map(
    lambda parts: parts[0] + b"%x" % len(parts[1]) + parts[2] + b"\r\n" + parts[1] + b"\r\n"
)
field_lines = st.tuples(
    st.one_of(tokens, st.sampled_from([b"Host", b"Set-Cookie"])),
    st.sampled_from([b":", b": v", b":\tv w ", b": \xe9"]),
).map(lambda parts: b"".join(parts) + b"\r\n")
messages = st.tuples(
    st.lists(chunks, max_size=6).map(b"".join),
    st.tuples(zeros, extensions).map(lambda parts: parts[0] + b"0" + parts[1] + b"\r\n"),
    st.lists(field_lines, max_size=3).map(b"".join),
).map(lambda parts: b"".join(parts) + b"\r\n")


@st.composite
def splits(draw: st.DrawFn, source: st.SearchStrategy[bytes]) -> tuple[bytes, list[bytes]]:
    data = draw(source)
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=8)))
    return data, [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


@given(splits(messages), st.binary(max_size=10))
def test_valid_messages_mean_the_same_to_h11_however_split(
    case: tuple[bytes, list[bytes]], rest: bytes
) -> None:
    message, feeds = case
    whole = read(message + rest)
    payload, fields, left = h11_reads(message + rest)
    assert (whole.payload, whole.end, whole.done) == (payload, len(message), True)
    assert left == rest
    assert len(fields) == whole.trailer.count(b"\r\n")

    for result in (whole, read(*feeds), read(*bytewise(message))):
        assert (result.payload, result.trailer, result.end) == (payload, whole.trailer, whole.end)
        for forwarded in (result.wire, result.rewritten):
            assert h11_reads(forwarded + rest)[0] == payload
            assert h11_reads(forwarded + rest)[2] == rest
            assert forwarded.endswith(b"\r\n" + filter_trailer(whole.trailer) + b"\r\n")
            assert b";" not in forwarded or b";" in payload
    assert read(*feeds).wire == whole.wire


def outcome(feeds: list[bytes]) -> tuple[bytes, bytes, bool] | None:
    try:
        result = read(*feeds)
    except ChunkedError:
        return None
    return result.payload, result.trailer, result.done


alphabet = st.sampled_from([*(bytes((byte,)) for byte in b'012a;x=": \r\n\0'), b"\r\n", b"\r\n"])


@given(splits(st.lists(alphabet, max_size=14).map(b"".join)))
@example((b"0;x\r\n", [b"0;", b"x\r\n"]))
def test_any_bytes_give_the_same_answer_however_split(case: tuple[bytes, list[bytes]]) -> None:
    data, feeds = case
    # Completed, so that a wrong line that has no end yet is seen by everyone.
    ending = [b"\n\n", b"\r\n\r\n" * 2]
    whole = outcome([data, *ending])
    assert outcome([*feeds, *ending]) == whole
    assert outcome(bytewise(data) + ending) == whole


@given(messages, st.data())
def test_what_we_forward_of_a_damaged_message_h11_reads_alike(
    message: bytes, data: st.DataObject
) -> None:
    at = data.draw(st.integers(0, len(message) - 1))
    damaged = message[:at] + data.draw(alphabet) + message[at + data.draw(st.integers(0, 1)) :]
    try:
        result = read(damaged)
    except ChunkedError:
        return
    if result.done:
        for forwarded in (result.wire, result.rewritten):
            assert h11_reads(forwarded)[0] == result.payload
            assert h11_reads(forwarded)[2] == b""
