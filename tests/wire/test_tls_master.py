"""TLS over the life of an instance: privileges, workers that die, sessions, statistics."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.certificates import Authority, Pair
from support.client import Client
from support.nodes import RawHttpNode
from support.uwgate import ROOT, Gateway, running
from support.waiting import DEADLINE, dead_address, free_port, wait_until

from uwgate.protocols.cache_sync import Update, decode, encode

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is missing")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may become somebody else")

REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
NOBODY = 65534
CACHE = "name=ssl,items=1000,blocksize=4096,keysize=64"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def files(authority: Authority) -> Pair:
    """A certificate for localhost."""
    return authority.issue("localhost")


def s_client(port: int, *options: str, name: str = "localhost") -> str:
    """What ``openssl s_client`` says of a connection with one request."""
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-servername", name]
    done = subprocess.run(
        [*command, "-ign_eof", *options], input=REQUEST, capture_output=True, timeout=DEADLINE
    )
    return (done.stdout + done.stderr).decode("utf-8", "replace")


def resumed(said: str) -> bool:
    """Whether the connection went on with an earlier session; it must have been one."""
    assert "HTTP/1.1 200 OK" in said, said
    found = re.search(r"^(New|Reused), (TLSv1\.[23]),", said, re.MULTILINE)
    assert found is not None, said
    return found[1] == "Reused"


class Instance:
    """A gateway with ``https`` on ``port`` and statistics on ``stats_port``."""

    def __init__(self, gateway: Gateway, port: int, stats_port: int) -> None:
        self.gateway = gateway
        self.port = port
        self.stats_port = stats_port
        wait_until(self._ready, "workers")

    def _ready(self) -> bool:
        """The address is bound by the master, the statistics a moment later."""
        try:
            rows = self.stats()["workers"]
        except ConnectionRefusedError:
            return False
        return all(row["status"] in ("idle", "busy") for row in rows)

    def fetch(self, target: str = "/") -> str:
        text = ""
        while not text.startswith("HTTP/"):  # who asks too late gets uWSGI's document
            with Client(("127.0.0.1", self.stats_port)) as client:
                client.send_willing(f"GET {target} HTTP/1.0\r\n\r\n".encode())
                text = client.read_to_end().decode()
        return text.partition("\r\n\r\n")[2]

    def stats(self) -> dict[str, Any]:
        return json.loads(self.fetch())  # type: ignore[no-any-return]

    def cache(self) -> dict[str, Any]:
        (cache,) = self.stats()["caches"]
        return cache  # type: ignore[no-any-return]

    def workers(self) -> set[int]:
        alive = (w for w in self.stats()["workers"] if w["status"] in ("idle", "busy"))
        return {int(worker["pid"]) for worker in alive}

    def kill_workers(self) -> None:
        """All of them, at once; their successors are there when this returns."""
        before = self.workers()
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        wait_until(
            lambda: len(self.workers() - before) == len(before), "workers are replaced"
        )


@contextmanager
def serving(files: Pair, node: RawHttpNode, *options: str, address: str = "") -> Iterator[Instance]:
    """An instance with two workers; ``address``: another for ``https``."""
    port, stats_port = free_port(), free_port()
    address = address or f"127.0.0.1:{port}"
    words = ["--https", f"{address},{files.cert},{files.key}", "--http-to", node.spec]
    words += ["--http-processes", "2", "--http-stats", f"127.0.0.1:{stats_port}"]
    with running(*words, *options) as gateway:
        yield Instance(gateway, port, stats_port)


# --- sessions outlive workers ---------------------------------------------------------------------


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_tickets_outlive_the_workers(
    files: Pair, http_node: RawHttpNode, tmp_path: Path, version: str
) -> None:
    session = str(tmp_path / "session")
    with serving(files, http_node) as it:
        assert not resumed(s_client(it.port, version, "-sess_out", session))
        # Whichever worker the kernel picks.
        assert all(resumed(s_client(it.port, version, "-sess_in", session)) for _ in range(4))
        it.kill_workers()
        assert all(resumed(s_client(it.port, version, "-sess_in", session)) for _ in range(4))
        tls = it.stats()["tls"]
    word = {"-tls1_2": "TLSv1.2", "-tls1_3": "TLSv1.3"}[version]
    # What a killed worker had not told anybody yet is lost.
    assert tls["resumed"][word] >= 4
    assert tls["handshakes"][word] >= tls["resumed"][word]


def test_sessions_in_the_cache_outlive_the_workers(
    files: Pair, http_node: RawHttpNode, tmp_path: Path
) -> None:
    session = str(tmp_path / "session")
    options = ("--cache2", CACHE, "--ssl-sessions-use-cache=ssl")
    with serving(files, http_node, *options) as it:
        assert it.cache()["items"] == 0
        assert not resumed(s_client(it.port, "-tls1_2", "-sess_out", session))
        cache = it.cache()
        assert (cache["items"], cache["hits"]) == (1, 0)
        assert all(resumed(s_client(it.port, "-tls1_2", "-sess_in", session)) for _ in range(4))
        assert it.cache()["hits"] == 4
        it.kill_workers()
        assert all(resumed(s_client(it.port, "-tls1_2", "-sess_in", session)) for _ in range(4))
        # Counts of workers that were killed are in the shared memory, too.
        cache = it.cache()
        assert (cache["items"], cache["hits"]) == (1, 8)
        assert cache["name"] == "ssl"
        assert cache["last_modified_at"] > time.time() - 60


def test_a_session_made_here_is_resumed_on_another_machine(
    files: Pair, http_node: RawHttpNode, tmp_path: Path
) -> None:
    ports = [free_port(), free_port()]
    common = ("--ssl-sessions-use-cache=ssl", "--https-session-context", "shared")

    def cache(here: int, there: int) -> str:
        return f"{CACHE},udp=127.0.0.1:{here},node=127.0.0.1:{there}"

    session = str(tmp_path / "session")
    with (
        _cluster(files, http_node, common, cache(*ports)) as one,
        _cluster(files, http_node, common, cache(*reversed(ports))) as two,
    ):
        assert not resumed(s_client(one.port, "-tls1_2", "-sess_out", session))
        wait_until(lambda: two.cache()["items"] == 1, "the session arrived")
        assert resumed(s_client(two.port, "-tls1_2", "-sess_in", session))
        assert one.cache()["sync"] == {"received": 0, "refused": 0, "sent": 1, "failed": 0}
        assert two.cache()["sync"] == {"received": 1, "refused": 0, "sent": 0, "failed": 0}
        metrics = two.fetch("/metrics")
        assert 'uwgate_cache_sync_datagrams_total{cache="ssl",result="received"} 1' in metrics


@contextmanager
def _cluster(
    files: Pair, node: RawHttpNode, common: tuple[str, ...], cache: str
) -> Iterator[Instance]:
    port, stats_port = free_port(), free_port()
    words = [*common[1:], "--cache2", cache, common[0]]
    words += ["--https", f"127.0.0.1:{port},{files.cert},{files.key}", "--http-to", node.spec]
    words += ["--http-stats", f"127.0.0.1:{stats_port}"]
    with running(*words) as gateway:
        yield Instance(gateway, port, stats_port)


# --- other machines -------------------------------------------------------------------------------


def test_the_master_takes_what_other_machines_say(files: Pair, http_node: RawHttpNode) -> None:
    port = free_port()
    options = ("--cache2", f"{CACHE},udp=127.0.0.1:{port}", "--ssl-sessions-use-cache=ssl")
    with (
        serving(files, http_node, *options) as it,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other,
    ):
        target = ("127.0.0.1", port)
        other.sendto(encode(Update(b"a", b"1")), target)
        other.sendto(encode(Update(b"b", b"2", int(time.time()) + 60)), target)
        other.sendto(b"nonsense", target)
        wait_until(lambda: it.cache()["sync"]["received"] == 3, "datagrams")
        assert it.cache()["items"] == 2
        assert it.cache()["sync"]["refused"] == 1
        other.sendto(encode(Update(b"a", None)), target)
        wait_until(lambda: it.cache()["items"] == 1, "deleted")
        assert 'uwgate_cache_items{cache="ssl"} 1' in it.fetch("/metrics")


def test_a_worker_tells_other_machines(files: Pair, http_node: RawHttpNode) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        other.settimeout(DEADLINE)
        cache = f"{CACHE},node=127.0.0.1:{other.getsockname()[1]}"
        options = ("--cache2", cache, "--ssl-sessions-use-cache=ssl")
        with serving(files, http_node, *options) as it:
            assert not resumed(s_client(it.port, "-tls1_2"))
            update = decode(other.recv(65536))
            assert len(update.key) == 32
            assert update.value
            assert 0 < update.expires - time.time() <= 301
            assert it.cache()["sync"]["sent"] == 1


# --- statistics -----------------------------------------------------------------------------------


def test_statistics_of_handshakes_and_certificates(
    authority: Authority, files: Pair, http_node: RawHttpNode
) -> None:
    other = authority.issue("other.example")
    options = ("--sni", f"other.example {other.cert},{other.key}")
    with serving(files, http_node, *options) as it:
        for version in ("-tls1_3", "-tls1_3", "-tls1_2"):
            assert not resumed(s_client(it.port, version, "-no_ticket"))
        document = it.stats()
        tls = document["tls"]
        assert tls["handshakes"] == {"TLSv1.2": 1, "TLSv1.3": 2}
        assert tls["resumed"] == {}
        assert tls["handshaking"] == 0
        ends = {each["source"]: each["not_after"] for each in tls["certificates"]}
        for source, pair in (("listener", files), ("sni", other)):
            assert ends[source] == int(pair.certificate.not_valid_after_utc.timestamp())
        rows = [worker["tls"]["handshakes"].get("TLSv1.3", 0) for worker in document["workers"]]
        assert sum(rows) == 2
        protocols = {each["name"]: each["proto"] for each in document["sockets"]}
        assert protocols[f"127.0.0.1:{it.port}"] == "https"
        assert protocols[it.gateway.listen] == "http"
        with socket.create_connection(("127.0.0.1", it.port), DEADLINE) as silent:
            silent.sendall(b"\x16\x03\x01")
            wait_until(lambda: it.stats()["tls"]["handshaking"] == 1, "seen")
        metrics = it.fetch("/metrics")
        assert 'uwgate_tls_handshakes_total{version="TLSv1.3",resumed="0"} 2' in metrics
        assert f'{{source="sni",name="other.example"}} {ends["sni"]}' in metrics
        it.gateway.process.send_signal(signal.SIGUSR1)
        wait_until(lambda: "TLS 3 of which 0 resumed" in it.gateway.log, "the line of SIGUSR1")


# --- start ----------------------------------------------------------------------------------------


def refused(*options: str) -> str:
    """The line with which an instance ends that cannot start."""
    done = subprocess.run(
        [sys.executable, "-m", "uwgate", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("uwgate: error: ")]
    assert len(lines) == 1, done.stderr
    return lines[0]


def encrypted(files: Pair, directory: Path) -> Path:
    path = directory / "encrypted.key"
    command = ["openssl", "ec", "-in", str(files.key), "-aes128", "-passout", "pass:x"]
    subprocess.run([*command, "-out", str(path)], check=True, capture_output=True)
    return path


def garbage(files: Pair, directory: Path) -> Path:
    path = directory / "garbage.key"
    path.write_text("no key\n")
    return path


def foreign(files: Pair, directory: Path) -> Path:
    return Authority(directory, "other").issue("localhost").key


def missing(files: Pair, directory: Path) -> Path:
    return directory / "missing.key"


@pytest.mark.parametrize("make", [encrypted, garbage, foreign, missing])
def test_a_key_that_cannot_be_used_is_one_line_and_1(
    files: Pair, tmp_path: Path, make: Callable[[Pair, Path], Path]
) -> None:
    key = make(files, tmp_path)
    listener = f"127.0.0.1:{free_port()},{files.cert},{key}"
    assert str(key) in refused("--https", listener, "--http-to", dead_address())


def test_a_bad_listener_is_named_by_its_option(files: Pair) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        line = refused("--https", f"{address},{files.cert},{files.key}", "--http-to", "127.0.0.1:1")
        assert line == f"uwgate: error: https = {address}: address already in use"


# --- privileges -----------------------------------------------------------------------------------


@needs_root
@pytest.mark.parametrize("option", ["--uid", "--http-uid"])
def test_keys_that_only_root_may_read(
    authority: Authority, http_node: RawHttpNode, option: str
) -> None:
    """Also of a worker that is forked after privileges are gone."""
    port = free_port()
    shared = ("--shared-socket", f"127.0.0.1:{port}", option, str(NOBODY))
    pair, other = authority.issue("localhost", file="root"), authority.issue("a.example")
    for each in (pair, other):
        each.key.chmod(0o400)
        assert each.key.stat().st_uid == 0
    sni = ("--sni", f"a.example {other.cert},{other.key}")
    with serving(pair, http_node, *shared, *sni, address="=0") as it:
        for _ in range(2):
            trusted = ("-CAfile", str(authority.file), "-verify_return_error")
            assert not resumed(s_client(port, *trusted, "-verify_hostname", "localhost"))
            assert not resumed(
                s_client(port, *trusted, "-verify_hostname", "a.example", name="a.example")
            )
            uids = {os.stat(f"/proc/{pid}").st_uid for pid in it.workers()}
            assert uids == {NOBODY}
            it.kill_workers()


@needs_root
def test_keys_of_a_directory_are_read_by_the_workers(
    authority: Authority, files: Pair, http_node: RawHttpNode
) -> None:
    """They have to be readable by them; one that is not costs a line and nothing else."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        for name in ("open.example", "closed.example"):
            pair = authority.issue(name)
            for path in (pair.cert, pair.key):
                copy = Path(directory, path.name)
                shutil.copy(path, copy)
                copy.chmod(0o644)
        closed = Path(directory, "closed.example.key")
        closed.chmod(0o400)
        options = ("--sni-dir", directory, "--http-uid", str(NOBODY))
        with serving(files, http_node, *options) as it:
            assert "CN = open.example" in s_client(it.port, name="open.example")
            assert "CN = localhost" in s_client(it.port, name="closed.example")
            wait_until(lambda: str(closed) in it.gateway.log, "a line names the file")
