"""Taking sockets from a zerg server: good ones, wrong ones, and none."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from support.waiting import DEADLINE
from zerg_tools import answering, descriptors_left, inode, listener, open_descriptors, rights

from uwgate.config.settings import Endpoint
from uwgate.master.errors import StartError
from uwgate.master.logs import MainLog
from uwgate.master.zerg import attach, attached
from uwgate.protocols.zerg import MAGIC, ZergError, encode

Made = Callable[[], socket.socket]


@pytest.fixture
def path() -> Iterator[str]:
    """Short, unlike ``tmp_path``: unix socket paths hold 107 bytes."""
    with TemporaryDirectory() as directory:
        yield f"{directory}/zerg"


def unix(path: str) -> Endpoint:
    return Endpoint("unix", path, path=path)


def refusal(path: str, data: bytes, fds: list[int]) -> str:
    """Why what the server sends is not taken; no descriptor of it stays open."""
    before = open_descriptors()
    with (
        answering(path, lambda client: client.sendmsg([data], rights(fds))),
        pytest.raises(ZergError) as caught,
    ):
        attach(unix(path))
    assert open_descriptors() == before
    start = "invalid data received from zerg server: "
    assert str(caught.value).startswith(start)
    return str(caught.value)[len(start) :]


def test_sockets_of_every_kind(path: str) -> None:
    with ExitStack() as stack:
        handed = [
            stack.enter_context(sock)
            for sock in (
                listener(),
                listener(socket.AF_INET6),
                listener(socket.AF_UNIX, f"{path}-app"),
                listener(socket.AF_UNIX),
            )
        ]
        fds = [sock.fileno() for sock in handed]
        stack.enter_context(
            answering(path, lambda client: client.sendmsg([encode(4)], rights(fds)))
        )
        taken = [stack.enter_context(sock) for sock in attach(unix(path))]
        assert [inode(sock) for sock in taken] == [inode(sock) for sock in handed]
        assert [sock.family for sock in taken] == [sock.family for sock in handed]
        for sock in taken:
            assert not sock.getblocking()
            assert not sock.get_inheritable()
        with socket.create_connection(handed[0].getsockname()) as client:
            taken[0].settimeout(DEADLINE)
            theirs, address = taken[0].accept()
            with theirs:
                assert address == client.getsockname()


def test_as_many_as_a_message_holds(path: str) -> None:
    with listener() as sock:
        fds = [sock.fileno()] * 253
        with answering(path, lambda client: client.sendmsg([encode(253)], rights(fds))):
            taken = attach(unix(path))
        for each in taken:
            each.close()
        assert len(taken) == 253


def test_abstract_name_has_a_nul_at_its_end(path: str) -> None:
    """As uWSGI binds it."""
    with listener() as sock, answering(
        f"\0{path}\0", lambda client: client.sendmsg([encode(1)], rights([sock.fileno()]))
    ):
        (taken,) = attach(Endpoint("abstract", f"@{path}", path=path))
        with taken:
            assert inode(taken) == inode(sock)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"uwsgi-zerk" + encode(1)[10:], "it does not begin with uwsgi-zerg"),
        (encode(1)[:13], "13 bytes instead of 14"),
        (b"u", "1 bytes instead of 14"),
        (encode(1) + b"\n", "15 bytes instead of 14"),
        (MAGIC + struct.pack("=i", 0), "0 sockets; 1 to 253 can be handed out"),
        (MAGIC + struct.pack("=i", -1), "-1 sockets; 1 to 253 can be handed out"),
        (MAGIC + struct.pack("=i", 254), "254 sockets; 1 to 253 can be handed out"),
        (encode(1), "1 sockets announced, 2 received"),
        (encode(3), "3 sockets announced, 2 received"),
        (encode(253), "253 sockets announced, 2 received"),
    ],
)
def test_messages_that_no_zerg_server_sends(path: str, data: bytes, reason: str) -> None:
    with listener() as one, listener() as two:
        assert refusal(path, data, [one.fileno(), two.fileno()]) == reason


def test_words_without_sockets(path: str) -> None:
    assert refusal(path, encode(2), []) == "2 sockets announced, 0 received"


def test_a_server_that_hangs_up(path: str) -> None:
    with answering(path, lambda client: None), pytest.raises(ZergError, match="nothing was sent"):
        attach(unix(path))


def connected() -> socket.socket:
    """One end of a connection."""
    one, other = socket.socketpair()
    other.close()
    return one


def bound(kind: socket.SocketKind, family: int = socket.AF_INET) -> Made:
    """Makes a socket with an address that nobody listens on."""

    def made() -> socket.socket:
        sock = socket.socket(family, kind)
        sock.bind("" if family == socket.AF_UNIX else ("127.0.0.1", 0))
        return sock

    return made


def seqpacket() -> socket.socket:
    """Listening, but not a stream."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.bind("")
    sock.listen()
    return sock


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (connected, "a socket is not listening"),
        (bound(socket.SOCK_STREAM), "a socket is not listening"),
        (bound(socket.SOCK_STREAM, socket.AF_UNIX), "a socket is not listening"),
        (bound(socket.SOCK_DGRAM), "a socket is not a stream socket"),
        (bound(socket.SOCK_DGRAM, socket.AF_UNIX), "a socket is not a stream socket"),
        (seqpacket, "a socket is not a stream socket"),
        (
            lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW),
            "a socket is neither TCP nor unix",
        ),
    ],
)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_sockets_that_nobody_can_accept_on(
    path: str, make: Made, reason: str, place: int
) -> None:
    with make() as wrong, listener() as one, listener() as two:
        fds = [one.fileno(), two.fileno()]
        fds.insert(place, wrong.fileno())
        assert refusal(path, encode(3), fds) == reason


def test_descriptors_that_are_no_sockets(path: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with file.open("rb") as one, listener() as sock:
        reader, writer = os.pipe()
        try:
            for wrong in (one.fileno(), reader, writer):
                fds = [sock.fileno(), wrong, sock.fileno()]
                assert refusal(path, encode(3), fds) == "a descriptor is not a socket"
                os.unlink(path)
        finally:
            os.close(reader)
            os.close(writer)


def test_no_room_for_so_many(path: str) -> None:
    """The kernel delivers as many as this process may open, and drops the rest."""
    taken: list[socket.socket] = []
    before = open_descriptors()
    with listener() as sock, ExitStack() as stack:

        def answer(client: socket.socket) -> None:
            stack.enter_context(descriptors_left(1))
            client.sendmsg([encode(50)], rights([sock.fileno()] * 50))

        with answering(path, answer), pytest.raises(ZergError, match="too many open files"):
            taken += attach(unix(path))
    assert not taken
    assert open_descriptors() == before


def unreachable(endpoint: Endpoint, timeout: float = 5) -> str:
    before = open_descriptors()
    with pytest.raises(OSError, match="unable to connect to zerg server: ") as caught:
        attach(endpoint, timeout)
    assert open_descriptors() == before
    return str(caught.value.strerror)


def test_servers_that_are_away(path: str) -> None:
    start = "unable to connect to zerg server: "
    assert unreachable(unix(path)) == start + "no such file or directory"
    assert unreachable(Endpoint("abstract", "@x", path=path)) == start + "connection refused"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
        assert unreachable(unix(path)) == start + "connection refused"


def test_a_server_that_says_nothing(path: str) -> None:
    with listener(socket.AF_UNIX, path):
        expected = "unable to connect to zerg server: no answer in 0.1 s"
        assert unreachable(unix(path), 0.1) == expected


def test_a_server_that_accepts_nobody(path: str) -> None:
    """With a full queue: a connect that must not block would fail at once."""
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as first:
        server.bind(path)
        server.listen(0)
        first.connect(path)
        expected = "unable to connect to zerg server: no answer in 0.1 s"
        assert unreachable(unix(path), 0.1) == expected


def test_tcp_passes_no_sockets() -> None:
    with pytest.raises(ZergError, match="not a unix socket"):
        attach(Endpoint("tcp", "127.0.0.1:1", "127.0.0.1", 1))


# --- at start ----------------------------------------------------------------------------------


@pytest.fixture
def log(tmp_path: Path) -> Iterator[MainLog]:
    """A log in a file."""
    log = MainLog(str(tmp_path / "log"))
    yield log
    log.close()


def test_a_start_without_the_server(path: str, log: MainLog, tmp_path: Path) -> None:
    reason = f"http-zerg = {path}: unable to connect to zerg server: no such file or directory"
    with pytest.raises(StartError) as caught:
        attached("http-zerg", unix(path), log)
    assert str(caught.value) == reason
    assert attached("http-zerg", unix(path), log, fallback=True) == []
    line = (tmp_path / "log").read_text()
    assert line.endswith(f"] {reason}; starting without it (zerg-fallback)\n")


def test_nonsense_is_no_reason_to_fall_back(path: str, log: MainLog) -> None:
    with (
        answering(path, lambda client: client.send(b"220 mail.example ESMTP\r\n")),
        pytest.raises(StartError) as caught,
    ):
        attached("zerg", unix(path), log, fallback=True)
    reason = "invalid data received from zerg server: 15 bytes instead of 14"
    assert str(caught.value) == f"zerg = {path}: {reason}"


def test_a_server_that_is_there(path: str, log: MainLog) -> None:
    with (
        listener() as sock,
        answering(path, lambda client: client.sendmsg([encode(1)], rights([sock.fileno()]))),
    ):
        (taken,) = attached("zerg", unix(path), log, fallback=True)
        with taken:
            assert inode(taken) == inode(sock)
