"""The pure parts of the TLS benchmarks, and its client against a server whose answers are known."""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import ssl
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from benchmarks import certificates, tls, tls_abuse, tls_client, workloads
from benchmarks.app import HELLO
from benchmarks.origins import Origin
from benchmarks.peers import PEERS, Setup
from benchmarks.tls_client import Load, TlsClientError, TlsResult
from uwgate.protocols.tls_hello import HelloError, parse_hello

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\nConnection: close\r\n\r\n" + HELLO
RESULT = TlsResult(10, 10, 1000, 2.0, 900.0, 1800.0, ("A",), ())


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> certificates.Pair:
    return certificates.make(tmp_path_factory.mktemp("pair"))


def server_context(pair: certificates.Pair) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.cert, pair.key)
    return context


@contextlib.contextmanager
def serving(contexts: Iterator[ssl.SSLContext], answer: bytes = ANSWER) -> Iterator[int]:
    """A server of one request a connection, each with the next context; its port."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    raw, _ = listening.accept()
                except OSError:
                    return
                context = next(contexts)
                with (
                    contextlib.suppress(OSError),
                    context.wrap_socket(raw, server_side=True) as sock,
                ):
                    sock.recv(4096)
                    sock.sendall(answer)
                    sock.unwrap()

        thread = threading.Thread(target=serve)
        thread.start()
        yield int(listening.getsockname()[1])
        listening.shutdown(socket.SHUT_RDWR)
        thread.join()


# --- the client -----------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["1.2", "1.3"])
@pytest.mark.parametrize("resume", [False, True])
def test_the_client_knows_what_its_handshakes_were(
    pair: certificates.Pair, version: str, resume: bool
) -> None:
    with serving(itertools.repeat(server_context(pair))) as port:
        found = Load(port, 4, version, resume=resume).run(0.7)
    assert found.errors == ()
    assert found.requests > 4
    assert found.size == found.requests * len(ANSWER)
    assert found.resumed == (found.requests if resume else 0)
    assert 0 < found.p50 <= found.p99
    assert tls_client.faults(found, resume=resume) == []


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_a_server_that_resumes_nothing_is_found_out(pair: certificates.Pair, version: str) -> None:
    with serving(server_context(pair) for _ in itertools.count()) as port:
        found = Load(port, 2, version, resume=True).run(0.1)
    (fault,) = tls_client.faults(found, resume=True)
    assert fault == f"0 of {found.requests} handshakes were resumed"


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (ANSWER.replace(b"200 OK", b"502 Bad"), "no 200"),
        (ANSWER[:-1], "wrong bodies"),
        (b"", "no 200"),
    ],
)
def test_wrong_answers_are_faults(pair: certificates.Pair, answer: bytes, error: str) -> None:
    with serving(itertools.repeat(server_context(pair)), answer) as port:
        found = Load(port, 2, "1.3", resume=False).run(0.1)
    assert found.requests == 0
    assert any(error in each for each in tls_client.faults(found, resume=False))


def test_a_version_that_the_server_refuses_is_a_fault(pair: certificates.Pair) -> None:
    context = server_context(pair)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    with serving(itertools.repeat(context)) as port:
        found = Load(port, 2, "1.2", resume=False).run(0.1)
    assert any("broken connections" in each for each in tls_client.faults(found, resume=False))


def test_faults_of_reports() -> None:
    assert tls_client.faults(RESULT, resume=True) == []
    assert tls_client.faults(replace(RESULT, resumed=9), resume=True) != []
    assert tls_client.faults(RESULT, resume=False) != []
    assert tls_client.faults(replace(RESULT, requests=0, resumed=0), resume=True) != []
    assert tls_client.faults(replace(RESULT, errors=("1 x",)), resume=True) == ["1 x"]


def test_reports_are_read_as_they_are_written() -> None:
    assert tls_client.parse(json.dumps(asdict(RESULT))) == RESULT
    for text in ("", "[]", "{}", '{"requests": 1}'):
        with pytest.raises(TlsClientError, match="bad report"):
            tls_client.parse(text)


# --- certificates and set-ups ---------------------------------------------------------------------


def test_certificates_of_a_directory_can_be_loaded(tmp_path: Path) -> None:
    names = certificates.fill(tmp_path / "many", 3)
    assert len(set(names)) == 3
    for name in names:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(
            tmp_path / "many" / f"{name}.crt", tmp_path / "many" / f"{name}.key"
        )
    assert len(list((tmp_path / "many").iterdir())) == 6


def test_all_contenders_get_the_same_certificate(pair: certificates.Pair, tmp_path: Path) -> None:
    setup = Setup(tmp_path, 8443, "http", Origin(http=9000), False, pair=pair)
    assert (
        f"--https=127.0.0.1:8443,{pair.cert},{pair.key}".replace("=", " ", 1).split()
        == (PEERS["uwgate"].arguments(setup)[:2])
    )
    PEERS["nginx"].arguments(setup)
    nginx = (tmp_path / "nginx.conf").read_text()
    assert "listen 127.0.0.1:8443 ssl" in nginx
    assert f"ssl_certificate {pair.cert};" in nginx
    PEERS["haproxy"].arguments(setup)
    assert f"ssl crt {pair.both}" in (tmp_path / "haproxy.cfg").read_text()
    PEERS["nginx"].arguments(replace(setup, pair=None))
    assert "ssl" not in (tmp_path / "nginx.conf").read_text()


def test_the_rows_of_handshakes() -> None:
    rows = {row.name: row for row in workloads.select(["tls-*"])[0]}
    shakes = {f"tls-{kind}-{version}" for kind in ("full", "resumed") for version in ("12", "13")}
    assert set(rows) == {"tls-keepalive", "tls-10m", "tls-static-10m", *shakes}
    assert all(row.tls for row in rows.values())
    assert rows["tls-resumed-12"].handshake == workloads.Handshake("1.2", True)
    assert rows["tls-resumed-12"].limits == {"nginx": 1.5}
    assert rows["tls-full-13"].handshake == workloads.Handshake("1.3", False)


# --- abuse ----------------------------------------------------------------------------------------


def test_kinds_of_abuse_are_mixed_as_they_should() -> None:
    found = Counter(tls_abuse.kinds(2000, 100))
    assert {kind: found[kind] for kind in tls_abuse.STALLED} == {
        kind: 20 * share for kind, share in tls_abuse.STALLED.items()
    }
    assert {kind: found[kind] for kind in tls_abuse.NONSENSE} == dict.fromkeys(
        tls_abuse.NONSENSE, 25
    )
    early = Counter(list(tls_abuse.kinds(2000, 100))[:200])
    assert set(early) == {*tls_abuse.STALLED, *tls_abuse.NONSENSE}


def test_what_abuse_sends() -> None:
    hello = tls_abuse.client_hello()
    parsed = parse_hello(tls_abuse.opening("shaken", hello))
    assert parsed is not None
    assert parsed.server_name == certificates.HOST
    assert parse_hello(tls_abuse.opening("half", hello)) is None
    assert parse_hello(tls_abuse.opening("trickle", hello)) is None
    assert len(tls_abuse.opening("huge", hello)) > 100_000
    assert tls_abuse.opening("silent", hello) == b""
    for kind, reason in (("garbage", "malformed"), ("huge", "too-large"), ("http", "http")):
        with pytest.raises(HelloError) as caught:
            parse_hello(tls_abuse.opening(kind, hello))
        assert caught.value.reason == reason


def test_who_is_never_closed_is_left(pair: certificates.Pair) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=200) as listening:
        found = tls_abuse.storm(listening.getsockname()[1], 20, 4, 0.2)
    assert (found.left, sum(found.opened.values())) == (24, 24)
    assert found.lives == {}


@pytest.mark.parametrize("allowed", [False, True])
def test_renegotiation_is_tried_and_its_outcome_known(
    pair: certificates.Pair, allowed: bool, tmp_path: Path
) -> None:
    argv = [
        "openssl",
        "s_server",
        "-cert",
        str(pair.cert),
        "-key",
        str(pair.key),
        "-tls1_2",
        "-rev",
    ]
    argv += ["-accept", "127.0.0.1:0"] + (["-client_renegotiation"] if allowed else [])
    try:
        server = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    except FileNotFoundError:
        pytest.skip("needs openssl")
    with server:
        assert server.stdout is not None
        line = next(line for line in server.stdout if line.startswith(b"ACCEPT"))
        try:
            found = tls_abuse.renegotiations(int(line.rpartition(b":")[2]), 1)
        finally:
            server.kill()
    assert found == (1, int(allowed))


# --- command line ---------------------------------------------------------------------------------


def test_parts_by_pattern() -> None:
    assert tls.arguments(["--only", "h*,names"]).parts == ["hits", "names"]
    assert tls.arguments([]).parts == list(tls.PARTS)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--only", "speed"], "no part is called 'speed'"),
        (["--rounds", "0"], "at least 1"),
        (["--stalled", "1"], "at least 100"),
        (["--certificates", "10"], "1000"),
    ],
)
def test_bad_words(words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        tls.arguments(words)
    assert complaint in capsys.readouterr().err
