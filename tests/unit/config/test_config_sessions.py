"""Sessions, tickets, the caches that hold them, HSTS, and the address of the statistics."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from config_tools import errors_of, settings_of, warnings_of
from hypothesis import given
from hypothesis import strategies as st
from tls_tools import TO, complaints, remarks, tls

from uwgate.config import cache_values, tls_values
from uwgate.config.settings import Endpoint
from uwgate.config.settings_tls import CacheSettings, SessionSettings, TicketSettings

pytestmark = pytest.mark.usefixtures("files")

USE = "ssl-sessions-use-cache"
SECRET = "0123456789abcdef"  # noqa: S105


def caches(text: str) -> tuple[CacheSettings, ...]:
    """The caches of a text beside a TLS listener."""
    stdin = f"[uwsgi]\nhttps = :443,foobar.crt,foobar.key\n{text}".encode()
    return settings_of(*TO, "-", stdin=stdin).caches


# Where sessions are kept.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", SessionSettings()),
        (f"{USE} = off", SessionSettings()),
        (f"cache = 100\n{USE}", SessionSettings("default")),
        (f"cache = 100\n{USE} = true", SessionSettings("default")),
        ("cache = 100\nssl-session-use-cache = 1", SessionSettings("default")),
        (f"cache2 = name=a,items=9\ncache2 = name=b,items=9\n{USE}", SessionSettings("a")),
        (f"cache2 = name=a,items=9\ncache = 9\n{USE} = true", SessionSettings("default")),
        (f"cache2 = name=a,items=9\ncache2 = name=b,items=9\n{USE} = b", SessionSettings("b")),
        (f"cache2 = items=9\n{USE} = default", SessionSettings("default")),
        (f"cache2 = name=true,items=9\ncache = 9\n{USE} = true", SessionSettings("true")),
        ("ssl-sessions-timeout = 600", SessionSettings(timeout=600)),
        ("ssl-session-timeout = 5m", SessionSettings(timeout=300)),
        (f"{USE} = redis://h", SessionSettings(url="redis://h")),
        (f"{USE} = Valkey://:p@h:6380/3", SessionSettings(url="redis://:p@h:6380/3")),
        (f"{USE} = valkeys://h", SessionSettings(url="rediss://h")),
        (f"{USE} = rediss://[::1]:1/", SessionSettings(url="rediss://[::1]:1/")),
        (f"{USE} = unix:///run/r.sock?db=1", SessionSettings(url="unix:///run/r.sock?db=1")),
        (
            f"{USE} = redis://h\nssl-sessions-deadline = 20ms",
            SessionSettings(url="redis://h", deadline=0.02),
        ),
    ],
)
def test_sessions(text: str, expected: SessionSettings) -> None:
    assert tls(text).sessions == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (USE, "there is no cache; add e.g. cache = 20000, cache-blocksize = 4096"),
        (
            f"{USE} = ssl",
            'there is no cache "ssl"; add e.g. cache = 20000, cache-blocksize = 4096',
        ),
        (
            f"cache = 9\ncache2 = name=a,items=9\n{USE} = ssl",
            'there is no cache "ssl"; given: default, a',
        ),
        (
            f"cache = 9\ncache-blocksize = 4095\n{USE}",
            'blocks of the cache "default" have 4095 bytes; sessions need 4096 at least',
        ),
        (
            f"cache2 = name=a,items=9,keysize=31\n{USE} = a",
            'keys of the cache "a" have 31 bytes; sessions need 32 at least',
        ),
        (
            f"{USE} = http://h",
            "http:// is not a store for sessions; expected redis://[[USER]:PASSWORD@]HOST[:PORT]"
            "[/DATABASE], rediss://… or unix:///PATH",
        ),
    ],
)
def test_no_place_for_sessions(text: str, message: str) -> None:
    assert complaints(text) == [f"{USE}: {message}"]


@pytest.mark.parametrize(
    "url",
    [
        "redis://", "redis://:geheim@", "redis://:geheim@h:x", "redis://:geheim@h:0",
        "redis://:geheim@h:65536", "redis://:geheim@h/a", "redis://:geheim@[::1", "unix://geheim",
        "unix:///", "redis://:geh eim@h", "redis://:ge/heim@h", "xyz://:geheim@h",
    ],
)  # fmt: skip
def test_bad_stores(url: str) -> None:
    for option in (USE, "ssl-ticket-keys"):
        found = complaints(f"{option} = {url}")
        assert len(found) == 1
        assert "; expected redis://" in found[0]
        assert "heim" not in found[0]


def test_a_bad_cache_is_the_only_complaint() -> None:
    assert complaints(f"cache = x\n{USE}") == [
        "cache: 'x' is not a number; expected a whole number"
    ]
    assert len(complaints(f"cache2 = name=x\n{USE} = x")) == 1


def test_long_sessions() -> None:
    assert remarks("ssl-sessions-timeout = 8d") == [
        "ssl-sessions-timeout: sessions of TLS 1.3 live for 604800 seconds at most"
    ]
    assert remarks("ssl-sessions-timeout = 7d") == []


def test_a_deadline_for_nothing() -> None:
    message = "ssl-sessions-deadline: has no effect without ssl-sessions-use-cache = redis://…"
    assert remarks("ssl-sessions-deadline = 1") == [message]


# Tickets.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", TicketSettings()),
        ("ssl-tickets = false", TicketSettings(enabled=False)),
        ("ssl-ticket-rotate = 8h", TicketSettings(rotate=28800.0)),
        ("ssl-option = 16384", TicketSettings(enabled=False)),
        ("ssl-option = 16384\nssl-tickets = true", TicketSettings(enabled=False)),
        (f"cache = 9\n{USE}", TicketSettings(enabled=False)),
        (f"cache = 9\n{USE}\nssl-tickets = true", TicketSettings()),
        (f"{USE} = redis://h", TicketSettings(enabled=False)),
        (f"{USE} = off", TicketSettings()),
        (
            f"{USE} = redis://h\nssl-ticket-keys = redis://h",
            TicketSettings(source="redis://h"),
        ),
        (
            "ssl-ticket-keys = valkey://h\nssl-tickets = no",
            TicketSettings(enabled=False, source="redis://h"),
        ),
    ],
)
def test_tickets(text: str, expected: TicketSettings) -> None:
    assert tls(text).tickets == expected


def test_files_of_ticket_keys() -> None:
    here = os.getcwd()
    Path("keys").write_text("")
    for option in ("ssl-ticket-keys", "ssl-ticket-key-file"):
        assert tls(f"{option} = keys").tickets == TicketSettings(source=f"{here}/keys")
        assert complaints(f"{option} = none") == [
            f"{option}: {here}/none: No such file or directory"
        ]
        assert complaints(f"{option} = .") == [f"{option}: {here}: is a directory"]
    assert complaints("ssl-ticket-keys =") == ["ssl-ticket-keys: a file name is missing"]


def test_ticket_options_for_nothing() -> None:
    Path("keys").write_text("")
    assert remarks("ssl-tickets = off\nssl-ticket-rotate = 9\nssl-ticket-keys = keys") == [
        "ssl-ticket-rotate: has no effect: tickets are off",
        "ssl-ticket-keys: has no effect: tickets are off",
    ]
    assert remarks("ssl-ticket-keys = keys\nssl-ticket-rotate = 9") == [
        "ssl-ticket-rotate: has no effect beside a file of keys: they change when the file does"
    ]
    assert remarks("ssl-option = 16384\nssl-tickets = true") == [
        "ssl-tickets: has no effect beside ssl-option = 16384, which switches tickets off"
    ]
    assert remarks("ssl-option = 16384\nssl-tickets = false") == []
    assert remarks("ssl-ticket-keys = redis://h\nssl-ticket-rotate = 9") == []


# Caches.


def test_the_old_cache() -> None:
    text = (
        "cache = 20000\ncache-blocksize = 4k\ncache-udp-server = 127.0.0.1:7171\n"
        "cache-udp-server = :7172\ncache-udp-node = 127.0.0.2:7171\ncache-udp-node = :7173\n"
        f"cache-secret = {SECRET}\nmulticast-ttl = 3\nmulticast-loop = 0\n"
    )
    assert caches(f"{text}{USE}") == (
        CacheSettings(
            items=20000,
            blocksize=4096,
            udp=("127.0.0.1:7171", "0.0.0.0:7172"),
            nodes=("127.0.0.2:7171", "127.0.0.1:7173"),
            secret=SECRET,
            multicast_loop=0,
            multicast_ttl=3,
        ),
    )
    assert remarks(f"{text}{USE}") == []


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("items=9", CacheSettings(items=9)),
        ("name=default,max_items=9", CacheSettings(items=9)),
        ("maxitems=9,blocksize=8k,blocks=3", CacheSettings(items=9, blocksize=8192, blocks=3)),
        ("items=9,key_size=64,hash=murmur2", CacheSettings(items=9, keysize=64, hash="murmur2")),
        ("items=9,keysize=65,hashsize=7", CacheSettings(items=9, keysize=65, hashsize=7)),
        ("items=9,hash_size=8,hash=djb33x", CacheSettings(items=9, hashsize=8)),
        (
            "items=9,udp=127.0.0.1:1; 225.1.1.1:2;,node=127.0.0.1:3",
            CacheSettings(items=9, udp=("127.0.0.1:1", "225.1.1.1:2"), nodes=("127.0.0.1:3",)),
        ),
        (
            "items=9,node=gw.example:1;[::1]:2,udp=[::]:3",
            CacheSettings(items=9, nodes=("gw.example:1", "[::1]:2"), udp=("[::]:3",)),
        ),
        (
            r"items=9,secret=0\1\2,nodes=127.0.0.1:3;127.0.0.2:4",
            CacheSettings(items=9, secret=SECRET[:3], nodes=("127.0.0.1:3", "127.0.0.2:4")),
        ),
        *(
            (f"items=9,{name}=127.0.0.1:1", CacheSettings(items=9, udp=("127.0.0.1:1",)))
            for name in ("udp_server", "udp_servers", "udpserver", "udpservers")
        ),
    ],
)
def test_cache2(value: str, expected: CacheSettings) -> None:
    assert caches(f"cache2 = {value}\n{USE}") == (expected,)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("cache = 1", "cache: '1' is out of range; expected 2 to 67108864"),
        ("cache-blocksize = 0", "cache-blocksize: '0' is out of range; expected 1 to 16777216"
         " bytes"),
        ("cache-udp-server = 10.0.0.1", "cache-udp-server: '10.0.0.1' has no port; write"
         " 10.0.0.1:PORT"),
        ("cache-udp-server = /run/x", "cache-udp-server: '/run/x' is no address for datagrams;"
         " expected HOST:PORT"),
        ("cache-udp-server = :0", "cache-udp-server: ':0' is no address for datagrams;"
         " expected HOST:PORT"),
        ("cache-udp-node = 10.0.0.1:0", "cache-udp-node: '0' is not a port; expected 1 to 65535"),
        ("cache-udp-node = [ff02::1]:1", "cache-udp-node: '[ff02::1]:1' is a group of IPv6;"
         " expected one of IPv4, or no group"),
        ("cache-secret =", "cache-secret: the secret is empty"),
        ("multicast-loop = 2", "multicast-loop: '2' is out of range; expected 0 to 1"),
        ("cache2 = name=x", "cache2: items= is missing; expected name=NAME,items=NUMBER"),
        ("cache2 = name,items=9", "cache2: name: expected printable text"),
        ("cache2 = items=many", "cache2: items: 'many' is not a number; expected a whole number"),
        ("cache2 = items=9,hash=md5", "cache2: hash: 'md5' is not known; expected one of djb33x,"
         " murmur2"),
        ("cache2 = items=9,udp=x", "cache2: udp: 'x' is no address for datagrams;"
         " expected HOST:PORT"),
        ("cache = 9\ncache2 = items=9", 'cache2: there is a cache "default" already'),
        ("cache2 = items=67108864,blocksize=16m", "cache2: 67108864 items of 16777216 bytes are"
         " more than 4398046511104 bytes"),
    ],
)  # fmt: skip
def test_bad_caches(line: str, message: str) -> None:
    assert complaints(line) == [message]


def test_what_a_cache_cannot_do() -> None:
    line = "cache2 = name=a,items=9,bitmap=1,store=/x,sync=10.0.0.1:1,item=8,items=7,xx"
    assert caches(f"{line}\n{USE}") == (CacheSettings(name="a", items=7),)
    assert remarks(f"{line}\n{USE}") == [
        "cache2: 'item' is not known; did you mean items?",
        "cache2: 'items' is given twice; the last one counts",
        "cache2: 'xx' is not known; expected name, items, blocks, blocksize, keysize, hash,"
        " hashsize, udp, nodes, secret",
        "cache2: bitmap, store, sync without effect here",
        "cache2: there is no full copy from another machine at start; only changes arrive",
    ]
    assert remarks(f"cache = 9\ncache-sync = 10.0.0.1:1\n{USE}") == [
        "cache-sync: there is no full copy from another machine at start; only changes arrive"
    ]


def test_caches_that_nothing_uses() -> None:
    text = "cache = 9\ncache2 = name=a,items=9,bitmap=1,udp=10.0.0.1:1\ncache-sync = a:1"
    unused = [
        f'{option}: nothing here uses the cache "{name}"; those of applications are uWSGI\'s'
        for option, name in (("cache", "default"), ("cache2", "a"))
    ]
    assert caches(text) == ()
    assert remarks(text) == unused
    assert [each.name for each in caches(f"{text}\n{USE} = a")] == ["a"]
    stdin = f"[uwsgi]\n{text}\n".encode()
    assert settings_of("--http", ":1", *TO, "-", stdin=stdin).caches == ()
    assert settings_of("--fastrouter", ":1", "--fastrouter-to", "a:1", "--cache", "9").caches == ()


def test_what_is_dangerous_about_an_exchange() -> None:
    clear = (
        'sessions of the cache "default" travel in clear text, and whoever can send to it changes'
        " them (as with uWSGI); between uwgate instances a secret protects them"
    )
    for line in (
        "cache-udp-server = 225.1.1.1:7171",
        "cache-udp-node = 10.0.0.1:7171",
        "cache-udp-node = [2001:db8::1]:7171",
        "cache-udp-node = gw.example:7171",
    ):
        assert remarks(f"cache = 9\n{USE}\n{line}") == [f"cache: {clear}"]
        assert remarks(f"cache = 9\n{USE}\n{line}\ncache-secret = {'x' * 16}") == []
    assert remarks(f"cache = 9\n{USE}\ncache-udp-node = :7171\ncache-secret = xyz") == [
        "cache: the secret is short; 16 random characters and more are safe"
    ]
    for here in ("127.0.0.1", "localhost", "[::1]"):
        assert remarks(f"cache2 = items=9,node={here}:7171\n{USE}") == []
    assert remarks(f"cache2 = items=9,udp=127.0.0.1:7171,node=127.0.0.1:7171\n{USE}") == [
        'cache2: the cache "default" sends its changes to itself (127.0.0.1:7171)'
    ]
    group = f"cache2 = items=9,udp=225.1.1.1:7171,node=225.1.1.1:7171,secret={'x' * 16}\n{USE}"
    assert remarks(group) == []


def test_no_stranger_plants_sessions_where_certificates_are_asked_for() -> None:
    why = (
        'cache: whoever can send to the cache "default" can plant a session in it, and resume it as'
        " any client without a certificate: a secret is needed where certificates are asked for"
    )
    hears = f"cache = 9\n{USE}\ncache-udp-server = 127.0.0.1:7171"
    for line in (
        "https = :2,foobar.crt,foobar.key,,foobar.crt",
        "sni = a.example foobar.crt,foobar.key,,!foobar.crt",
        "sni-regexp = a foobar.crt,foobar.key,,foobar.crt",
    ):
        assert complaints(f"{hears}\n{line}") == [why]
        assert remarks(f"{hears}\n{line}\ncache-secret = {'x' * 16}") == []
        assert remarks(f"cache = 9\n{USE}\ncache-udp-node = 127.0.0.1:7171\n{line}") == []
    assert remarks(f"{hears}\nsni = a.example foobar.crt,foobar.key") == []


@pytest.mark.parametrize(
    ("line", "needed"),
    [
        ("cache-blocksize = 4096", "cache"),
        ("cache-udp-server = :1", "cache"),
        ("cache-udp-node = :1", "cache"),
        ("cache-secret = x", "cache"),
        ("cache-sync = :1", "cache"),
        ("multicast-ttl = 2", "cache-udp-server or cache-udp-node or cache2"),
    ],
)
def test_options_without_a_cache(line: str, needed: str) -> None:
    name = line.partition(" ")[0]
    assert remarks(line) == [f"{name}: has no effect without {needed}"]


@given(st.text(max_size=60))
def test_nothing_but_values_errors(text: str) -> None:
    for parse in (cache_values.cache2, cache_values.receiver, cache_values.target):
        try:
            parse(text)
        except ValueError:
            pass


# Strict-Transport-Security.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("31536000", "max-age=31536000"),
        ("0", "max-age=0"),
        ("off", ""),
        ("false", ""),
        ("max-age=1", "max-age=1"),
        (' MAX-AGE = "31" ; includeSubDomains ', 'MAX-AGE = "31" ; includeSubDomains'),
        ("includeSubDomains;max-age=1;preload", "includeSubDomains;max-age=1;preload"),
        (";;max-age=1;", ";;max-age=1;"),
        ('max-age=1; note="a;b\\""', 'max-age=1; note="a;b\\""'),
    ],
)
def test_hsts(text: str, expected: str) -> None:
    assert tls_values.hsts(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' has no max-age; expected e.g. max-age=31536000"),
        ("true", "'true' has no max-age; expected e.g. max-age=31536000"),
        ("max-age", "'max-age' has no max-age; expected e.g. max-age=31536000"),
        ("max-age=x", "'max-age=x' has no max-age; expected e.g. max-age=31536000"),
        ("max-age=1; max-age=2", "max-age is given twice"),
        ("max-age=1; Preload; preload", "preload is given twice"),
        ("max-age=1; includeSubDomains=1", "includeSubDomains has no value"),
        ("max-age=1, preload", "'max-age=1, preload' is not such a value; expected"
         " max-age=SECONDS[; …]"),
        ("max-age=1\r\nX: y", "'max-age=1\\r\\nX: y' is not such a value; expected"
         " max-age=SECONDS[; …]"),
        ('max-age="1', "'max-age=\"1' is not such a value; expected max-age=SECONDS[; …]"),
    ],
)  # fmt: skip
def test_bad_hsts(text: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        tls_values.hsts(text)
    assert str(caught.value) == message


@given(st.text())
def test_hsts_can_stand_in_a_field(text: str) -> None:
    try:
        value = tls_values.hsts(text)
    except ValueError:
        return
    assert value == value.strip()
    assert value.isascii()
    assert not set(value) & {chr(number) for number in range(32) if number != 9}


# Statistics.


def test_stats_is_http_stats() -> None:
    base = ("--http", ":1", *TO)
    for option in ("stats", "stats-server"):
        assert settings_of(*base, f"--{option}", "127.0.0.1:5001").process.stats == Endpoint(
            "tcp", "127.0.0.1:5001", host="127.0.0.1", port=5001
        )
    both = (*base, "--stats", ":1", "--http-stats", ":2")
    assert settings_of(*both).process.stats == Endpoint("tcp", ":2", port=2)
    assert warnings_of(*both) == [
        "command line: stats: has no effect: an instance has its statistics at one address, and"
        " http-stats says :2 (command line)"
    ]
    assert warnings_of(*base, "--stats", ":2", "--http-stats", ":2") == []
    assert errors_of(*base, "--stats", "5001") == [
        "command line: stats: '5001' is not an address (uWSGI makes a unix socket); write :5001"
    ]
    fast = ("--fastrouter", ":1", "--fastrouter-to", "a:1", "--fastrouter-stats", ":3")
    assert settings_of(*fast, "--stats", ":4").process.stats == Endpoint("tcp", ":3", port=3)
    assert "fastrouter-stats says :3" in warnings_of(*fast, "--stats", ":4")[0]
