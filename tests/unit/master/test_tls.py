"""The master's part of TLS: what it makes, what it hears, what it changes with time."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.certificates import Authority
from support.certificates import Pair as Files
from support.waiting import DEADLINE, free_port

from uwgate.config.settings import Endpoint, HttpSettings, ListenerSettings, Settings
from uwgate.config.settings_tls import (
    CacheSettings,
    ListenerTls,
    PairSettings,
    SessionSettings,
    SniSettings,
    TicketSettings,
    TlsSettings,
)
from uwgate.master.errors import StartError
from uwgate.master.logs import MainLog
from uwgate.master.loop import Loop
from uwgate.master.tls import Tls
from uwgate.protocols.cache_sync import Update, encode

CACHE = CacheSettings(name="ssl", items=100, blocksize=4096, keysize=64)
KEY = b"k" * 32


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """A certificate for localhost."""
    return Authority(tmp_path_factory.mktemp("ca")).issue("localhost")


class Master:
    """A `Tls` and its loop."""

    def __init__(self, settings: Settings, log: Path) -> None:
        self.path = log
        self.log = MainLog(str(log))
        self.loop = Loop(self.log)
        self.tls = Tls(settings, self.loop, self.log)

    def turn_until(self, condition: Callable[[], object]) -> None:
        """Handle events until it is so."""
        limit = time.monotonic() + DEADLINE
        while not condition():
            assert time.monotonic() < limit, self.lines
            self.loop.run_once(0.05)

    @property
    def lines(self) -> str:
        return self.path.read_text()

    def close(self) -> None:
        self.tls.close()
        self.loop.close()
        self.log.close()


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[[Settings], Master]]:
    made: list[Master] = []

    def start(settings: Settings) -> Master:
        made.append(Master(settings, tmp_path / f"log{len(made)}"))
        return made[-1]

    yield start
    for master in made:
        master.close()


def of(files: Files, **tls: Any) -> Settings:
    """Settings of one TLS listener."""
    pair = PairSettings(str(files.cert), str(files.key))
    endpoint = Endpoint("tcp", "127.0.0.1:0", host="127.0.0.1")
    listener = ListenerSettings(endpoint, tls=ListenerTls(pair, "http-test"))
    return Settings(http=HttpSettings((listener,), tls=TlsSettings(**tls)))


class Client:
    """A TLS 1.2 client in memory that comes back with the session of its last handshake."""

    def __init__(self) -> None:
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.context.check_hostname = False
        self.context.verify_mode = ssl.CERT_NONE
        self.context.maximum_version = ssl.TLSVersion.TLSv1_2
        self.session: ssl.SSLSession | None = None

    def resumes(self, context: ssl.SSLContext) -> bool:
        """Whether a handshake went on with the session."""
        there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = self.context.wrap_bio(back, there, session=self.session)
        server = context.wrap_bio(there, back, server_side=True)
        for end in (client, server, client, server, client):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                pass
        self.session = client.session
        assert self.session is not None
        return bool(client.session_reused)


def context_of(master: Master) -> ssl.SSLContext:
    """What a connection without a name would get."""
    settings = master.tls._settings.http
    assert settings is not None
    listener = settings.listeners[0].tls
    assert listener is not None
    context = master.tls.terminators["http"].choose(listener, "")
    assert context is not None
    return context.ssl


def test_nothing_is_made_where_nothing_is_asked_for(make: Callable[[Settings], Master]) -> None:
    master = make(Settings())
    master.tls.prepare()
    master.tls.start()
    assert master.tls.terminators == {}
    assert master.tls.snapshot() == []
    assert master.lines == ""


def test_one_line_says_what_is_shared(
    files: Files, make: Callable[[Settings], Master]
) -> None:
    master = make(of(files))
    master.tls.prepare()
    assert list(master.tls.terminators) == ["http"]
    (line,) = master.lines.splitlines()
    assert f"with {ssl.OPENSSL_VERSION}, no session ids, a new ticket key every 3600 s" in line
    sessions = SessionSettings(cache="ssl")
    settings = of(files, sessions=sessions, tickets=TicketSettings(enabled=False))
    master = make(replace(settings, caches=(CACHE,)))
    master.tls.prepare()
    assert "cache ssl: 100 items of 4096 bytes" in master.lines
    assert "session ids in cache ssl, no tickets" in master.lines


def test_addresses_of_stores_are_not_logged(
    files: Files, make: Callable[[Settings], Master]
) -> None:
    url = "redis://:secret@127.0.0.1:1/0"
    settings = of(files, sessions=SessionSettings(url=url), tickets=TicketSettings(source=url))
    master = make(settings)
    master.tls.prepare()
    assert "session ids in the distributed store" in master.lines
    assert "ticket keys from the distributed store" in master.lines
    assert "secret" not in master.lines


def test_every_old_protocol_has_a_loud_line(
    files: Files, make: Callable[[Settings], Master]
) -> None:
    master = make(of(files, enable_sslv3=True, enable_tlsv1=True, enable_tlsv11=True))
    master.tls.prepare()
    for option in ("ssl-enable-sslv3", "ssl-enable-tlsv1:", "ssl-enable-tlsv11"):
        assert sum("***" in line and option in line for line in master.lines.splitlines()) == 1


def test_a_bad_certificate_is_no_start(files: Files, make: Callable[[Settings], Master]) -> None:
    broken = replace(files, cert=files.key)
    with pytest.raises(StartError, match=str(files.key)) as caught:
        make(of(broken)).tls.prepare()
    assert "\n" not in str(caught.value)


def test_a_bad_file_of_ticket_keys_is_no_start(
    files: Files, make: Callable[[Settings], Master], tmp_path: Path
) -> None:
    path = tmp_path / "keys"
    path.write_bytes(b"short")
    with pytest.raises(StartError, match="ssl-ticket-keys"):
        make(of(files, tickets=TicketSettings(source=str(path)))).tls.prepare()


def test_a_bad_name_is_left_out(files: Files, make: Callable[[Settings], Master]) -> None:
    pair = PairSettings("/nowhere.crt", str(files.key))
    master = make(of(files, sni=(SniSettings("a.example", pair),)))
    master.tls.prepare()
    assert "a.example" in master.lines
    assert "/nowhere.crt" in master.lines
    assert list(master.tls.terminators) == ["http"]


def test_an_address_in_use_is_no_start(make: Callable[[Settings], Master]) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(StartError, match=f"^cache ssl: udp {address}: address already in use"):
            make(Settings(caches=(replace(CACHE, udp=(address,)),))).tls.prepare()


def test_changes_of_other_machines_are_applied_and_counted(
    make: Callable[[Settings], Master],
) -> None:
    """Without any TLS listener: a cache is a cache."""
    address = ("127.0.0.1", free_port())
    settings = replace(CACHE, udp=(f"127.0.0.1:{address[1]}",))
    master = make(Settings(caches=(settings,)))
    master.tls.prepare()
    master.tls.start()
    cache = master.tls.caches["ssl"]

    def counts() -> dict[str, int]:
        (shown,) = master.tls.snapshot()
        sync: dict[str, int] = shown["sync"]
        return sync

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.sendto(encode(Update(KEY, b"value", int(time.time()) + 100)), address)
        other.sendto(encode(Update(b"old", b"value", int(time.time()) - 100)), address)
        master.turn_until(lambda: counts()["received"] == 2)
        assert cache.get(KEY) == b"value"
        assert cache.get(b"old") is None
        other.sendto(b"nonsense", address)
        other.sendto(encode(Update(KEY, None)), address)
        master.turn_until(lambda: counts()["received"] == 4)
        assert cache.get(KEY) is None
        assert counts() == {"received": 4, "refused": 1}
    (shown,) = master.tls.snapshot()
    assert (shown["name"], shown["hits"], shown["miss"]) == ("ssl", 1, 2)


def test_only_caches_with_other_machines_show_datagrams(
    make: Callable[[Settings], Master],
) -> None:
    lonely, telling = CACHE, replace(CACHE, name="b", nodes=(f"127.0.0.1:{free_port()}",))
    master = make(Settings(caches=(lonely, telling)))
    master.tls.prepare()
    assert [("sync" in each) for each in master.tls.snapshot()] == [False, True]
    assert list(master.tls.senders) == ["b"]


def test_ticket_keys_change_with_time_and_old_tickets_stay_good(
    files: Files, make: Callable[[Settings], Master]
) -> None:
    sessions = SessionSettings(timeout=60)
    master = make(of(files, tickets=TicketSettings(rotate=0.2), sessions=sessions))
    master.tls.prepare()
    tickets = master.tls._tickets
    assert tickets is not None
    context, client = context_of(master), Client()
    assert not client.resumes(context)
    master.tls.start()
    master.turn_until(lambda: len(tickets) >= 3)
    assert client.resumes(context)


def test_a_changed_file_of_ticket_keys_is_read(
    files: Files, make: Callable[[Settings], Master], tmp_path: Path
) -> None:
    path = tmp_path / "keys"
    path.write_bytes(os.urandom(80))
    path.chmod(0o600)
    master = make(of(files, tickets=TicketSettings(source=str(path))))
    master.tls.prepare()
    master.tls.start()
    tickets = master.tls._tickets
    assert tickets is not None
    context, client = context_of(master), Client()
    assert not client.resumes(context)
    fresh = tmp_path / "fresh"
    fresh.write_bytes(os.urandom(80) + path.read_bytes())
    fresh.chmod(0o600)
    fresh.rename(path)
    master.turn_until(lambda: len(tickets) == 2)
    assert client.resumes(context)
    path.unlink()
    master.turn_until(lambda: "stay as they are" in master.lines)
    assert len(tickets) == 2


def test_without_tls_nothing_of_it_is_loaded() -> None:
    """It took half the time of a start, and a third of the memory."""
    code = (
        "import sys, uwgate.master.supervisor\n"
        "assert 'uwgate.master.tls' in sys.modules\n"
        "heavy = {'redis', 'cryptography', 'uwgate.tls.terminator', 'uwgate.tls.openssl'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
