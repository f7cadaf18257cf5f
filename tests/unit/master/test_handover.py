"""What one master writes the next one reads, and nothing else is taken for it."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from uwgate.config.settings import Endpoint
from uwgate.master import handover
from uwgate.master.handover import HandedSocket, HandedWorker, Handover, HandoverError
from uwgate.master.inherited import Inherited
from uwgate.subscriptions.socketfile import identity


def everything(fd: int) -> Handover:
    given = Handover("9.9", reloads=3, started=5.0)
    given.sockets = [HandedSocket("127.0.0.1:80", "stream", [fd], None, ":80", True)]
    given.workers = [HandedWorker("http", 1, 1, 77, fd, 4, 1.5, 2.5, 6, True, False, "ü\x00", "{")]
    given.parts = {"tls": {"tickets": 3}, "again": ""}
    given.fds = [fd]
    return given


@pytest.mark.parametrize("mode", ["", "rehearse", "fork"])
def test_what_is_written_is_read(mode: handover.Mode) -> None:
    environ: dict[str, str] = {}
    with socket.socket() as sock:
        given = everything(sock.fileno())
        file = handover.write(given)
        handover.prepare(given, file, environ, mode)
        assert sock.get_inheritable()
        assert os.get_inheritable(file)
        # A rehearsal shares the offset of the file.
        os.lseek(file, 5, os.SEEK_SET)
        taken = handover.take(environ)
        assert taken is not None
        assert not sock.get_inheritable()
    assert environ == {}
    given.mode = mode
    assert taken == given
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(file)


def test_what_others_have_written_is_not_believed() -> None:
    """As root, with the environment of somebody who is not."""
    if os.geteuid() != 0:
        pytest.skip("only root can be another user")
    os.seteuid(65534)
    try:
        file = handover.write(Handover("9.9"))
    finally:
        os.seteuid(0)
    with pytest.raises(HandoverError, match="written by another user"):
        handover.take({handover.VARIABLE: str(file)})


def test_too_much_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "_LONGEST", 1000)
    given = Handover("9.9")
    os.close(handover.write(given))
    given.parts["ledger"] = "x" * 1000
    with pytest.raises(OSError, match="File too large"):
        handover.write(given)


def test_a_first_start_has_nothing() -> None:
    assert handover.take({}) is None


def test_an_execution_that_failed_is_undone() -> None:
    environ: dict[str, str] = {}
    with socket.socket() as sock:
        given = everything(sock.fileno())
        file = handover.write(given)
        handover.prepare(given, file, environ, "")
        handover.undo(given, file, environ)
        assert not sock.get_inheritable()
    assert environ == {}


def test_members_of_another_version() -> None:
    """More is ignored, less has a default."""
    value = {
        "format": 1, "version": "10.0", "reloads": 1, "started": 2, "parts": {}, "fds": [],
        "sockets": [{"name": "x", "kind": "stream", "fds": [3], "colour": "red"}],
        "workers": [], "new": {},
    }  # fmt: skip
    file = handover.memory_file("test", json.dumps(value).encode())
    taken = handover.take({handover.VARIABLE: str(file)})
    assert taken is not None
    assert taken.sockets == [HandedSocket("x", "stream", [3])]


def memory(data: bytes) -> str:
    return str(handover.memory_file("test", data))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "cannot be read"),
        (b"[]", "cannot be read"),
        (b'{"format": 2, "version": "11"}', "written by uwgate 11, in another format"),
        (b'{"format": 1}', "cannot be read: 'version'"),
        (b'{"format":1,"version":"1","reloads":"x","started":0}', "cannot be read"),
        (
            b'{"format":1,"version":"1","reloads":1,"started":0,"sockets":[{}],"workers":[],'
            b'"parts":{},"fds":[]}',
            "cannot be read",
        ),
    ],
)
def test_what_cannot_be_read(data: bytes, reason: str) -> None:
    with pytest.raises(HandoverError, match=reason):
        handover.take({handover.VARIABLE: memory(data)})


@pytest.mark.parametrize("text", ["", "x", "-1", "3:", "3:other", "9999", "²"])
def test_a_variable_of_somebody_else(text: str) -> None:
    if text == "3:":
        text = "9998:"
    with pytest.raises(HandoverError):
        handover.take({handover.VARIABLE: text})


def test_any_file_is_not_good_enough(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("{}")
    fd = os.open(path, os.O_RDONLY)
    with pytest.raises(HandoverError):
        handover.take({handover.VARIABLE: str(fd)})
    fd = os.memfd_create("not-sealed", os.MFD_ALLOW_SEALING)
    with pytest.raises(HandoverError, match="is not what uwgate writes"):
        handover.take({handover.VARIABLE: str(fd)})


# --- sockets ------------------------------------------------------------------------------------


def test_sockets_are_found_by_what_they_are(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(path)
        file = identity(path)
        assert file is not None
        stream = HandedSocket("127.0.0.1:80", "stream", [90])
        datagram = HandedSocket("127.0.0.1:80", "dgram", [91])
        named = HandedSocket("0.0.0.0:5", "stream", [92], None, "fd://web", True, True)
        at = HandedSocket("whatever/s", "stream", [93], list(file))
        store = Inherited([stream, datagram, named, at])
        tcp = Endpoint("tcp", "localhost:80", host="localhost", port=80)
        assert store.take(tcp, "stream", "127.0.0.1:81") is None
        assert store.take(tcp, "dgram", "127.0.0.1:80") is datagram
        assert store.take(tcp, "stream", "127.0.0.1:80") is stream
        assert store.take(tcp, "stream", "127.0.0.1:80") is None  # taken
        assert store.take(Endpoint("fd", "fd://9", number=9), "stream") is None
        assert store.take(Endpoint("fd", "fd://92", number=92), "stream") is named
        assert store.take(Endpoint("unix", "x", path="/nonexistent"), "stream") is None
        assert store.take(Endpoint("unix", path, path=path), "stream") is at


def test_a_file_that_was_replaced_is_another(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as old, socket.socket(socket.AF_UNIX) as new:
        old.bind(path)
        file = identity(path)
        assert file is not None
        os.unlink(path)
        new.bind(path)
        store = Inherited([HandedSocket(path, "stream", [93], list(file))])
        assert store.take(Endpoint("unix", path, path=path), "stream") is None


@pytest.mark.parametrize("vacuum", [False, True])
def test_what_nobody_wants_is_closed(tmp_path: Path, vacuum: bool) -> None:
    path = str(tmp_path / "s")
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(path)
    file = identity(path)
    assert file is not None
    number = sock.detach()
    store = Inherited([HandedSocket(path, "stream", [number, 9997], list(file), "cache x")])
    assert store.take_all("cache y") == []
    assert store.close_rest(vacuum=vacuum) == [path]
    assert os.path.exists(path) is not vacuum
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)
    assert store.close_rest() == []


def test_sockets_of_systemd_stay() -> None:
    """It does not pass them again: who is asked for later has to be there still."""
    with socket.socket() as sock:
        theirs = HandedSocket("127.0.0.1:80", "stream", [sock.fileno()], foreign=True)
        store = Inherited([theirs])
        assert store.close_rest(vacuum=True) == []
        assert store.kept() == [theirs]
        number = Endpoint("fd", f"fd://{sock.fileno()}", number=sock.fileno())
        assert store.take(number, "stream") is theirs
        assert store.kept() == []


def test_the_number_of_a_socket_of_ours_means_nothing() -> None:
    store = Inherited([HandedSocket("127.0.0.1:80", "stream", [92], None, ":80")])
    assert store.take(Endpoint("fd", "fd://92", number=92), "stream") is None


def test_listen_stream_80_is_both_addresses() -> None:
    with socket.socket(socket.AF_INET6) as sock:
        for name, foreign, host, found in (
            ("0.0.0.0:80", True, "[::]:80", True),
            ("0.0.0.0:80", True, "0.0.0.0:80", True),
            ("0.0.0.0:80", False, "[::]:80", False),
            ("0.0.0.0:81", True, "[::]:80", False),
        ):
            each = HandedSocket(name, "stream", [sock.fileno()], None, "fd://3", True, foreign)
            endpoint = Endpoint("tcp", "x", host="::", port=80)
            taken = Inherited([each]).take(endpoint, "stream", host)
            assert (taken is each) == found, (name, foreign, host)
    with socket.socket() as only:
        each = HandedSocket("0.0.0.0:80", "stream", [only.fileno()], foreign=True)
        assert Inherited([each]).take(Endpoint("tcp", "x", port=80), "stream", "[::]:80") is None


def test_what_an_older_version_has_passed_on_unknowingly_is_closed() -> None:
    environ: dict[str, str] = {}
    given = Handover("9.9")
    kept, lost = os.memfd_create("uwgate-kept"), os.memfd_create("uwgate-lost")
    other, pidfd = os.memfd_create("other"), os.pidfd_open(os.getpid())
    for each in (lost, other, pidfd):
        os.set_inheritable(each, True)
    given.fds = [kept]
    handover.prepare(given, handover.write(given), environ, "")
    assert handover.take(environ) is not None
    os.close(kept)
    os.close(other)
    for each in (lost, pidfd):
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(each)
