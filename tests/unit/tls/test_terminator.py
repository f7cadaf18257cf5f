"""Which context a connection gets, of all that there are."""

from __future__ import annotations

import gc
import ssl
import time
import weakref
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from openssl_tools import VERSIONS, visit
from support.certificates import Authority, Pair
from terminator_tools import Directory, Worker, listener, of, sni

from uwgate.config.settings_tls import SessionSettings, TicketSettings, TlsSettings
from uwgate.protocols.tls_hello import ClientHello
from uwgate.tls.contexts import domain_of
from uwgate.tls.errors import TlsError
from uwgate.tls.redis_store import RedisStore
from uwgate.tls.terminator import Terminator
from uwgate.tls.tickets import TicketKeys

NODE = "10.0.0.1:3031"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def files(authority: Authority) -> Pair:
    """Of the listener."""
    return authority.issue("localhost", "*.covered.example")


@pytest.fixture
def directory(tmp_path: Path, authority: Authority) -> Directory:
    return Directory(tmp_path / "sites", authority)


def test_one_lookup_over_all(authority: Authority, files: Pair, directory: Directory) -> None:
    issue = authority.issue
    directory.put("dir.example")
    directory.put("*.wild.example", "wild")
    it = Worker(
        TlsSettings(
            sni=(
                sni("a.example", issue("exact")),
                sni("*.a.example", issue("one")),
                sni(".a.example", issue("any")),
            ),
            sni_regexps=(sni(r"^r\d+\.", issue("regexp")),),
            sni_dirs=(str(directory.path),),
        ),
        [listener(of(files))],
    )
    announced = issue("announced")
    it.terminator.announce("s.example:443", NODE, str(announced.cert), str(announced.key), "")
    expected = {
        "": "localhost",
        "a.example": "exact",
        "x.a.example": "one",
        "y.x.a.example": "any",
        "r2.example": "regexp",
        "dir.example": "dir.example",
        "x.wild.example": "wild",
        "s.example": "announced",
        "other.example": "localhost",
        "../sites/dir.example": "localhost",
    }
    for _ in range(2):  # the second time from memory
        assert {name: it.shown(name) for name in expected} == expected
    assert it.said() == []


def test_a_certificate_costs_nothing_until_asked_for(files: Pair, directory: Directory) -> None:
    for number in range(20):
        directory.put(f"{number}.example", parts=("crt",) if number else ("crt", "key"))
    it = Worker(TlsSettings(sni_dirs=(str(directory.path),)), [listener(of(files))])
    it.terminator.announce("a.example", NODE, "/missing.crt", "/missing.key", "")
    assert it.alive == 1
    assert it.shown("0.example") == "0.example"
    assert it.alive == 2


@pytest.mark.parametrize(
    ("name", "plain", "strict"),
    [
        ("", "localhost", ""),
        ("localhost", "localhost", "localhost"),
        ("a.covered.example", "localhost", "localhost"),
        ("b.a.covered.example", "localhost", ""),
        ("other.example", "localhost", ""),
        ("exact.example", "exact", "exact"),
        ("broken.example", "localhost", ""),
    ],
)
def test_names_without_a_certificate(
    authority: Authority, files: Pair, name: str, plain: str, strict: str
) -> None:
    settings = TlsSettings(sni=(sni("exact.example", authority.issue("exact")),))
    for sni_strict, expected in ((False, plain), (True, strict)):
        it = Worker(replace(settings, sni_strict=sni_strict), [listener(of(files))])
        it.terminator.announce("broken.example", NODE, "/missing.crt", "/missing.key", "")
        assert it.shown(name) == expected
        it.second()
        assert it.shown(name) == expected


# --- at the start ---------------------------------------------------------------------------------


def test_a_listener_has_to_work(authority: Authority, files: Pair) -> None:
    missing = replace(of(files), key="/missing.key")
    for context, text in (
        ("http-127.0.0.1:443", "https = 127.0.0.1:443,…: key /missing.key: no such file"),
        ("shop", "https (shop): key /missing.key: no such file"),
    ):
        with pytest.raises(TlsError) as caught:
            Worker(TlsSettings(), [listener(of(files)), listener(missing, context)])
        assert str(caught.value).startswith(text)
    with pytest.raises(TlsError, match="client CA /missing: no such file"):
        Worker(TlsSettings(), [listener(of(files, ca="/missing"))])


def test_a_name_that_does_not_work_is_passed_over(authority: Authority, files: Pair) -> None:
    other = authority.issue("other")
    broken = replace(files, key=other.key)
    it = Worker(
        TlsSettings(
            sni=(sni("a.example", broken), sni("b.example", other)),
            sni_regexps=(sni("^r", broken), sni("^ra", other)),
        ),
        [listener(of(files)), listener(of(files), "two")],
    )
    lines = it.said()
    assert len(lines) == 2
    for line, source in zip(lines, ("sni a.example", "sni-regexp ^r"), strict=True):
        assert line.startswith(f"DANGER: no certificate for {source}: key {other.key} does not")
    assert it.shown("a.example") == "localhost"
    assert it.shown("b.example") == "other"
    assert it.shown("ra.example") == "other"
    assert it.alive == 4
    for _ in range(2):
        it.second()
        it.shown("a.example")
    assert it.said() == []


def test_a_name_with_a_client_ca_that_does_not_work_is_closed(
    authority: Authority, files: Pair, tmp_path: Path
) -> None:
    """Without its certificate nobody is asked for his; so nobody is served. It comes back alone."""
    good = authority.issue("a.example")
    path = tmp_path / "late.crt"
    pair = replace(good, cert=path)
    settings = TlsSettings(sni=(sni("a.example", pair, ca=authority.file, required=True),))
    it = Worker(settings, [listener(of(files)), listener(of(files), "two")])
    (line,) = it.said()
    assert line.startswith(f"DANGER: no certificate for sni a.example: certificate {path}: ")
    assert line.endswith("requests for it are refused")
    for number in (0, 1):
        it.second()
        context = it.context("a.example", number)
        assert context.names[0] == "localhost"
        assert it.domain("a.example", number) not in ("", context.domain)
    assert it.said() == []
    path.write_bytes(good.cert.read_bytes())
    it.second()
    context = it.context("a.example")
    assert context.ssl.verify_mode == ssl.CERT_REQUIRED
    assert context.domain == it.domain("a.example")


def test_expired_certificates_are_said(authority: Authority, files: Pair) -> None:
    old = authority.issue("old.example", ends=-timedelta(days=1))
    it = Worker(TlsSettings(sni=(sni("old.example", old),)), [listener(of(old)), listener(of(old))])
    assert it.said() == [
        "warning: the certificate of listener http-:443 has expired",
        "warning: the certificate of listener http-:443 has expired",
        "warning: the certificate of sni old.example has expired",
    ]
    assert it.shown("old.example") == "old.example"


# --- client certificates --------------------------------------------------------------------------


def test_a_name_inherits_the_client_ca_of_its_listener(
    authority: Authority, files: Pair, directory: Directory, tmp_path: Path
) -> None:
    """A name must not be a way around it; with uWSGI it is."""
    other_ca = Authority(tmp_path, "other").file
    issue = authority.issue
    directory.put("dir.example")
    it = Worker(
        TlsSettings(
            sni=(
                sni("plain.example", issue("plain")),
                sni("own.example", issue("own"), ca=other_ca),
            ),
            sni_regexps=(sni("regexp", issue("regexp")),),
            sni_dirs=(str(directory.path),),
        ),
        [
            listener(of(files, ca=authority.file, required=True)),
            listener(of(files, ca=authority.file), "optional"),
            listener(of(files), "none"),
        ],
    )
    announced = issue("announced")
    it.terminator.announce("s.example", NODE, str(announced.cert), str(announced.key), "")
    modes = (ssl.CERT_REQUIRED, ssl.CERT_OPTIONAL, ssl.CERT_NONE)
    for name in ("plain.example", "regexp.example", "dir.example", "s.example", "", "x"):
        for number, mode in enumerate(modes):
            context = it.context(name, number)
            assert context.ssl.verify_mode == mode, name
            assert context.domain == domain_of(it.listeners[number].pair)
            assert it.domain(name, number) == context.domain
    for number in range(3):
        context = it.context("own.example", number)
        assert context.ssl.verify_mode == ssl.CERT_OPTIONAL
        assert context.domain == f"optional {other_ca}"
        assert it.domain("OWN.example.:443", number) == context.domain
    assert it.context("own.example", 0) is it.context("own.example", 2)


def test_domains_of_hosts(authority: Authority, files: Pair) -> None:
    settings = TlsSettings(sni=(sni("a.example", files, ca=authority.file, required=True),))
    it = Worker(settings, [listener(of(files))])
    asked = f"required {authority.file}"
    for host, domain in (
        ("a.example", asked), ("A.EXAMPLE:8443", asked), ("a.example.", asked), ("b.example", ""),
        ("", ""), ("[::1]:443", ""), ("x" * 5000, ""), ("a.example" + " " * 300, ""),
    ):  # fmt: skip
        for _ in range(2):
            assert it.domain(host) == domain


def test_whether_anybody_is_asked(authority: Authority, files: Pair, tmp_path: Path) -> None:
    def asked(settings: TlsSettings, **pair: object) -> bool:
        return Worker(settings, [listener(of(files, **pair))]).terminator.any_domain  # type: ignore[arg-type]

    assert not asked(TlsSettings(sni=(sni("a.example", files),)))
    assert asked(TlsSettings(), ca=authority.file)
    assert asked(TlsSettings(sni=(sni("a.example", files, ca=authority.file),)))
    assert asked(TlsSettings(sni_dirs=(str(tmp_path),)))
    it = Worker(TlsSettings(), [listener(of(files))])
    it.terminator.announce("a.example", NODE, str(files.cert), str(files.key), "")
    assert not it.terminator.any_domain
    it.terminator.announce("b.example", NODE, str(files.cert), str(files.key), f"!{authority.file}")
    assert it.terminator.any_domain
    assert it.context("b.example").ssl.verify_mode == ssl.CERT_REQUIRED


# --- bounds ---------------------------------------------------------------------------------------


def test_the_least_recently_used_goes_first(files: Pair, directory: Directory) -> None:
    for name in "abcd":
        directory.put(f"{name}.example")
    settings = TlsSettings(sni_dirs=(str(directory.path),), sni_max_contexts=3)
    it = Worker(settings, [listener(of(files))])
    a, b, c = (it.context(f"{name}.example") for name in "abc")
    assert it.context("a.example") is a
    freed = weakref.ref(b.ssl)
    del b
    assert it.shown("d.example") == "d.example"
    gc.collect()
    assert freed() is None
    assert it.alive == 1 + 3
    assert it.context("a.example") is a
    assert it.context("c.example") is c
    for _ in range(3):  # more in turn than there may be
        for name in "abcd":
            assert it.shown(f"{name}.example") == f"{name}.example"
            assert it.alive == 1 + 3
    assert it.said() == []


def test_many_names_of_one_certificate(authority: Authority, files: Pair) -> None:
    """What is remembered of names has an end."""
    settings = TlsSettings(sni=(sni(".example", authority.issue("any")),))
    it = Worker(settings, [listener(of(files))])
    for number in range(25_000):
        assert it.shown(f"{number}.example") == "any"
        it.shown(f"{number}.unknown")
        it.domain(f"{number}.example")
    parts = it.terminator._memo, it.terminator._domains
    for memos in parts:
        assert 0 < sum(map(len, memos.values())) <= 10_000
    assert len(it.terminator._misses) <= 10_000
    assert it.alive == 2


def test_looking_up_a_known_name_is_cheap(authority: Authority, files: Pair) -> None:
    """It stands before every handshake, which takes hundreds of microseconds."""
    settings = TlsSettings(sni=(sni("a.example", authority.issue("a.example")),))
    it = Worker(settings, [listener(of(files))])
    choose, door = it.terminator.choose, it.listeners[0]
    best = min(_time_of(lambda: choose(door, "a.example")) for _ in range(5))
    assert best < 20e-6


def _time_of(function: object, times: int = 1000) -> float:
    started = time.perf_counter()
    for _ in range(times):
        function()  # type: ignore[operator]
    return (time.perf_counter() - started) / times


# --- sessions -------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_sessions_of_one_worker_are_resumed_by_another(
    authority: Authority, files: Pair, directory: Directory, version: ssl.TLSVersion
) -> None:
    """Also where each made the context itself; never by another name or listener."""
    for name in ("localhost", "b.localhost"):
        directory.put(name, "localhost")
    tickets = TicketKeys(TicketSettings(), 300, print)
    settings = TlsSettings(sni_dirs=(str(directory.path),))
    doors = [listener(of(files)), listener(of(files), "other"), listener(of(files), "other")]
    workers = [Worker(settings, doors, tickets) for _ in range(2)]
    client = ssl.create_default_context(cafile=str(authority.file))
    client.minimum_version = client.maximum_version = version
    for name, others in (("localhost", ("b.localhost", "")), ("", ("localhost",))):
        one, two = (worker.context(name, 1) for worker in workers)
        assert one is not two
        session = visit(one.ssl, client)[1]
        assert visit(two.ssl, client, session)[0]
        for other in others:
            assert not visit(workers[1].context(other, 1).ssl, client, session)[0]
    assert visit(workers[1].context("", 2).ssl, client, session)[0]  # https-session-context
    assert not visit(workers[1].context("", 0).ssl, client, session)[0]


def hello(
    session_id: bytes = b"",
    ticket: bytes | None = None,
    psks: tuple[bytes, ...] = (),
    versions: tuple[int, ...] = (0x0303,),
) -> ClientHello:
    it = ClientHello(session_id, 0x0303)
    it.ticket, it.psk_identities, it.versions = ticket, psks, versions
    return it


def test_what_is_looked_up_before_a_handshake(files: Pair) -> None:
    def wanted(it: ClientHello, **settings: object) -> list[bytes]:
        tls = TlsSettings(**settings)  # type: ignore[arg-type]
        remote = RedisStore(SessionSettings(url="redis://127.0.0.1:1/0"), print)
        return Terminator(tls, [listener(of(files))], remote=remote, log=print).wants(it)

    both, ids = (0x0304, 0x0303), TicketSettings(enabled=False)
    a, b, ticket = b"a" * 32, b"b" * 32, b"t" * 160
    assert wanted(hello(a)) == [a]
    assert wanted(hello()) == []
    assert wanted(hello(a, ticket)) == []  # the id says only whether the ticket was taken
    assert wanted(hello(a, b"")) == [a]
    assert wanted(hello(a, ticket), tickets=ids) == [a]
    assert wanted(hello(a, ticket), options=int(ssl.OP_NO_TICKET)) == [a]
    assert wanted(hello(a, None, (b, ticket), both)) == [b]  # with TLS 1.3 the id means nothing
    assert wanted(hello(a, None, (), both)) == []
    assert wanted(hello(a, None, (b,), both), options=int(ssl.OP_NO_TLSv1_3)) == [a]
    assert wanted(hello(psks=tuple(bytes([n]) * 32 for n in range(200)), versions=both)) == [
        bytes([n]) * 32 for n in range(4)
    ]
    assert Worker(TlsSettings(), [listener(of(files))]).terminator.wants(hello(a)) == []


# --- statistics -----------------------------------------------------------------------------------


def test_statistics(authority: Authority, files: Pair, directory: Directory) -> None:
    directory.put("dir.example")
    exact = authority.issue("exact")
    settings = TlsSettings(sni=(sni("a.example", exact),), sni_dirs=(str(directory.path),))
    it = Worker(settings, [listener(of(files))])
    it.shown("dir.example")
    (end, other) = (int(p.certificate.not_valid_after_utc.timestamp()) for p in (files, exact))
    assert it.terminator.snapshot() == {
        "contexts": 3,
        "certificates": [
            {"source": "listener", "name": "http-:443", "not_after": end},
            {"source": "sni", "name": "a.example", "not_after": other},
        ],
    }
