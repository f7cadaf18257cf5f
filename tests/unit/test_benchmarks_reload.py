"""The reload benchmark: strict clients, against servers that do everything wrong; judgement."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from benchmarks import reload_judge as judge
from benchmarks import reload_peers as peers
from benchmarks.reload import arguments
from benchmarks.reload_client import Failure, Response, Score, Wire, check, connect, repeated
from benchmarks.reload_load import Load, Traffic, decode, encode
from benchmarks.reload_node import Node
from benchmarks.reload_watch import Sample, descriptors, pss, sample

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b"


async def against(talk: Talk, load: Load) -> Score:
    """What becomes of a load whose server behaves like that with each connection."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await talk(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        values = json.loads(encode(load)) | {"plain": port}
        traffic = Traffic(decode(json.dumps(values)))
        await traffic.run()
    return traffic.score


def load(**numbers: float) -> Load:
    """One with nothing but what is named."""
    nothing = {"kept": 0, "fresh": 0, "sockets": 0, "uploads": 0}
    fields = {"plain": 0, "tls": 0, "host": "h", "seconds": 0.2, "think": 0.01, "fresh_think": 0.01}
    return Load(**{**fields, **nothing, **numbers})  # type: ignore[arg-type]


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """Answer one request rightly."""
    head = await reader.readuntil(b"\r\n\r\n")
    _, _, size, word = head.split(b" ", 2)[1].decode().split("/")
    writer.write(OK % (int(size), repeated(word, int(size))))
    return True


def words(score: Score) -> set[tuple[str, str]]:
    return {(kind.split()[0], word) for _, kind, word, _ in score.failures}


def reset(writer: asyncio.StreamWriter) -> None:
    """End it with RST."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


# --- what a strict client notices -----------------------------------------------------------------


def test_right_answers_are_counted_and_nothing_else() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await answer(reader, writer):
            pass

    score = asyncio.run(against(talk, load(kept=1, fresh=1)))
    assert not score.failures
    assert score.done["kept plain proxied"] > 5
    assert score.done["new plain proxied"] > 1
    assert sum(map(len, score.latencies.values())) == sum(score.done.values())


@pytest.mark.parametrize(
    ("said", "word"),
    [
        (b"", "eof"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 200\r\n\r\nhalf", "eof"),
        (b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n", "status"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nother", "body"),
        (b"HTTP/1.1 200 OK\r\n\r\nuntil the end", "nonsense"),
        (b"garbage\r\n\r\n", "nonsense"),
    ],
)
def test_a_wrong_answer_is_a_failure(said: bytes, word: str) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(said)

    score = asyncio.run(against(talk, load(kept=1, fresh=1)))
    assert words(score) == {("kept", word), ("new", word)}
    assert not score.done


def test_bytes_behind_the_answer_are_a_failure() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        _, _, size, word = head.split(b" ", 2)[1].decode().split("/")
        writer.write(OK % (int(size), repeated(word, int(size))) + b"more")

    assert words(asyncio.run(against(talk, load(fresh=1)))) == {("new", "nonsense")}


def test_a_reset_is_told_from_an_end() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        reset(writer)

    assert words(asyncio.run(against(talk, load(fresh=1)))) == {("new", "reset")}


def test_nobody_there_is_a_failure() -> None:
    async def run() -> Score:
        with socket.socket() as held:
            held.bind(("127.0.0.1", 0))  # and does not listen
            traffic = Traffic(load(fresh=1, plain=held.getsockname()[1]))
            await traffic.run()
        return traffic.score

    assert words(asyncio.run(run())) == {("new", "connect")}


def test_who_says_that_it_closes_may_close() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        _, _, size, word = head.split(b" ", 2)[1].decode().split("/")
        body = repeated(word, int(size))
        close = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b"
        writer.write(close % (len(body), body))

    score = asyncio.run(against(talk, load(kept=1)))
    assert not score.failures
    assert score.polite == score.done["kept plain proxied"] > 1


def test_closed_while_idle_is_seen_before_the_next_request() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await answer(reader, writer)

    score = asyncio.run(against(talk, load(kept=1, think=0.05)))
    assert not score.failures
    assert score.idle >= 1


def test_a_reset_while_idle_is_a_failure_all_the_same() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await answer(reader, writer)
        await writer.drain()
        await asyncio.sleep(0.005)  # or the answer would go with it
        reset(writer)

    score = asyncio.run(against(talk, load(kept=1, think=0.1, seconds=0.6)))
    assert ("kept", "reset") in words(score)


def test_an_idle_connection_that_closes_under_a_request_is_raced() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await answer(reader, writer)
        await reader.readuntil(b"\r\n\r\n")

    assert words(asyncio.run(against(talk, load(kept=1)))) == {("kept", "raced")}


# --- the node -------------------------------------------------------------------------------------


async def with_node(use: Callable[[int], Awaitable[Score]]) -> Score:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Node("one"), "127.0.0.1", 0)
    async with server:
        return await use(server.sockets[0].getsockname()[1])


def test_load_and_node_understand_each_other(tmp_path: Path) -> None:
    async def use(port: int) -> Score:
        # Uploads that take several writes, and a rest.
        sizes = (300_001, 300_001)
        traffic = Traffic(
            load(plain=port, kept=1, fresh=1, sockets=1, uploads=1, upload_sizes=sizes,  # type: ignore[arg-type]
                 upload_rate=5e6)
        )  # fmt: skip
        await traffic.run()
        return traffic.score

    score = asyncio.run(with_node(use))
    assert not score.failures
    assert not score.sockets
    for kind in ("kept plain proxied", "new plain proxied", "websocket plain", "upload plain"):
        assert score.done[kind] >= 1, kind


def test_the_node_hashes_what_has_come() -> None:
    async def use(port: int) -> Score:
        wire = await connect(port, None, "h")
        body = os.urandom(100_000)
        wire.write(b"PUT /upload HTTP/1.1\r\nContent-Length: 100000\r\n\r\n" + body)
        expected = f"{hashlib.sha256(body).hexdigest()} 100000".encode()
        check(await wire.response(), expected, wire)
        with pytest.raises(Failure):
            check(await _again(wire, body[:-1] + bytes((body[-1] ^ 1,))), expected, wire)
        wire.close()
        return Score()

    asyncio.run(with_node(use))


async def _again(wire: Wire, body: bytes) -> Response:
    wire.write(b"PUT /upload HTTP/1.1\r\nContent-Length: 100000\r\n\r\n" + body)
    return await wire.response()


@pytest.mark.parametrize("torn", [False, True])
def test_a_websocket_that_ends_is_told(torn: bool) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
        await reader.readexactly(8)
        if torn:
            reset(writer)

    score = asyncio.run(against(talk, load(sockets=1)))
    # The rest of the frame is unread: the kernel tears what is closed then.
    assert {how for _, _, how in score.sockets} <= {"within", "reset"}
    assert score.sockets
    assert not torn or {how for _, _, how in score.sockets} == {"reset"}


# --- judgement ------------------------------------------------------------------------------------


def test_websockets_may_end_after_the_mercy_only() -> None:
    sockets = [
        (0.0, 11.0, "between"),  # saw the reload at 1
        (0.0, 11.0, "within"),
        (0.0, 10.5, "between"),  # half a second too early
        (2.0, 11.0, "between"),  # opened after it
        (0.0, 11.0, "reset"),
        (2.0, 11.0, "reset"),
    ]
    assert judge.partings(sockets, [1.0], 10.0) == {
        "merciful": 1, "interrupted": 1, "torn": 1, "early": 2, "reset": 1,
    }  # fmt: skip
    assert judge.partings([(2.0, 13.1, "between")], [1.0, 3.0], 10.0) == {"merciful": 1}
    # An order takes its time: until then the old workers accept.
    assert judge.partings([(2.0, 12.0, "between")], [1.0], 10.0) == {"merciful": 1}
    assert judge.partings([(7.0, 17.0, "between")], [1.0], 10.0) == {"early": 1}


def test_time_since_a_reload() -> None:
    assert judge.since(0.5, [1.0, 2.0]) == -1.0
    assert judge.since(1.25, [1.0, 2.0]) == 0.25
    assert judge.since(9.0, [1.0, 2.0]) == 7.0


def test_time_until_a_configuration_serves() -> None:
    reloads = [10.0, 20.0]
    seen = [(9.0, 9.1, 1), (10.1, 10.2, 1), (10.2, 10.5, 2), (10.5, 10.75, 1), (15.0, 15.5, 2)]
    first, last = judge.served_after(reloads, seen)
    assert (first, last) == ([0.5], [0.75])  # the second one never came


def test_delays_are_excused_by_lags() -> None:
    slow = [(1.0, 1.2, "kept a"), (2.0, 2.3, "kept b"), (3.0, 3.15, "kept a"), (4.0, 4.2, "new a")]
    latencies = {"kept a": [0.01, 0.2, 0.15], "kept b": [0.3], "new a": [0.05, 0.2]}
    found = judge.delays(latencies, slow, [(2.25, 2.4)], [(4.1, 4.2)])
    kept, new = found["kept"], found["new"]
    assert (kept.count, kept.over, kept.excused, kept.by_node) == (4, 2, 1, 0)
    assert kept.most == pytest.approx(0.2)
    assert (new.over, new.by_node) == (0, 1)
    assert new.most == pytest.approx(0.05)


def test_short_lags_are_no_excuse() -> None:
    assert judge.spans([1.0, 1.04, 2.0, 2.06]) == [(2.0, 2.06)]


def test_growth_is_named() -> None:
    before = Sample(0.0, 3, 20_000_000, 50_000_000, 17, 80)
    assert judge.growth(before, Sample(9.0, 3, 21_000_000, 51_000_000, 17, 80)) == []
    after = Sample(9.0, 4, 30_000_000, 80_000_000, 18, 99)
    assert [line.partition(":")[0] for line in judge.growth(before, after)] == [
        "4 processes, 3 before",
        "18 descriptors of the master, 17 before",
        "99 descriptors, 80 before",
        "PSS of the master",
    ]


def test_failures_are_summed_up() -> None:
    failures = [(1.5, "kept", "eof", "first"), (2.25, "kept", "eof", ""), (3.0, "new", "body", "")]
    lines = judge.summary(failures, [1.0, 2.0])
    assert len(lines) == 2
    assert lines[0].startswith("2 × kept: eof, 0.25 to 0.50 s after a reload")
    assert lines[0].endswith("first")


def test_levels() -> None:
    samples = [Sample(n, 3, n * 10, n * 30, n, 2 * n) for n in range(10)]
    found = judge.levels(samples)
    assert found["master_pss"] == (25.0, 85.0, 90.0)
    assert found["worker_pss"] == (25.0, 85.0, 90.0)
    assert judge.levels([]) == {}


# --- looking on -----------------------------------------------------------------------------------


def test_this_process_is_looked_into() -> None:
    pid = os.getpid()
    with open(os.devnull) as _file:
        found = sample(pid, [pid, 2**22 + 1])
        assert found.master_fds == found.all_fds == descriptors(pid)
    assert descriptors(pid) == found.master_fds - 1
    assert pss(pid) > 1_000_000
    assert found.processes == 2


def test_a_session_is_found() -> None:
    assert os.getpid() in peers.session(os.getsid(0))


def test_arguments() -> None:
    options = arguments(["--how", "all", "--peers", "nginx,haproxy", "--upload-mb", "3-4"])
    assert options.names == ["hup", "chain", "fork", "version", "nginx", "haproxy"]
    assert options.upload_mb == (3.0, 4.0)
    for wrong in (["--how", "softly"], ["--every", "0"], ["--upload-mb", "5-4"]):
        with pytest.raises(SystemExit):
            arguments(wrong)


def test_the_other_version_is_another_one(tmp_path: Path) -> None:
    peers.copy(tmp_path / "one")
    assert (tmp_path / "one" / "uwgate" / "master" / "reload.py").is_file()
    with pytest.raises(peers.StartError):
        peers.unpack(tmp_path / "two", "no-such-revision")
