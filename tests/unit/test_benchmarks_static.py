"""The pure parts of the benchmarks of static files, their clients, what the slow disk says."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import heads, slow_disk, static, static_client, static_files, workloads
from benchmarks.origins import Origin
from benchmarks.peers import PEERS, Setup

ROWS = [row for row in workloads.WORKLOADS if row.node == "files"]
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + b"x" * 100_000


@contextlib.contextmanager
def serving(answer: bytes) -> Iterator[int]:
    """A server that gives the same answer to every block it reads; its port."""

    def talk(sock: socket.socket) -> None:
        with contextlib.suppress(OSError), sock:
            while sock.recv(4096):
                sock.sendall(answer)
                if not answer:
                    return

    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    sock, _ = listening.accept()
                    threads.append(threading.Thread(target=talk, args=(sock,)))
                    threads[-1].start()

        threads = [threading.Thread(target=serve)]
        threads[0].start()
        yield int(listening.getsockname()[1])
        listening.shutdown(socket.SHUT_RDWR)
        threads[0].join()
        for thread in threads[1:]:
            thread.join()


# --- rows and set-ups -----------------------------------------------------------------------------


def test_the_rows_of_files() -> None:
    assert {row.name: row.limits["nginx"] for row in ROWS} == {
        "static-1k": 0.8,
        "static-64k": 0.85,
        "static-10m": 0.85,
        "static-1g": 0.85,
        "static-many": 1.0,
        "tls-static-10m": 0.85,
    }
    assert [row.name for row in ROWS if row.tls] == ["tls-static-10m"]
    assert [row.unit for row in ROWS] == ["request", "GB", "GB", "GB", "request", "GB"]
    assert "files" not in PEERS["haproxy"].nodes


def test_many_files_are_asked_for_in_an_order_without_repetition() -> None:
    assert "string.format('%04d', n * 6181 % 10000)" in heads.lua_script(ROWS[4].heads)
    order = [n * 6181 % heads.MANY for n in range(1, heads.MANY + 1)]
    assert sorted(order) == list(range(heads.MANY))
    assert all(abs(a - b) > 1 for a, b in itertools.pairwise(order))


def test_files_are_written_as_they_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(static_files, "MANY", 3)
    monkeypatch.setattr(os, "sync", lambda: None)
    rows = [replace(row, body=5000) for row in ROWS if row.name != "static-1g"]
    static_files.write(tmp_path, rows)
    found = {str(path.relative_to(tmp_path)): path.stat() for path in tmp_path.rglob("*")}
    assert set(found) == {
        "index.html", "static-1k", "static-64k", "static-10m", "static-many",
        "static-many/0000", "static-many/0001", "static-many/0002",
    }  # fmt: skip
    assert {found[name].st_size for name in found if name.startswith("static-many/")} == {5000}
    assert found["static-10m"].st_blocks * 512 >= 5000
    assert static_files.needed(rows) == 3 * 5000 + 3 * 5000


def test_no_room_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError, match="TMPDIR"), static_files.on_disk(1 << 60):
        pass
    monkeypatch.setattr(static_files, "file_system", lambda path: "tmpfs")
    with pytest.raises(OSError, match="TMPDIR"), static_files.on_disk(1):
        pass
    monkeypatch.setattr(static_files, "file_system", lambda path: "ext4")
    monkeypatch.setattr(static_files, "ROOM", 0)
    with static_files.on_disk(1) as directory:
        assert directory.is_dir()
    assert not directory.exists()


def test_the_type_of_a_file_system() -> None:
    assert static_files.file_system(Path("/proc")) == "proc"


def test_contenders_serve_the_same_directory(tmp_path: Path) -> None:
    setup = Setup(tmp_path, 8080, "files", Origin(files="/srv/files"), False)
    words = PEERS["uwgate"].arguments(setup)
    assert words[-4:] == ["--check-static", "/srv/files", "--static-index", "index.html"]
    assert "--http-to" not in words
    PEERS["nginx"].arguments(setup)
    nginx = (tmp_path / "nginx.conf").read_text()
    for line in ("root /srv/files;", "open_file_cache max=20000 inactive=60s;", "sendfile on;"):
        assert line in nginx
    assert "upstream" not in nginx
    assert "output_buffers" not in nginx
    PEERS["nginx-bulk"].arguments(setup)
    assert "output_buffers" in (tmp_path / "nginx.conf").read_text()


# --- clients --------------------------------------------------------------------------------------


def test_small_requests_are_counted_and_timed() -> None:
    with serving(ANSWER) as port:
        found = static_client.small(port, 0.1, "/a", 200.0)
    assert (found.requests, found.failed) == (20, 0)
    assert 0 < found.p50 <= found.p99 <= found.worst


@pytest.mark.parametrize(
    "answer", [b"", ANSWER.replace(b"200 OK", b"404 No"), b"HTTP/1.1 200\r\n\r\n"]
)
def test_wrong_answers_are_failures(answer: bytes) -> None:
    with serving(answer) as port:
        assert static_client.small(port, 0.02, "/a", 200.0).failed == 4


def test_downloads_are_counted_to_the_byte_and_paced() -> None:
    names = iter(f"/{number}" for number in range(10_000))
    with serving(ANSWER) as port:
        files, size = static_client.download(port, 0.2, 2, 0, names)
        assert files >= 2
        assert files * 100_000 <= size <= (files + 2) * 100_000
        _, paced = static_client.download(port, 0.2, 2, 1_000_000, names)
    assert 0 < paced <= 200_000 + 2 * 100_000


def test_a_download_that_is_cut_or_refused_is_an_error() -> None:
    for answer in (b"", b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"):
        with serving(answer) as port, pytest.raises(static_client.StaticClientError):
            static_client.download(port, 5.0, 1, 0, iter(["/a"]))


def test_memory_of_this_process() -> None:
    rss, anonymous = static.memory([os.getpid()])
    assert rss > anonymous > 1 << 20
    assert static.memory([]) == (0, 0)


# --- the slow disk --------------------------------------------------------------------------------


def asked(operation: int, node: int = 1, body: bytes = b"", unique: int = 7) -> bytes:
    head = struct.pack("<IIQQIIII", 40 + len(body), operation, unique, node, 0, 0, 0, 0)
    return head + body


def test_names_are_answered_at_once() -> None:
    disk = slow_disk.Server(0.05, 1000)
    said = disk.answer(asked(1, body=b"12\0"), 0.0)
    assert said is not None
    assert struct.unpack_from("<IiQQ", said) == (16 + 128, 0, 7, 14)
    assert len(said) == 144
    for name in (b"x\0", b"-1\0", b"9999999999999\0"):
        assert disk.answer(asked(1, body=name), 0.0) == struct.pack("<IiQ", 16, -2, 7)
    assert disk.answer(asked(16), 0.0) == struct.pack("<IiQ", 16, -38, 7)
    assert disk.answer(asked(2), 0.0) is None


@pytest.mark.parametrize(("operation", "size"), [(26, 64), (3, 104), (14, 16), (18, 0), (17, 80)])
def test_answers_are_as_long_as_the_kernel_wants_them(operation: int, size: int) -> None:
    said = slow_disk.Server(0.05, 1000).answer(asked(operation), 0.0)
    assert said is not None
    assert struct.unpack_from("<Ii", said) == (16 + size, 0)
    assert len(said) == 16 + size


def test_reads_are_answered_when_they_are_due() -> None:
    disk = slow_disk.Server(0.05, 300_000)
    for unique, offset in ((1, 0), (2, 200_000)):
        body = struct.pack("<QQI", 0, offset, 131_072) + bytes(20)
        assert disk.answer(asked(15, 2, body, unique), 10.0 + unique / 100) is None
    assert disk.wait(10.02) == pytest.approx(0.04)
    assert disk.ready(10.05) == []
    assert [len(said) - 16 for said in disk.ready(10.065)] == [131_072]
    (rest,) = disk.ready(10.08)
    assert struct.unpack_from("<IiQ", rest) == (16 + 100_000, 0, 2)
    assert disk.wait(10.08) == 1.0


# --- command line ---------------------------------------------------------------------------------


def test_parts_by_pattern() -> None:
    assert static.arguments(["--only", "s*"]).parts == ["stalled", "slow"]
    assert static.arguments([]).parts == list(static.PARTS)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--only", "fast"], "no part is called 'fast'"),
        (["--rounds", "0"], "at least 1"),
        (["--rate", "0"], "at least 1"),
    ],
)
def test_bad_words(words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        static.arguments(words)
    assert complaint in capsys.readouterr().err
