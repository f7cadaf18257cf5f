"""TLS with the tools of operators: names, client certificates and what a real uWSGI is told."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.certificates import Authority, Pair
from support.uwgate import Gateway, running
from support.waiting import free_port, wait_until

from interop import subscribing
from interop.peers import Peer, accepts, needs

VERSIONS = ("-tls1_2", "-tls1_3")


class Edge:
    """A gateway with one TLS listener."""

    def __init__(self, gateway: Gateway, port: int) -> None:
        self.gateway = gateway
        self.port = port

    def s_client(self, *options: str, name: str = "") -> str:
        """What ``openssl s_client`` says of a connection without a request."""
        words = ["-connect", f"127.0.0.1:{self.port}", *options]
        words += ["-servername", name] if name else ["-noservername"]
        done = subprocess.run(
            [needs("openssl"), "s_client", *words],
            input=b"",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=20,
        )
        return done.stdout.decode(errors="replace")

    def shown(self, name: str = "", *options: str) -> str:
        """Common name of the certificate that a client gets, "" if it gets none."""
        found = re.search(r"subject=CN ?= ?(\S+)", self.s_client(*options, name=name))
        return found[1] if found else ""

    def curl(self, *options: str, name: str = "one.test", path: str = "/env") -> tuple[int, str]:
        """``(status, body)``; 0 if there was no answer."""
        done = subprocess.run(
            [
                *(needs("curl"), "--silent", "--insecure", "--max-time", "20", *options),
                *("--connect-to", f"::127.0.0.1:{self.port}", "--write-out", "\n%{http_code}"),
                f"https://{name}{path}",
            ],
            capture_output=True,
            timeout=30,
        )
        body, _, status = done.stdout.decode("latin-1").rpartition("\n")
        return int(status or 0), body


@contextmanager
def edge(pair: Pair, node: str, *options: str, ca: str = "") -> Iterator[Edge]:
    """A gateway that shows ``pair`` if it knows nothing better."""
    port = free_port()
    address = f"127.0.0.1:{port},{pair.cert},{pair.key}" + (f",,{ca}" if ca else "")
    with running("--https", address, "--http-to", node, *options) as gateway:
        wait_until(lambda: accepts(f"127.0.0.1:{port}"), "the listener")
        yield Edge(gateway, port)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def default(authority: Authority) -> Pair:
    return authority.issue("default.test")


def words(pair: Pair) -> str:
    return f"{pair.cert},{pair.key}"


# --- names ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def directory(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("sni")
    for name in ("in.dir.test", "asks.dir.test"):
        pair = authority.issue(name)
        shutil.copy(pair.cert, where / f"{name}.crt")
        shutil.copy(pair.key, where / f"{name}.key")
    shutil.copy(authority.file, where / "asks.dir.test.ca")
    return where


@pytest.fixture(scope="module")
def named(
    authority: Authority, default: Pair, directory: Path, uwsgi_app: Peer
) -> Iterator[Edge]:
    issue = authority.issue
    options = ["--sni", f"exact.test {words(issue('exact.test'))}"]
    options += ["--sni", f"*.wild.test {words(issue('*.wild.test'))}"]
    options += ["--sni", f".deep.test {words(issue('deep.test'))}"]
    options += ["--sni-regexp", rf"^re[0-9]+\.test$ {words(issue('regexp.test'))}"]
    with edge(default, uwsgi_app.address, *options, "--sni-dir", str(directory)) as it:
        yield it


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("", "default.test"),
        ("exact.test", "exact.test"),
        ("EXACT.Test", "exact.test"),
        ("not.exact.test", "default.test"),
        ("a.wild.test", "*.wild.test"),
        ("a.b.wild.test", "default.test"),
        ("wild.test", "default.test"),
        ("a.b.c.deep.test", "deep.test"),
        ("re17.test", "regexp.test"),
        ("re.test", "default.test"),
        ("in.dir.test", "in.dir.test"),
        ("asks.dir.test", "asks.dir.test"),
        ("no.dir.test", "default.test"),
    ],
)
def test_names(named: Edge, version: str, name: str, shown: str) -> None:
    assert named.shown(name, version) == shown


def test_a_directory_asks_for_certificates(named: Edge) -> None:
    assert "Acceptable client certificate CA names" in named.s_client(name="asks.dir.test")
    assert "No client certificate CA names sent" in named.s_client(name="in.dir.test")


def test_files_that_change(
    authority: Authority, default: Pair, uwsgi_app: Peer, tmp_path: Path
) -> None:
    """New files count without a restart; broken ones do not."""
    first, second = authority.issue("first.test"), authority.issue("second.test")
    crt, key = tmp_path / "site.test.crt", tmp_path / "site.test.key"

    def put(pair: Pair) -> None:
        shutil.copy(pair.key, key)
        shutil.copy(pair.cert, crt)

    with edge(default, uwsgi_app.address, "--sni-dir", str(tmp_path)) as it:
        assert it.shown("site.test") == "default.test"
        put(first)
        wait_until(lambda: it.shown("site.test") == "first.test", "the first")
        crt.write_text("nonsense")
        wait_until(lambda: it.shown("site.test") and str(crt) in it.gateway.log, "a complaint")
        assert it.shown("site.test") == "first.test"
        put(second)
        wait_until(lambda: it.shown("site.test") == "second.test", "the second")
        crt.unlink()
        key.unlink()
        wait_until(lambda: it.shown("site.test") == "default.test", "the default")


def test_strict(authority: Authority, default: Pair, uwsgi_app: Peer) -> None:
    option = f"exact.test {words(authority.issue('exact.test'))}"
    with edge(default, uwsgi_app.address, "--sni", option, "--sni-strict", "true") as it:
        assert it.shown("exact.test") == "exact.test"
        assert it.shown("default.test") == "default.test"
        for version in VERSIONS:
            said = it.s_client(version, name="other.test")
            assert "unrecognized name" in said
            assert "BEGIN CERTIFICATE" not in said


def test_certificates_of_subscriptions(
    authority: Authority, default: Pair, tmp_path: Path
) -> None:
    """A real uWSGI says which files its key has; others count when it says others."""
    one, two = authority.issue("sub.test"), authority.issue("renewed.test")
    port = free_port()
    listen = f"127.0.0.1:{port},{default.cert},{default.key}"
    with subscribing.router("--https", listen) as router:
        it = Edge(router.gate, port)

        def announce(pair: Pair) -> str:
            files = f"sni_crt={pair.cert},sni_key={pair.key}"
            return f"server={router.server},key=sub.test,{files}"

        assert it.shown("sub.test") == "default.test"
        with subscribing.node(tmp_path, "--subscribe2", announce(one)):
            wait_until(lambda: it.shown("sub.test") == "sub.test", "its certificate")
            assert it.curl(name="sub.test")[0] == 200
        with subscribing.node(tmp_path, "--subscribe2", announce(two), name="other"):
            wait_until(lambda: it.shown("sub.test") == "renewed.test", "the other one")


# --- client certificates --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("clients"), "clients' CA")


@pytest.fixture(scope="module")
def alice(clients: Authority) -> Pair:
    return clients.issue("alice")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Authority(tmp_path_factory.mktemp("others"), "others' CA").issue("mallory")


def showing(pair: Pair) -> tuple[str, ...]:
    return ("--cert", str(pair.cert), "--key", str(pair.key))


@pytest.mark.parametrize("version", ["--tls-max 1.2", "--tlsv1.3"])
@pytest.mark.parametrize("required", [True, False])
def test_right_wrong_and_no_certificate(
    default: Pair, clients: Authority, alice: Pair, stranger: Pair, uwsgi_app: Peer,
    version: str, required: bool,
) -> None:  # fmt: skip
    ca = f"{'!' if required else ''}{clients.file}"
    with edge(default, uwsgi_app.address, ca=ca) as it:
        speak = tuple(version.split())
        assert it.curl(*speak, *showing(alice))[0] == 200
        assert it.curl(*speak, *showing(stranger))[0] == 0
        assert it.curl(*speak)[0] == (0 if required else 200)


def env(answer: tuple[int, str]) -> dict[str, Any]:
    status, body = answer
    assert status == 200
    found = json.loads(body)
    assert isinstance(found, dict)
    return found


def test_what_a_real_uwsgi_is_told(
    default: Pair, clients: Authority, alice: Pair, uwsgi_app: Peer
) -> None:
    with edge(default, uwsgi_app.address, "--https-export-cert", ca=str(clients.file)) as it:
        seen = env(it.curl(*showing(alice)))
        assert seen["HTTPS"] == "on"
        assert seen["HTTPS_DN"] == "/CN=alice"
        assert seen["HTTPS_CLIENT_CERTIFICATE"].encode("latin-1") == alice.der
        assert seen["HTTPS_CC"] == alice.cert.read_text()
        assert seen["SERVER_PORT"] == str(it.port)
        forged = ("-H", "HTTPS-DN: /CN=root", "-H", "HTTPS_DN: /CN=root")
        seen = env(it.curl(*forged))
        assert seen["HTTPS"] == "on"
        assert not {"HTTPS_DN", "HTTPS_CLIENT_CERTIFICATE", "HTTPS_CC"} & seen.keys()


def test_fields_for_nodes(default: Pair, clients: Authority, alice: Pair, uwsgi_app: Peer) -> None:
    options = ("--https-client-headers", "true")
    with edge(default, uwsgi_app.address, *options, ca=str(clients.file)) as it:
        seen = env(it.curl(*showing(alice)))
        assert seen["HTTPS_DN"] == "/CN=alice"
        forged = ("-H", "X-SSL-Client-S-DN: /CN=root", "-H", "X_SSL_Client_S_DN: /CN=root")
        seen = env(it.curl(*forged))
        assert "root" not in json.dumps(seen)


def test_a_host_that_asks_for_more(
    authority: Authority, default: Pair, clients: Authority, alice: Pair, uwsgi_app: Peer
) -> None:
    """421: by the name of one site nobody gets past what the other asks for."""
    inner = f"inner.test {words(authority.issue('inner.test'))},,!{clients.file}"
    with edge(default, uwsgi_app.address, "--sni", inner) as it:
        assert it.curl(name="inner.test")[0] == 0
        assert it.curl(*showing(alice), name="inner.test")[0] == 200
        for host in ("inner.test", "INNER.test.", "inner.test:443"):
            assert it.curl("-H", f"Host: {host}", name="outer.test")[0] == 421
        target = ("--request-target", "http://inner.test/env")
        assert it.curl("--http1.1", *target, name="outer.test")[0] == 421
        assert it.curl(*target, name="outer.test")[0] == 0  # no path of HTTP/2: RST_STREAM
        assert it.curl(*showing(alice), "-H", "Host: outer.test", name="inner.test")[0] == 421
        assert it.curl("-H", "Host: other.test", name="outer.test")[0] == 200


def test_a_host_longer_than_names_and_none_at_all(
    authority: Authority, default: Pair, clients: Authority, uwsgi_app: Peer
) -> None:
    """What is asked of clients is asked however the name is written, or left to the gateway."""
    machine = socket.gethostname().lower()
    options = []
    for name in ("*.w.test", machine):
        pair = authority.issue(name, file="inner" + str(len(options)))
        options += ["--sni", f"{name} {words(pair)},,!{clients.file}"]
    with edge(default, uwsgi_app.address, *options) as it:
        for host in ("a.w.test", "a" * 245 + ".w.test", machine):
            assert it.curl("-H", f"Host: {host}", name="outer.test")[0] == 421
        assert it.curl("--http1.0", "-H", "Host:", name="outer.test")[0] == 421


def test_files_that_never_end_are_not_read(
    authority: Authority, default: Pair, uwsgi_app: Peer, tmp_path: Path
) -> None:
    pair = authority.issue("slow.test")
    shutil.copy(pair.cert, tmp_path / "slow.test.crt")
    (tmp_path / "slow.test.key").symlink_to("/proc/self/pagemap")
    with open(tmp_path / "huge.test.key", "wb") as file:
        file.truncate(1 << 30)
    shutil.copy(pair.cert, tmp_path / "huge.test.crt")
    with edge(default, uwsgi_app.address, "--sni-dir", str(tmp_path)) as it:
        for name in ("slow.test", "huge.test"):
            assert it.shown(name) == "default.test"
            assert f"{name}.key" in it.gateway.log


# --- redirects ------------------------------------------------------------------------------------


def test_from_http_to_https(default: Pair, uwsgi_app: Peer) -> None:
    plain, port = free_port(), free_port()
    options = ["--http-to-https", f"127.0.0.1:{plain},{port}", "--https-hsts", "300"]
    options += ["--https", f"127.0.0.1:{port},{default.cert},{default.key}"]
    with running(*options, "--http-to", uwsgi_app.address):
        done = subprocess.run(
            [
                *(needs("curl"), "-skL", "-D", "-", "-o", "/dev/null"),
                f"http://127.0.0.1:{plain}/env?a=b",
            ],
            capture_output=True,
            timeout=20,
        )
    head = done.stdout.decode()
    assert re.findall(r"(HTTP/\S+) (\d+)", head) == [("HTTP/1.1", "301"), ("HTTP/2", "200")]
    assert f"Location: https://127.0.0.1:{port}/env?a=b\r\n" in head
    assert head.count("strict-transport-security: max-age=300\r\n") == 1


# --- sessions -------------------------------------------------------------------------------------


def test_reconnecting(named: Edge) -> None:
    said = named.s_client("-tls1_2", "-reconnect", name="exact.test")
    assert (said.count("New, TLSv1.2"), said.count("Reused, TLSv1.2")) == (1, 5)


def test_ticket_keys_of_a_file(default: Pair, uwsgi_app: Peer, tmp_path: Path) -> None:
    """Two instances, one file; and after it is replaced, its second key still decrypts."""
    keys, session = tmp_path / "keys", tmp_path / "session"
    old = os.urandom(80)
    keys.write_bytes(old)
    keys.chmod(0o600)
    options = ("--ssl-ticket-keys", str(keys), "--https-session-context", "shared")
    with (
        edge(default, uwsgi_app.address, *options) as one,
        edge(default, uwsgi_app.address, *options) as two,
    ):
        assert "New" in one.s_client("-tls1_2", "-sess_out", str(session))
        assert "Reused" in two.s_client("-tls1_2", "-sess_in", str(session))
        keys.write_bytes(os.urandom(80) + old)
        wait_until(lambda: "ticket keys" in two.gateway.log.split("bound")[-1], "the new keys")
        assert "Reused" in two.s_client("-tls1_2", "-sess_in", str(session))
