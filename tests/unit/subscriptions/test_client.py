"""The announcer: what it sends and when, on real datagram sockets, with a clock of the test's."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from announcer_tools import DOWN, NOW, UNIX, UP, Client, Server
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from uwgate.config.settings import AnnounceSettings, Endpoint, SubscribeSettings
from uwgate.subscriptions.client import AnnounceError, Announcer
from uwgate.subscriptions.packet import Announcement, decode
from uwgate.subscriptions.signing import Verifier


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.sock.close()


@pytest.fixture
def entry(server: Server) -> SubscribeSettings:
    return SubscribeSettings(server.endpoint, "k.example", address="10.0.0.7:80")


def test_at_the_start_a_second_later_and_then_periodically(
    server: Server, entry: SubscribeSettings
) -> None:
    client = Client(entry, frequency=10.0)
    assert client.announcer.due is None
    client.announcer.start(NOW)
    assert server.said() == [UP]
    assert client.announcer.due == NOW + 1
    client.announcer.tick(NOW + 0.9)
    assert server.said() == []
    client.announcer.tick(NOW + 1)
    assert server.said() == [UP]
    assert client.announcer.due == NOW + 11
    client.announcer.tick(NOW + 11)
    assert server.said() == [UP]
    assert client.announcer.due == NOW + 21
    client.outbox.close()


def test_goodbye_is_said_twice_and_then_there_is_silence(
    server: Server, entry: SubscribeSettings
) -> None:
    client = Client(entry)
    client.announcer.start(NOW)
    assert client.announcer.announced
    server.raw()
    client.announcer.goodbye(NOW + 5)
    assert not client.announcer.announced
    assert server.said() == [DOWN]
    due = client.announcer.due
    assert due is not None
    assert due - (NOW + 5) < 0.02
    client.announcer.tick(due)
    assert server.said() == [DOWN]
    assert client.announcer.due is None
    client.announcer.goodbye(NOW + 6)
    client.run(NOW + 6, NOW + 99)
    assert server.said() == []
    client.outbox.close()


def test_a_return_is_not_taken_back_by_the_repeated_goodbye(
    server: Server, entry: SubscribeSettings
) -> None:
    client = Client(entry)
    client.announcer.start(NOW)
    client.announcer.goodbye(NOW + 5)
    client.announcer.start(NOW + 5.001)
    client.run(NOW + 5.001, NOW + 5.5)
    assert server.said() == [UP, DOWN, UP]
    client.outbox.close()


def test_finish_sends_the_second_goodbye(server: Server, entry: SubscribeSettings) -> None:
    client = Client(entry)
    client.announcer.start(NOW)
    client.announcer.goodbye(NOW)
    client.announcer.goodbye(NOW)  # nothing new, and no reason to drop the repetition
    client.announcer.finish()
    assert server.said() == [UP, DOWN, DOWN]
    assert client.announcer.due is None
    client.outbox.close()


def test_nothing_was_announced_so_nothing_is_taken_back(
    server: Server, entry: SubscribeSettings
) -> None:
    client = Client(entry, start_unsubscribed=True)
    client.announcer.start(NOW)
    client.announcer.goodbye(NOW + 1)
    client.announcer.finish()
    assert server.said() == []
    assert client.announcer.due is None
    client.outbox.close()


def test_toggle(server: Server, entry: SubscribeSettings) -> None:
    client = Client(entry, start_unsubscribed=True)
    client.announcer.start(NOW)
    assert client.announcer.blocked
    client.announcer.toggle(NOW + 3)
    assert server.said() == [UP]
    client.announcer.toggle(NOW + 4)
    assert client.announcer.blocked
    client.run(NOW + 4, NOW + 60)
    assert server.said() == [DOWN, DOWN]
    client.announcer.goodbye(NOW + 61)
    client.announcer.toggle(NOW + 62)
    client.run(NOW + 62, NOW + 99)
    assert server.said() == []  # it has ended: there is nothing to let go on
    client.outbox.close()


@pytest.mark.parametrize(("option", "wanted"), [(False, []), (True, [DOWN, DOWN])])
def test_graceful_reload(
    server: Server,
    entry: SubscribeSettings,
    option: bool,
    wanted: list[tuple[int, str, str]],
) -> None:
    client = Client(entry, unsubscribe_on_reload=option)
    client.announcer.start(NOW)
    server.raw()
    client.announcer.reload(NOW + 5)
    client.run(NOW + 5, NOW + 60)
    client.announcer.goodbye(NOW + 61)  # it ends; the node belongs to its successor
    client.announcer.finish()
    assert server.said() == wanted
    client.outbox.close()


def test_a_plain_packet_is_that_of_uwsgi(server: Server) -> None:
    """``fixtures/subscription/subscribe_cores_weight.hex``, sent by uWSGI 2.0.31."""
    captured = bytes.fromhex(
        (Path(__file__).parents[2] / "fixtures/subscription/subscribe_cores_weight.hex")
        .read_text()
        .replace("\n", "")
    )
    like = decode(captured)
    entry = SubscribeSettings(server.endpoint, like.key, address=like.address)
    client = Client(entry, weight=like.weight)
    client.announcer = Announcer(
        AnnounceSettings((entry,), weight=like.weight),
        client.outbox,
        client.log.append,
        cores=like.cores,
    )
    client.announcer.start(NOW)
    assert server.raw() == [captured]
    client.outbox.close()


def test_what_packets_say(server: Server, entry: SubscribeSettings) -> None:
    full = replace(
        entry, modifier1=5, modifier2=6, weight=7, backup=2, algo="lrc", protocol="http",
        sni_key="/k", sni_crt="/c", sni_ca="!/a", vassal="v",
    )  # fmt: skip
    client = Client(full, entry, weight=3, announced_notify_socket="/n")
    client.announcer.start(NOW)
    assert server.packets() == [
        Announcement(
            "k.example", "10.0.0.7:80", 0, 5, 6, 4, 0, 7, 2, "http", "lrc", "v",
            sni_key="/k", sni_crt="/c", sni_ca="!/a", notify="/n",
        ),
        Announcement("k.example", "10.0.0.7:80", cores=4, weight=3, notify="/n"),
    ]  # fmt: skip
    client.outbox.close()


def test_the_forced_modifier(server: Server, entry: SubscribeSettings) -> None:
    client = Client(replace(entry, modifier1=5), modifier1=0)
    client.announcer.start(NOW)
    assert [each.modifier1 for each in server.packets()] == [0]
    client.outbox.close()


def test_clear_on_shutdown_is_for_subscribe2(server: Server, entry: SubscribeSettings) -> None:
    client = Client(entry, replace(entry, clearable=True), clear_on_shutdown=True)
    client.announcer.start(NOW)
    server.raw()
    client.announcer.goodbye(NOW)
    first, second = server.raw()
    assert (first[3], decode(first).clear) == (1, False)
    assert (second[3], decode(second).clear) == (0, True)
    client.outbox.close()


def test_nothing_is_sent_while_the_check_file_exists(
    server: Server, entry: SubscribeSettings, tmp_path: Path
) -> None:
    flag = tmp_path / "maintenance"
    client = Client(replace(entry, check=str(flag)))
    flag.touch()
    client.announcer.start(NOW)
    assert server.said() == []
    flag.unlink()
    client.announcer.tick(NOW + 1)
    assert server.said() == [UP]
    flag.touch()
    client.announcer.goodbye(NOW + 2)
    assert server.said() == []
    client.outbox.close()


def test_key_file_is_read_each_time(
    server: Server, entry: SubscribeSettings, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    client = Client(replace(entry, key="", key_file=str(keys)), frequency=10.0)
    client.announcer.start(NOW)
    client.announcer.tick(NOW + 1)
    assert server.said() == []
    assert client.log == [f"keys of {keys}: No such file or directory"]
    keys.write_bytes(b"# comment\r\n\none.example,5\r\n  two.example:80 \n#three\nlast/p")
    client.announcer.tick(NOW + 11)
    assert [(each.key, each.modifier1) for each in server.packets()] == [
        ("one.example", 5),
        ("two.example:80", 0),
        ("last/p", 0),
    ]
    assert client.log[1:] == [f"keys of {keys}: works again"]
    keys.write_bytes(b"one.example,5\nnew.example\n")
    client.announcer.tick(NOW + 21)
    assert [(each.command, each.key) for each in server.packets()] == [
        (1, "two.example:80"),
        (1, "last/p"),
        (0, "one.example"),
        (0, "new.example"),
    ]
    keys.unlink()
    client.announcer.goodbye(NOW + 22)
    assert [(each.command, each.key, each.modifier1) for each in server.packets()] == [
        (1, "one.example", 5),
        (1, "new.example", 0),
    ]
    client.outbox.close()


@pytest.mark.parametrize("line", [b"a b", b"k,", b"k,256", b"k,1_0", b"k,1,sha1:x", b"\xffk"])
def test_a_wrong_line_is_told_once_and_the_others_count(
    server: Server, entry: SubscribeSettings, tmp_path: Path, line: bytes
) -> None:
    keys = tmp_path / "keys"
    keys.write_bytes(b"one\n" + line + b"\ntwo\n")
    client = Client(replace(entry, key="", key_file=str(keys)))
    client.announcer.start(NOW)
    client.announcer.tick(NOW + 1)
    assert [each.key for each in server.packets()] == ["one", "two"] * 2
    expected = f"keys of {keys}: line 2 is not understood; expected KEY[,MODIFIER1]"
    assert client.log == [expected]
    client.outbox.close()


# --- signatures ------------------------------------------------------------------------------


@pytest.fixture
def private_key(tmp_path: Path) -> tuple[str, bytes]:
    """A private key's file, and the public key."""
    key = ec.generate_private_key(ec.SECP256R1())
    path = tmp_path / "private.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return str(path), public


def test_signed_packets_and_their_time(
    server: Server, entry: SubscribeSettings, private_key: tuple[str, bytes]
) -> None:
    path, public = private_key
    verifier = Verifier(public, "sha256")
    client = Client(replace(entry, sign_digest="sha256", sign_key=path), frequency=1.0)
    client.announcer.start(NOW)
    client.wall += 1.5
    client.announcer.tick(NOW + 1)
    client.wall -= 3600  # somebody sets the clock back
    client.announcer.tick(NOW + 2)
    client.announcer.goodbye(NOW + 3)
    client.announcer.start(NOW + 3)
    found = server.packets()
    assert all(verifier.verify(each.signed, each.signature) for each in found)
    assert [each.unix - UNIX for each in found] == [0, 1, 1, 2, 2]
    assert [each.command for each in found] == [0, 0, 0, 1, 0]
    client.outbox.close()


def test_the_repeated_goodbye_is_the_same_packet(
    server: Server, entry: SubscribeSettings, private_key: tuple[str, bytes]
) -> None:
    client = Client(replace(entry, sign_digest="sha256", sign_key=private_key[0]))
    client.announcer.start(NOW)
    server.raw()
    client.announcer.goodbye(NOW)
    client.announcer.finish()
    first, second = server.raw()
    assert first == second
    client.outbox.close()


def test_unsigned_packets_have_no_time(server: Server, entry: SubscribeSettings) -> None:
    client = Client(entry)
    client.announcer.start(NOW)
    assert [each.unix for each in server.packets()] == [0]
    client.outbox.close()


@pytest.mark.parametrize(
    ("content", "digest", "message"),
    [
        (None, "sha256", "No such file"),
        (b"rubbish", "sha256", "private.pem: "),
        (b"", "md5", "private.pem: "),
    ],
)
def test_a_key_that_cannot_sign_is_an_error(
    entry: SubscribeSettings, tmp_path: Path, content: bytes | None, digest: str, message: str
) -> None:
    path = tmp_path / "private.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(AnnounceError, match=r"^private key [^\n]+$") as caught:
        Client(replace(entry, sign_digest=digest, sign_key=str(path)))
    assert message in str(caught.value)


# --- addresses and names ---------------------------------------------------------------------


def test_any_host_is_the_address_towards_each_server(tmp_path: Path) -> None:
    servers = [Server(), Server(family=socket.AF_INET6), Server(str(tmp_path / "s"))]
    v4, v6, local = (
        SubscribeSettings(each.endpoint, "k", address=address)
        for each, address in zip(servers, ("*:81", "[*]:82", "*:83"), strict=True)
    )
    client = Client(v4, v6, local, replace(v4, address="[*]:84"), replace(local, address="[*]:85"))
    client.announcer.start(NOW)
    said = [[each.address for each in server.packets()] for server in servers]
    assert said == [["127.0.0.1:81"], ["[::1]:82"], ["127.0.0.1:83", "[::1]:85"]]
    (line,) = client.log
    assert "[*]:84" in line
    assert "no IPv6 address on the way there" in line
    client.outbox.close()
    for server in servers:
        server.sock.close()


def test_an_address_that_no_packet_takes_is_told_once(
    server: Server, entry: SubscribeSettings
) -> None:
    client = Client(replace(entry, address="[fe80::1%eth0]:80"))
    client.announcer.start(NOW)
    client.announcer.tick(NOW + 1)
    assert server.said() == []
    (line,) = client.log
    assert "bad-address" in line
    client.outbox.close()


def test_a_server_whose_name_is_unknown_for_a_while(
    server: Server, entry: SubscribeSettings
) -> None:
    port = server.endpoint.port
    named = Endpoint("tcp", f"gw.example:{port}", host="gw.example", port=port)
    client = Client(replace(entry, server=named, address="*:80"))
    client.announcer.start(NOW)
    assert server.said() == []
    client.names["gw.example"] = (socket.AF_INET, ("127.0.0.1", port))
    client.announcer.hurry(NOW + 0.2)
    assert server.said() == [(0, "k.example", "127.0.0.1:80")]
    client.announcer.goodbye(NOW + 1)
    client.announcer.hurry(NOW + 1.1)
    assert server.said() == [(1, "k.example", "127.0.0.1:80")]
    client.outbox.close()
