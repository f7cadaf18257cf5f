"""Who may announce: signatures, key files, exemptions, credentials of real unix sockets.

uWSGI 2.0.31: credentials are not looked at in goodbyes; on UDP the sender counts as root; a key
with ``../`` leaves the directory; files named by a directory without its slash are beside it; a
packet without credentials is lost where they are asked for. None of that is so here.
"""

from __future__ import annotations

import os
import selectors
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from packet_tools import framed
from registry_tools import KEY, NODE, KeyPair, World, other_command, packet, signed_world
from support.waiting import wait_until

from uwgate.config.settings import Endpoint
from uwgate.subscriptions.packet import decode
from uwgate.subscriptions.server import DatagramServer

PAIR, STRANGER, NEXT = KeyPair(), KeyPair(), KeyPair()
OTHER = "10.0.0.2:3031"

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="sends as other users")


def signed(pair: KeyPair = PAIR, key: str = KEY, *, age: int = 5, command: int = 0) -> bytes:
    return packet(key, signer=pair, unix=int(time.time()) - age, command=command)


# --- signatures ---------------------------------------------------------------------------------


def test_the_right_key(tmp_path: Path) -> None:
    world = signed_world(tmp_path, PAIR)
    assert world.receive(signed()) == ""
    assert world.receive(signed(age=1, command=1)) == ""
    assert world.find() is None


@pytest.mark.parametrize("command", [0, 1])
@pytest.mark.parametrize("known", [False, True])
def test_what_is_not_signed_well(tmp_path: Path, command: int, known: bool) -> None:
    world = signed_world(tmp_path, PAIR)
    if known:
        world.receive(signed(age=9))
    elif command:
        return  # a goodbye of nobody
    unix = int(time.time())
    assert world.receive(packet(unix=unix, command=command)) == "unsigned"
    assert world.receive(signed(STRANGER, command=command)) == "bad-signature"
    good = packet(unix=unix, command=command, signer=PAIR)
    for position in range(4, len(good) - 80):
        broken = good[:position] + bytes((good[position] ^ 1,)) + good[position + 1 :]
        world.receive(broken)  # a goodbye of another key or address is one of nobody
    assert [member.address for member in world.registry.table] == [NODE] * known
    assert (world.counters["joined"], world.counters["left"]) == (int(known), 0)


def test_a_signature_covers_nothing_but_what_is_used(tmp_path: Path) -> None:
    """A signed packet with more behind its signature, or with another's items before it."""
    world = signed_world(tmp_path, PAIR)
    good = signed()
    assert world.receive(framed(good[4:] + b"\x01\x00x\x01\x00y")) == "malformed"
    assert world.receive(framed(b"\x01\x00x\x01\x00y" + good[4:])) == "bad-signature"
    assert decode(good).key == KEY


@pytest.mark.parametrize(
    ("key", "file"),
    [
        ("test.example:8000", "test.example_8000.pem"),
        ("test.example/app/x", "test.example.pem"),
        ("..", "...pem"),
        ("..\\..\\x", ".._.._x.pem"),
        ("/../../etc/x", ".pem"),
    ],
)
def test_key_files(tmp_path: Path, key: str, file: str) -> None:
    directory = tmp_path / "keys"
    directory.mkdir()
    world = World(sign_digest="sha256", sign_directory=f"{directory}/")
    assert world.receive(signed(key=key)) == "no-key-file"
    (directory / file).write_bytes(PAIR.public)
    assert world.receive(signed(key=key)) == ""


@pytest.mark.parametrize("what", ["missing", "text", "private", "directory", "long"])
def test_key_files_that_are_none(tmp_path: Path, what: str) -> None:
    world = World(sign_digest="sha256", sign_directory=str(tmp_path))
    key = "k" * 255 if what == "long" else KEY
    path = tmp_path / f"{KEY}.pem"
    if what == "directory":
        path.mkdir()
    elif what in ("text", "private"):
        path.write_bytes(b"text" if what == "text" else PAIR.private)
    assert world.receive(signed(key=key)) == "no-key-file"
    assert world.logged("refused: no-key-file")


def test_what_costs_nothing_is_looked_at_first(tmp_path: Path) -> None:
    world = signed_world(tmp_path, PAIR, max_keys=1)
    assert world.receive(signed(STRANGER, age=100_000)) == "stale"
    world.receive(signed(age=5))
    assert world.receive(signed(STRANGER, "second.example")) == "too-many-keys"
    assert world.receive(signed(STRANGER, age=9)) == "stale"


# --- a key file that is replaced ----------------------------------------------------------------


def test_rotation_of_a_key(tmp_path: Path) -> None:
    """uWSGI keeps the key of a slot until its last node is gone."""
    world = signed_world(tmp_path, PAIR)
    assert world.receive(signed(PAIR, age=20)) == ""
    assert world.receive(signed(NEXT, age=19)) == "bad-signature"
    (tmp_path / f"{KEY}.pem").write_bytes(NEXT.public)
    # At once: the old one may have been stolen.
    assert world.receive(signed(PAIR, age=18)) == "bad-signature"
    assert world.receive(signed(NEXT, age=17)) == ""
    assert world.receive(signed(PAIR, age=16)) == "bad-signature"
    assert world.receive(signed(PAIR, age=15, command=1)) == "bad-signature"
    assert world.receive(signed(NEXT, age=14, command=1)) == ""


def test_a_slot_that_begins_anew_reads_its_file_anew(tmp_path: Path) -> None:
    world = signed_world(tmp_path, PAIR)
    world.receive(signed(PAIR, age=20))
    world.receive(signed(PAIR, age=19, command=1))
    (tmp_path / f"{KEY}.pem").write_bytes(NEXT.public)
    assert world.receive(signed(PAIR, age=10)) == "bad-signature"
    assert world.receive(signed(NEXT, age=9)) == ""


def test_a_key_file_that_is_gone(tmp_path: Path) -> None:
    world = signed_world(tmp_path, PAIR)
    world.receive(signed(PAIR, age=20))
    (tmp_path / f"{KEY}.pem").unlink()
    assert world.receive(signed(PAIR, age=19)) == "no-key-file"
    assert world.receive(signed(STRANGER, age=18)) == "no-key-file"
    assert world.receive(signed(PAIR, age=17, command=1)) == "no-key-file"


def test_a_key_file_that_is_no_file(tmp_path: Path) -> None:
    """Nobody writes into the FIFO: reading it would stop the master."""
    world = signed_world(tmp_path, PAIR)
    (tmp_path / f"{KEY}.pem").unlink()
    os.mkfifo(tmp_path / f"{KEY}.pem")
    assert world.receive(signed(PAIR, age=20)) == "no-key-file"


# --- exemptions (§5.3) --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("who", "word"),
    [
        ((1, 1000, 1000), ""),
        ((1, 1000, 5), ""),
        ((1, 1001, 1000), "unsigned"),
        ((1, 0, 0), "unsigned"),
        (None, "unsigned"),
    ],
)
def test_exemption_is_by_uid_and_never_for_root(
    tmp_path: Path, who: tuple[int, int, int] | None, word: str
) -> None:
    world = signed_world(
        tmp_path, PAIR, use_credentials=True, sign_skip_uids=frozenset((1000, 0))
    )
    data = packet(unix=int(time.time()))
    assert world.receive(data, "someone", who) == word
    assert world.receive(data, "someone", who) == word
    assert (world.find() is not None) is (word == "")
    if word == "":
        assert world.receive(other_command(data), "someone", (1, 1001, 1)) == "unsigned"
        assert world.receive(other_command(data), "someone", who) == ""
        assert world.find() is None


def test_credentials_are_kept_for_the_stats() -> None:
    world = World(use_credentials=True)
    world.receive(packet(), "uid 1000", (77, 1000, 100))
    extra = world.member().extra
    assert (extra.pid, extra.uid, extra.gid) == (77, 1000, 100)
    world.receive(packet(), "uid 1000", (78, 1000, 100))
    assert world.member().extra.pid == 78


# --- credentials-check (§5.4) -------------------------------------------------------------------


@pytest.fixture
def allowed(tmp_path: Path) -> Callable[..., str]:
    """A directory with a file of ours for KEY."""
    directory = tmp_path / "allowed"
    directory.mkdir()
    (directory / KEY).touch()
    return str(directory)  # type: ignore[return-value]


ME = (1, os.geteuid(), os.getegid())


@pytest.mark.parametrize("slash", ["", "/"])
def test_the_file_has_to_be_the_senders(allowed: str, slash: str) -> None:
    world = World(use_credentials=True, credentials=(allowed + slash,))
    assert world.receive(packet(), "uid", ME) == ""
    for who in ((1, ME[1] + 1, ME[2]), (1, ME[1], ME[2] + 1)):
        assert world.receive(packet(address=OTHER), "uid", who) == "bad-credentials"
        assert world.receive(packet(command=1), "uid", who) == "bad-credentials"
    assert world.receive(packet("other.example"), "uid", ME) == "bad-credentials"
    assert world.receive(packet(command=1), "uid", ME) == ""


def test_one_of_several_places_is_enough(allowed: str, tmp_path: Path) -> None:
    (tmp_path / "own-second.example").touch()
    world = World(use_credentials=True, credentials=(allowed, f"{tmp_path}/own-"))
    assert world.receive(packet(), "uid", ME) == ""
    assert world.receive(packet("second.example"), "uid", ME) == ""
    assert world.receive(packet("third.example"), "uid", ME) == "bad-credentials"


def test_nobody_is_known_over_udp(allowed: str) -> None:
    """Root's file lets anyone in over UDP in uWSGI."""
    world = World(use_credentials=True, credentials=(allowed,))
    assert world.receive(packet()) == "bad-credentials"
    world.receive(packet(), "uid", ME)
    assert world.receive(packet()) == "bad-credentials"
    assert world.receive(packet(command=1)) == "bad-credentials"
    assert world.find() is not None


def test_udp_works_where_credentials_are_only_noted() -> None:
    world = World(use_credentials=True)
    assert world.receive(packet()) == ""


@pytest.mark.parametrize(
    "key",
    [
        *("../passwd", "..", ".", "/", "/etc/passwd", ".hidden", "a/../../x", "a..b", "a%2fb"),
        *("a\\b", "~"),
    ],
)
def test_no_key_walks_the_file_system(tmp_path: Path, key: str) -> None:
    directory = tmp_path / "d"
    directory.mkdir()
    for name in ("passwd", ".hidden", "a..b"):
        (tmp_path / name).touch()
        (directory / name).touch()
    world = World(use_credentials=True, credentials=(f"{directory}/",))
    assert world.receive(packet(key), "uid", ME) == "bad-credentials"
    assert not world.registry.table.slots


def test_mountpoints_and_ports(allowed: str) -> None:
    (Path(allowed) / f"{KEY}:8000").touch()
    world = World(use_credentials=True, credentials=(allowed,))
    assert world.receive(packet(f"{KEY}/app"), "uid", ME) == ""
    assert world.receive(packet(f"{KEY}:8000"), "uid", ME) == ""
    assert world.receive(packet(f"{KEY}:8001"), "uid", ME) == "bad-credentials"


# --- real senders -------------------------------------------------------------------------------


class UnixWorld(World):
    """A registry behind a real unix datagram socket that asks for credentials."""

    def __init__(self, path: str, **settings: Any) -> None:
        super().__init__(use_credentials=True, **settings)
        self.path = path
        self.server = DatagramServer(
            Endpoint("unix", path, path=path),
            self.registry.receive,
            credentials=True,
            max_rate=0,
            mode=0o666,
        )

    def close(self) -> None:
        self.server.close()

    def send_as(self, uid: int, gid: int, data: bytes) -> None:
        """From another process, with these ids; returns once it was received."""
        heard = self.server.received
        pid = os.fork()
        if pid == 0:
            try:
                os.setgroups([])
                os.setresgid(gid, gid, gid)
                os.setresuid(uid, uid, uid)
                with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                    sock.sendto(data, self.path)
            finally:
                os._exit(0)
        os.waitpid(pid, 0)

        def received() -> bool:
            self.server.on_readable(selectors.EVENT_READ)
            return self.server.received > heard

        wait_until(received, "the packet")


@pytest.fixture
def place() -> Iterator[Path]:
    """Short, and open for other users."""
    with TemporaryDirectory() as path:
        os.chmod(path, 0o711)  # noqa: S103
        yield Path(path)


@needs_root
def test_real_credentials(place: Path) -> None:
    for name, uid, gid in ((KEY, 4711, 4712), ("root.example", 0, 0)):
        (place / name).touch()
        os.chown(place / name, uid, gid)
    world = UnixWorld(str(place / "s"), credentials=(str(place),))
    try:
        world.send_as(4711, 4711, packet())
        assert world.registry.rejected == {"bad-credentials": 1}
        world.send_as(4711, 4712, packet())
        assert world.member().sender == "uid 4711"
        assert world.member().extra.gid == 4712
        world.send_as(4713, 4712, packet(command=1))
        assert world.find() is not None
        world.send_as(4711, 4712, packet("root.example"))
        assert world.registry.rejected == {"bad-credentials": 3}
        world.send_as(0, 0, packet("root.example"))
        assert "root.example" in world.registry.table.slots
        world.send_as(4711, 4712, packet(command=1))
        assert world.find() is None
    finally:
        world.close()


@needs_root
def test_real_exemption(place: Path) -> None:
    world = UnixWorld(
        str(place / "s"),
        sign_digest="sha256",
        sign_directory=str(place),
        sign_skip_uids=frozenset((0, 4711)),
    )
    try:
        world.send_as(0, 0, packet())
        world.send_as(4712, 4711, packet())
        assert world.registry.rejected == {"unsigned": 2}
        world.send_as(4711, 0, packet(address=":3031"))
        assert world.member(address="127.0.0.1:3031").sender == "uid 4711"
    finally:
        world.close()


@needs_root
def test_limit_of_a_users_nodes(place: Path) -> None:
    world = UnixWorld(str(place / "s"), max_sender_nodes=1)
    try:
        world.send_as(4711, 1, packet())
        world.send_as(4711, 1, packet(address=OTHER))
        assert world.registry.rejected == {"too-many-from-sender": 1}
        world.send_as(4712, 1, packet(address=OTHER))
        assert {m.address for m in world.registry.table} == {NODE, OTHER}
    finally:
        world.close()
