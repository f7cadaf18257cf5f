"""subscribe-to, subscribe2 and their relatives."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from config_tools import BASE, errors_of, ini_errors, settings_of, warnings_of
from hypothesis import given, strategies

from uwgate.config.settings import AnnounceSettings, Endpoint, SubscribeSettings
from uwgate.config.subscribe import subscribe2, subscribe_to
from uwgate.subscriptions.packet import Announcement, decode, encode

SERVER = Endpoint("tcp", "127.0.0.1:4040", host="127.0.0.1", port=4040)


def announced(text: str, *words: str) -> AnnounceSettings:
    """The client's settings of an INI text behind ``BASE``."""
    return settings_of(*BASE, *words, "-", stdin=f"[uwsgi]\n{text}".encode()).announce


def only(text: str) -> SubscribeSettings:
    (entry,) = announced(text).entries
    return entry


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("127.0.0.1:4040:example.com", {"key": "example.com"}),
        ("127.0.0.1:4040:example.com:8000", {"key": "example.com:8000"}),
        ("127.0.0.1:4040:example.com/api,5", {"key": "example.com/api", "modifier1": 5}),
        ("10.0.0.7:3031=127.0.0.1:4040:k", {"address": "10.0.0.7:3031", "key": "k"}),
        (":3031=127.0.0.1:4040:k", {"address": ":3031", "key": "k"}),
        ("*:3031=127.0.0.1:4040:k", {"address": "*:3031", "key": "k"}),
        ("[*]:3031=127.0.0.1:4040:k", {"address": "[*]:3031", "key": "k"}),
        ("[::1]:3031=127.0.0.1:4040:k", {"address": "[::1]:3031", "key": "k"}),
        ("@name=127.0.0.1:4040:k", {"address": "@name", "key": "k"}),
        ("/run/a.sock=127.0.0.1:4040:k", {"address": "/run/a.sock", "key": "k"}),
        ("a.example:3031=127.0.0.1:4040:k", {"address": "a.example:3031", "key": "k"}),
        ("127.0.0.1:4040:@/etc/keys.txt", {"key_file": "/etc/keys.txt"}),
        ("127.0.0.1:4040:@/etc/a,b.txt", {"key_file": "/etc/a,b.txt"}),
        # Split at the first '=', wherever it stands: a key that holds one needs an address.
        ("10.0.0.7:1=127.0.0.1:4040:a=b", {"address": "10.0.0.7:1", "key": "a=b"}),
    ],
)
def test_subscribe_to(text: str, wanted: dict[str, object]) -> None:
    assert subscribe_to(text).settings == SubscribeSettings(SERVER, **wanted)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "server"),
    [
        ("/run/subs.sock:k", Endpoint("unix", "/run/subs.sock", path="/run/subs.sock")),
        ("./subs.sock:k", Endpoint("unix", "./subs.sock", path="./subs.sock")),
        ("[::1]:4040:k", Endpoint("tcp", "[::1]:4040", host="::1", port=4040)),
        ("gw.example:4040:k", Endpoint("tcp", "gw.example:4040", host="gw.example", port=4040)),
        (":4040:k", Endpoint("tcp", ":4040", host="127.0.0.1", port=4040)),
    ],
)
def test_servers(text: str, server: Endpoint) -> None:
    assert subscribe_to(text).settings == SubscribeSettings(server, key="k")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("127.0.0.1:4040", "the key is missing; expected SERVER:KEY, as in"),
        ("127.0.0.1:4040:", "the key is missing"),
        ("/run/subs.sock", "the key is missing"),
        ("127.0.0.1:4040:,3", "the key is missing"),
        ("example.com", "names no server; expected HOST:PORT:KEY"),
        ("", "names no server"),
        ("@abstract:1:k", "is no datagram address"),
        ("127.0.0.1:x:k", "'x' is not a port"),
        ("127.0.0.1:0:k", "'0' is not a port"),
        ("127.0.0:4040:k", "is not an IPv4 address"),
        ("[::1:4040:k", "names no server"),
        ("127.0.0.1:4040:a b", "visible ASCII"),
        ("127.0.0.1:4040:bücher.example", "visible ASCII"),
        (f"127.0.0.1:4040:{'k' * 256}", "256 characters; at most 255"),
        ("127.0.0.1:4040:k,300", "'300' is out of range"),
        ("127.0.0.1:4040:k,1_0", "'1_0' is not a number"),
        ("127.0.0.1:4040:k,", "the modifier is missing after 'k'; expected KEY,MODIFIER1"),
        ("127.0.0.1:4040:k,,sha256:/k", "write 0 before the signature"),
        ("127.0.0.1:4040:k,0,sha256", "expected DIGEST:PRIVATE_KEY_FILE"),
        ("127.0.0.1:4040:k,0,sha256:", "expected DIGEST:PRIVATE_KEY_FILE"),
        ("127.0.0.1:4040:k,0,sha256:/not/there.pem", "/not/there.pem: No such file"),
        ("127.0.0.1:4040:@", "the file name is missing after '@'"),
        ("=0", "expected =N=SERVER:KEY"),
        ("=x=127.0.0.1:4040:k", "expected =N=SERVER:KEY"),
        ("3031=127.0.0.1:4040:k", "before the first '=' stands the announced address: '3031'"),
        ("*:0=127.0.0.1:4040:k", "'0' is not a port"),
        (f"/{'x' * 120}=127.0.0.1:4040:k", "121 bytes; at most 107"),
        ("/a b=127.0.0.1:4040:k", "visible ASCII"),
    ],
)
def test_what_uwsgi_passes_over_is_an_error(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]+$") as caught:
        subscribe_to(text)
    assert message in str(caught.value)


def test_errors_name_the_line() -> None:
    (error,) = ini_errors("# a comment\nsubscribe-to = 127.0.0.1:4040\n")
    assert error.startswith("standard input:3: subscribe-to: the key is missing")


def test_signature_and_its_key_file(tmp_path: Path) -> None:
    pem = tmp_path / "private:key.pem"
    pem.write_text("")
    found = subscribe_to(f"127.0.0.1:4040:k,3,SHA256:{pem}").settings
    assert (found.modifier1, found.sign_digest, found.sign_key) == (3, "SHA256", str(pem))
    found = subscribe2(f"server=127.0.0.1:4040,key=k,sign=sha1:{pem}").settings
    assert (found.sign_digest, found.sign_key) == ("sha1", str(pem))


def test_subscribe2_with_everything() -> None:
    text = (
        r"server=127.0.0.1:4040,key=k,addr=10.0.0.7:1,weight=4,modifier1=1,modifier2=2,backup=3"
        r",algo=lrc,proto=http,check=/maintenance\,now,sni_key=/k.pem,sni_crt=/c.pem,sni_ca=!/a.pem"
        r",vassal=one.ini,inactive=1"
    )
    assert subscribe2(text).settings == SubscribeSettings(
        SERVER, "k", address="10.0.0.7:1", weight=4, modifier1=1, modifier2=2, backup=3,
        algo="lrc", protocol="http", check="/maintenance,now", sni_key="/k.pem",
        sni_crt="/c.pem", sni_ca="!/a.pem", vassal="one.ini", clearable=True,
    )  # fmt: skip


def test_subscribe2_address_is_an_alias_and_any_path_is_a_server() -> None:
    found = subscribe2("address=:9,key=k,server=subs.sock").settings
    assert (found.address, found.server.kind, found.server.path) == (":9", "unix", "subs.sock")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' has no '='"),
        ("key=k", "server= is missing"),
        ("server=127.0.0.1:4040", "key= is missing"),
        ("server=127.0.0.1:4040,key=", "key: the key is missing"),
        ("server=@x,key=k", "server: '@x' is no datagram address"),
        ("server=127.0.0.1:4040,key=k,wieght=2", "'wieght' is not known; did you mean weight?"),
        ("server=127.0.0.1:4040,key=k,zzz=2", "'zzz' is not known; expected one of server, key"),
        ("server=127.0.0.1:4040,key=k,weight=0x1", "weight: '0x1' is not a number"),
        ("server=127.0.0.1:4040,key=k,weight=2,weight=3", "weight is given twice"),
        ("server=127.0.0.1:4040,key=k,addr=:1,address=:2", "address is given twice"),
        ("server=127.0.0.1:4040,key=k,algo=fastest", "algo: 'fastest' is not known"),
        ("server=127.0.0.1:4040,key=k,sni_key=/k", "belong together"),
        ("server=127.0.0.1:4040,key=k,check=", "check: a file name is missing"),
        ("server=127.0.0.1:4040,key=k,sni_key=/\x01,sni_crt=/c", "sni_key: '/\\x01' is not a path"),
    ],
)
def test_subscribe2_errors(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]+$") as caught:
        subscribe2(text)
    assert message in str(caught.value)


def test_order_aliases_and_scalars() -> None:
    found = announced(
        "subscribe2 = server=127.0.0.1:4040,key=late\n"
        "st = 127.0.0.1:4040:one\nsubscribe = 127.0.0.1:4040:two\nsubscribe-to = 127.0.0.1:4040:3\n"
        "subscribe-freq = 5\nsubscribe-with-modifier1 = 9\nweight = 7\nstart-unsubscribed = 1\n"
        "unsubscribe-on-graceful-reload = 1\nsubscription-clear-on-shutdown = 1\n"
        "notify-socket = /run/n.sock\n"
    )
    assert [entry.key for entry in found.entries] == ["one", "two", "3", "late"]
    assert [entry.clearable for entry in found.entries] == [False, False, False, True]
    assert (found.frequency, found.modifier1, found.weight) == (5.0, 9, 7)
    assert found.start_unsubscribed
    assert found.unsubscribe_on_reload
    assert found.clear_on_shutdown
    assert found.notify_socket == found.announced_notify_socket == "/run/n.sock"


def test_defaults() -> None:
    assert announced("") == AnnounceSettings()


def test_the_announced_notify_socket_may_be_another() -> None:
    found = announced("notify-socket = n.sock\nsubscription-notify-socket = ../n.sock\n")
    assert found.notify_socket == os.path.abspath("n.sock")
    assert found.announced_notify_socket == "../n.sock"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"notify-socket = /{'n' * 101}", "102 bytes; servers take 101"),
        ("notify-socket =", "a file name is missing"),
        ("subscribe-freq = 0", "'0' is out of range"),
        ("subscribe-with-modifier1 = 256", "'256' is out of range"),
        ("weight = -1", "'-1' is negative"),
        ("subscribe-to = =1=127.0.0.1:4040:k\nshared-socket = :1", "no shared-socket number 1; 1"),
        ("subscribe2 = server=127.0.0.1:1,key=k,socket=0", "no socket number 0; 0 are given"),
        (
            "socket = 3031\nsubscribe2 = server=127.0.0.1:1,key=k,socket=0",
            "socket number 0: '3031' is not an address",
        ),
    ],
)
def test_errors_of_the_whole(text: str, message: str) -> None:
    assert any(message in error for error in ini_errors(text))


def test_a_relative_notify_socket_counts_in_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("d" * 90)
    deep.mkdir()
    monkeypatch.chdir(deep)
    (error,) = errors_of(*BASE, "--notify-socket", "n.sock")
    assert "has more than 101 bytes, which no server takes" in error


def test_shared_sockets_and_sockets_by_number() -> None:
    assert only("shared-socket = :1\nst = =0=127.0.0.1:4040:k").address == "=0"
    text = "socket = 10.0.0.7:3031\nsubscribe2 = server=127.0.0.1:1,key=k,addr=:9,socket=0"
    assert only(text).address == "10.0.0.7:3031"


def test_relative_paths_mean_the_directory_of_the_start() -> None:
    entry = only("subscribe2 = server=s.sock,key=k,check=c")
    assert entry.server.path == os.path.abspath("s.sock")
    assert entry.check == os.path.abspath("c")
    assert only("st = 127.0.0.1:1:@keys").key_file == os.path.abspath("keys")


def test_no_warning_for_what_works_now() -> None:
    words = ("--st", "127.0.0.1:4040:k", "--weight", "3", "--start-unsubscribed")
    assert warnings_of(*BASE, *words) == []


_PIECES = strategies.lists(
    strategies.sampled_from(
        ["=", ":", ",", "@", "/", "*", "[", "]", "\\", "0", "4040", "127.0.0.1", "::1", "key",
         "server", "weight", "addr", "sign", "sha256", "\n", "\0", "\udcff", "\ud800", "é", " "]
    ),
    max_size=14,
)  # fmt: skip


@given(_PIECES.map("".join))
def test_any_text_is_a_subscription_or_a_value_error(text: str) -> None:
    for parse in (subscribe_to, subscribe2):
        try:
            found = parse(text).settings
        except ValueError:
            continue
        assert found.key or found.key_file
        assert found.server.kind in ("tcp", "unix")


@given(_PIECES.map("".join))
def test_what_is_taken_can_be_sent(text: str) -> None:
    """What the configuration takes as key and address fits into a packet."""
    try:
        found = subscribe_to(f"{text}=127.0.0.1:4040:k").settings
    except ValueError:
        return
    if not found.address.startswith(("*:", "[*]:")) and "%" not in found.address:
        packet = Announcement(found.key, found.address or "127.0.0.1:1")
        assert decode(encode(packet)) == packet
