"""The channel between master and worker."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uwgate.master.control import Channel, ControlError, Message, pair


@contextmanager
def channels(limit: int = 1 << 16) -> Iterator[tuple[Channel, Channel]]:
    left, right = socket.socketpair()
    one, two = Channel(left, limit), Channel(right, limit)
    try:
        yield one, two
    finally:
        one.close()
        two.close()


@contextmanager
def raw() -> Iterator[tuple[Channel, socket.socket]]:
    channel, peer = pair()
    try:
        yield channel, peer
    finally:
        channel.close()
        peer.close()


def test_messages_arrive_in_order_and_whole() -> None:
    messages: list[Message] = [{"type": "stats", "round": n, "text": "é\n\u2028"} for n in range(9)]
    with channels() as (one, two):
        assert all(one.send(message) for message in messages)
        assert two.receive() == messages
        assert two.receive() == []
        assert not two.closed
        one.close()
        assert two.receive() == []
        assert two.closed


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(st.lists(st.dictionaries(st.text(), json_values), max_size=4), st.data())
def test_any_split_gives_the_same_messages(messages: list[Message], data: st.DataObject) -> None:
    with raw() as (writer, tap), raw() as (reader, feed):
        for message in messages:
            assert writer.send(message)
        writer.close()
        stream = b""
        while chunk := tap.recv(1 << 16):
            stream += chunk
        cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=5)))
        got: list[Message] = []
        for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
            feed.sendall(stream[start:end])
            got += reader.receive()
        assert got == messages


@pytest.mark.parametrize(
    "line", [b"x", b"[]", b"1", b'"a"', b"", b"{", b"\xff{}", b'{"a":1}}', b"[" * 50_000]
)
def test_nonsense_is_refused(line: bytes) -> None:
    with raw() as (channel, peer):
        peer.sendall(line + b"\n")
        with pytest.raises(ControlError):
            channel.receive()


def test_endless_line_is_refused() -> None:
    left, right = socket.socketpair()
    channel = Channel(left, 1000)
    right.sendall(b" " * 1001)
    with pytest.raises(ControlError, match="too long"):
        channel.receive()
    channel.close()
    right.close()


def test_what_does_not_fit_waits_and_what_is_too_much_is_dropped() -> None:
    limit = 4 << 20
    with channels(limit) as (one, two):
        big: Message = {"text": "x" * (limit // 2)}
        assert one.send(big)
        assert one.wants_write
        sent = 1
        while one.send(big):
            sent += 1
        assert not one.send(big)
        got: list[Message] = []
        while len(got) < sent:
            one.flush()
            got += two.receive()
        assert got == [big] * sent
        assert not one.wants_write
        assert one.send({"type": "ready"})


def test_last_words_of_a_peer_that_reads_no_more() -> None:
    with raw() as (channel, peer):
        peer.sendall(b'{"type":"stats"}\n{"cut')
        peer.close()
        assert not channel.send({"type": "drain"})
        assert not channel.send({"type": "drain"})
        assert channel.receive() == [{"type": "stats"}]
        assert channel.closed


def test_reset_is_an_end() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    peer = socket.create_connection(listener.getsockname())
    channel = Channel(listener.accept()[0])
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    peer.close()
    listener.close()
    assert channel.receive() == []
    assert channel.closed
    channel.close()
