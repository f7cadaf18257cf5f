"""The small print of HTTP/2: tables, windows, priorities, HEAD, and what clients may cost."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import time
from pathlib import Path

import pytest
from h2.errors import ErrorCodes
from h2.settings import SettingCodes
from hyperframe import frame as frames
from support.http2_client import Http2Client
from support.http2_raw import (
    DATA,
    HEADER_TABLE_SIZE,
    PING,
    WINDOW,
    Fields,
    RawHttp2,
    at,
    fields,
    raw,
    rst_stream,
    settings,
    window_update,
)
from support.nodes import RawHttpNode, response, silent
from support.served import memory, processor, worker_of
from support.uwgate import running
from support.waiting import DEADLINE, dead_address, wait_until

PRIORITY_UPDATE = 16
BAD_HOST = [(":method", "HEAD"), (":scheme", "http"), (":path", "/bad"), (":authority", "a b")]


def blocks(client: RawHttp2) -> list[bytes]:
    """Header blocks that have come."""
    return [frame.data for frame in client.seen if isinstance(frame, frames.HeadersFrame)]


# --- the table of headers ---------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 100, 4095])
def test_a_smaller_table_is_acknowledged(size: int) -> None:
    """By the first header block, whatever that is (RFC 9113 §4.3.1)."""
    with RawHttpNode() as node, running("--http-to", node.spec) as gateway:
        with at(gateway, {HEADER_TABLE_SIZE: size}) as client:
            for stream in (1, 3, 5):
                client.send(client.headers(stream))
                client.assert_answered(stream)
            assert [block[:1] == b"\x20" for block in blocks(client)] == [True, False, False]
            client.send(settings((HEADER_TABLE_SIZE, 0), (HEADER_TABLE_SIZE, 4096)))
            node.play(b"HTTP/1.1 103 Early Hints\r\n\r\n" + response(bytes(100_000)))
            client.send(window_update(0, 10**6), window_update(0, 10**6))
            client.send(client.headers(7))
            client.wait(lambda frame: len(blocks(client)) == 5, "103 and 200")
            assert [block[:1] == b"\x20" for block in blocks(client)[3:]] == [True, False]
        with at(gateway, {HEADER_TABLE_SIZE: 4096}) as client:
            client.send(client.headers(1))
            client.assert_answered(1)
            assert blocks(client)[0][:1] != b"\x20"


@pytest.mark.parametrize("body", [b"ok", b"", b"x" * 100_000])
def test_a_client_without_a_table(body: bytes) -> None:
    """python-hyper's takes a block without the update for an error."""
    with RawHttpNode() as node, running("--http-to", node.spec) as gateway:
        node.otherwise = response(body)
        with Http2Client(gateway.address) as client:
            client.h2.update_settings({SettingCodes.HEADER_TABLE_SIZE: 0})
            client.flush()
            for _ in range(3):
                assert client.ask().body == body


@pytest.mark.skipif(not shutil.which("nghttp"), reason="no nghttp")
def test_nghttp_without_a_table() -> None:
    with RawHttpNode() as node, running("--http-to", node.spec) as gateway:
        url = f"http://{gateway.authority}/"
        command = ["nghttp", "-v", "--header-table-size=0", "--timeout=5", url, url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
        assert ":status: 200" in done.stdout, done.stdout + done.stderr
        assert "COMPRESSION_ERROR" not in done.stdout, done.stdout
        assert done.returncode == 0


# --- windows and priorities -------------------------------------------------------------------


def test_a_small_window_from_the_first_request_on() -> None:
    """Who has not read our SETTINGS yet sends as much as the default allows."""
    with RawHttpNode() as node, running("--http-to", node.spec, "--http2-window=1024") as gateway:
        with Http2Client(gateway.address) as client:
            for size in (60_000, 1025, 60_000):
                assert client.ask(client.fields(b"POST"), bytes(size)).status == 200
        assert [len(seen.body) for seen in node.seen] == [60_000, 1025, 60_000]


@pytest.mark.skipif(not shutil.which("curl"), reason="no curl")
def test_curl_with_a_small_window(tmp_path: Path) -> None:
    file = tmp_path / "body"
    file.write_bytes(b"z" * 60_000)
    with RawHttpNode() as node, running("--http-to", node.spec, "--http2-window=1024") as gateway:
        url = f"http://{gateway.authority}/"
        words = ["-sS", "--http2-prior-knowledge", "--data-binary", f"@{file}"]
        done = subprocess.run(["curl", *words, url], capture_output=True, timeout=20)
        assert (done.returncode, done.stdout) == (0, b"POST / 60000"), done.stderr


@pytest.mark.parametrize("urgent", ["u=0", "u=0, i"])
@pytest.mark.parametrize("other", ["u=7", "u=7, i"])
def test_what_is_urgent_gets_all_of_a_small_window(urgent: str, other: str) -> None:
    with RawHttpNode() as node, running("--http-to", node.spec) as gateway:
        node.otherwise = response(bytes(600_000))
        with at(gateway, {WINDOW: 2**30}) as client:
            client.send(client.headers(1))
            client.assert_window_kept(1, 65535)
            for stream, said in ((3, other), (5, urgent)):
                client.send(client.headers(stream, fields("GET", "/", ("priority", said))))
                client.wait(lambda frame: isinstance(frame, frames.HeadersFrame), "its head")
            client.send(rst_stream(1))
            client.assert_alive()
            for granted in range(32_768, 6 * 32_768 + 1, 32_768):  # more than a frame
                client.send(window_update(0, 32_768))
                while client.answer(3).size + client.answer(5).size < granted:
                    client.wait(lambda frame: True, "more")
                client.assert_alive()  # and the node's next bytes are there
            assert (client.answer(3).size, client.answer(5).size) == (0, 6 * 32_768)


# --- HEAD -------------------------------------------------------------------------------------


def many(count: int) -> Fields:
    """A HEAD with too many fields (300), or with a list that is too long, as well (1000)."""
    return fields("HEAD", "/many", *((f"x{number}", "y") for number in range(count)))


def test_head_that_is_refused_has_no_body() -> None:
    wanted = {1: BAD_HOST, 3: many(300), 5: many(1000)}
    with RawHttpNode() as node, running("--http-to", node.spec) as gateway, at(gateway) as client:
        for stream, each in wanted.items():
            client.send(client.headers(stream, each))
            client.finished(stream)
        client.assert_alive()
        assert [client.answer(stream).status for stream in wanted] == [400, 431, 431]
        for stream in wanted:
            assert int(dict(client.answer(stream).fields)[b"content-length"]) > 0
        assert not [each for each in client.seen if each.type == DATA]
        assert not node.accepted


def test_the_log_of_requests_without_a_node(tmp_path: Path) -> None:
    """What has a body and what has none: who asked for what, and what was said."""
    log = tmp_path / "log"
    options = ("--http-log-file", str(log), "--http-log-format", "json")
    with running("--http-to", dead_address(), *options) as gateway:
        with at(gateway) as client:
            for stream, method in ((1, "HEAD"), (3, "GET"), (5, "HEAD")):
                client.send(client.headers(stream, fields(method, f"/{stream}")))
                client.finished(stream)
            assert {each.stream_id for each in client.seen if each.type == DATA} == {3}
            statuses = [client.answer(stream).status for stream in (1, 3, 5)]
            assert set(statuses) <= {502, 503}
        wait_until(lambda: log.exists() and log.read_text().count("\n") == 3, "three lines")
        lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["status"] for line in lines] == statuses
    assert [(line["method"], line["target"]) for line in lines] == [
        ("HEAD", "/1"), ("GET", "/3"), ("HEAD", "/5"),
    ]  # fmt: skip


# --- what clients may cost --------------------------------------------------------------------


def test_priorities_of_streams_that_never_come() -> None:
    """Nothing of what they say is kept but the priority."""
    with RawHttpNode() as node, running("--http-to", node.spec) as gateway:
        clients = [at(gateway) for _ in range(12)]
        said = b"u=1, x=" + b"a" * 16_000
        frame = [
            raw(PRIORITY_UPDATE, 0, 0, struct.pack(">L", stream) + said)
            for stream in range(101, 301, 2)
        ]
        clients[0].send(*frame)
        clients[0].assert_alive()
        before = memory(worker_of(gateway))
        for client in clients[1:]:
            client.send(*frame)
            client.assert_alive()
        assert memory(worker_of(gateway)) - before < 6_000_000
        for client in clients:
            client.sock.close()


def test_requests_behind_the_last_goaway_are_not_for_nothing() -> None:
    """They cost what useless frames do, and no GOAWAY names them."""
    with RawHttpNode() as node, running("--http-to", node.spec) as gateway, at(gateway) as client:
        node.play(silent)
        client.send(client.headers(1))
        node.wait_seen()
        gateway.terminate()
        client.wait(lambda frame: isinstance(frame, frames.GoAwayFrame), "GOAWAY")
        client.block()  # from the second on it is the same bytes
        block = client.block()
        for start in range(3, 20_000, 1000):
            client.send(*(raw(1, 5, stream, block) for stream in range(start, start + 1000, 2)))
        limit = time.monotonic() + DEADLINE
        while client.receive(limit) is not None:
            pass
        told = [frame for frame in client.seen if isinstance(frame, frames.GoAwayFrame)]
        assert [frame.error_code for frame in told] == [0, ErrorCodes.ENHANCE_YOUR_CALM]
        assert [frame.last_stream_id for frame in told] == [1, 1]
        assert node.accepted == 1


def test_windows_that_change_again_and_again() -> None:
    """It costs little, however many streams there are: the last one of a frame counts."""
    with RawHttpNode() as node, running("--http-to", node.spec) as gateway, at(gateway) as client:
        for stream in range(1, 200, 2):
            client.send(client.opened(stream))
        client.assert_alive()
        entries = [(WINDOW, 65_535 + number % 2) for number in range(32)]
        before = processor(worker_of(gateway))
        client.send(*[settings(*entries)] * 1000, raw(PING, 0, 0, b"12345678"))
        client.assert_pong(b"12345678")
        assert processor(worker_of(gateway)) - before < 0.6
        for stream in range(1, 200, 2):
            client.send(raw(0, 1, stream, b"x"))
            client.finished(stream)


def test_more_settings_than_there_are() -> None:
    """nghttp2 takes 32 entries, too."""
    with RawHttpNode() as node, running("--http-to", node.spec) as gateway, at(gateway) as client:
        client.send(settings(*[(WINDOW, 65_535)] * 33))
        client.assert_connection_error(ErrorCodes.ENHANCE_YOUR_CALM)
