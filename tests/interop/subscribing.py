"""Real uWSGI instances that announce themselves, and uwgate as the router that hears them."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from support.client import Client, Reply
from support.uwgate import Gateway, running
from support.waiting import DEADLINE, free_port, wait_until

from interop import peers
from interop.peers import Peer

KEY = "app.example"


def free_udp_port() -> int:
    """A port of 127.0.0.1 that is free for TCP and UDP."""
    while True:
        port = free_port()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def address() -> str:
    """A free ``127.0.0.1:PORT``."""
    return f"127.0.0.1:{free_udp_port()}"


@functools.cache
def _has_openssl(program: str) -> bool:
    # Only what was built with OpenSSL has the option.
    words = [program, "--help"]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=20)
    return b"--subscriptions-sign-check" in done.stdout


def signing_uwsgi() -> str:
    """A uWSGI that can sign: ``$UWGATE_UWSGI``, or that beside the virtual environment.

    The wheel of pyuwsgi has no OpenSSL; ``.ci/run`` builds one that has.
    """
    beside = Path(sys.prefix + "-uwsgi") / "bin" / "uwsgi"
    program = os.environ.get("UWGATE_UWSGI") or str(beside)
    if not os.access(program, os.X_OK) or not _has_openssl(program):
        pytest.skip("a uWSGI with OpenSSL is not installed")
    return program


class Router:
    """uwgate with an HTTP listener, statistics, and subscription servers.

    ``server``: the first subscription server. ``gate``: what ``log`` and ``ask`` are of. ``kind``:
    the gateway that has the server; ``address``: where it listens.
    """

    def __init__(
        self, gate: Gateway, server: str, stats_address: str, kind: str = "http", fast: str = ""
    ) -> None:
        self.gate = gate
        self.server = server
        self.stats_address = stats_address
        self.kind = kind
        self.address = fast or gate.listen

    @property
    def log(self) -> str:
        return self.gate.log

    def ask(self, path: str = "/name", key: str = KEY, seconds: float = DEADLINE) -> Reply:
        """One request on a connection of its own."""
        with self.gate.connect(seconds) as client:
            return client.ask(f"GET {path} HTTP/1.1\r\nHost: {key}\r\n\r\n".encode())

    def name(self, key: str = KEY) -> str:
        """Which node answers; "" if none does."""
        reply = self.ask(key=key)
        return str(json.loads(reply.body)["name"]) if reply.status == 200 else ""

    def names(self, count: int, key: str = KEY) -> list[str]:
        """Who answers ``count`` requests."""
        return [self.name(key) for _ in range(count)]

    def served(self, key: str = KEY) -> None:
        """Wait until there is an answer for the key."""
        try:
            wait_until(lambda: self.ask(key=key).status == 200, f"{key} is served", 20)
        except AssertionError as error:
            raise AssertionError(f"{error}; log:\n{self.log}") from None

    def unserved(self, key: str = KEY) -> None:
        """Wait until there is no node for the key, and it says so."""

        def nobody() -> bool:
            # A worker hears of a goodbye behind the log: until then it asks the node, which may be
            # busy as long as the test wants.
            try:
                return self.ask(key=key, seconds=2).status == 503
            except TimeoutError:
                return False

        try:
            wait_until(nobody, f"{key} has no node", 20)
        except AssertionError as error:
            raise AssertionError(f"{error}; log:\n{self.log}") from None

    def logged(self, text: str, times: int = 1, seconds: float = 20) -> None:
        """Wait until ``text`` is in the log that often."""
        try:
            wait_until(lambda: self.log.count(text) >= times, text, seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}; log:\n{self.log}") from None

    def joined(self, node: str, key: str = KEY, times: int = 1, seconds: float = 20) -> None:
        """Wait for a node to join, and for the worker to know."""
        self.logged(f"[subscriptions {self.kind}] {key} => new node: {node} (", times, seconds)

    def left(self, node: str, key: str = KEY, times: int = 1) -> None:
        """Wait for a node's goodbye."""
        self.logged(f"[subscriptions {self.kind}] {key} => node left: {node} (", times)

    # --- statistics ---------------------------------------------------------------------------

    def nodes(self, key: str = KEY) -> dict[str, dict[str, Any]]:
        """The key's nodes by address, as the statistics have them."""
        slots = self._stats()["subscriptions"]
        return {
            node["name"]: node for slot in slots if slot["key"] == key for node in slot["nodes"]
        }

    def counter(self, name: str) -> int:
        """One of ``subscription_counters``."""
        return int(self._counters()[name])

    def rejected(self, word: str) -> int:
        """How many packets were refused for this reason."""
        return int(self._counters()["rejected"].get(word, 0))

    def _counters(self) -> dict[str, Any]:
        found: dict[str, Any] = self._stats()["subscription_counters"][self.kind]
        return found

    def _stats(self) -> dict[str, Any]:
        # Asked as HTTP does: who says nothing is answered after a while only.
        document: dict[str, Any] = json.loads(one_request(self.stats_address, "/").body)
        return document


@contextlib.contextmanager
def router(*options: str, server: str = "", listen: str = "") -> Iterator[Router]:
    """uwgate's HTTP router; ``server``: its subscription server, else a free UDP address."""
    server = server or address()
    stats_address = address()
    words = ("--http-subscription-server", server, "--http-stats", stats_address, *options)
    with running(*words, listen=listen) as gate:
        yield Router(gate, server, stats_address)


@contextlib.contextmanager
def fast_router(*options: str, server: str = "", fast: str = "") -> Iterator[Router]:
    """uwgate's fastrouter, and an HTTP listener of the same instance before it."""
    server, fast, stats_address = server or address(), fast or address(), address()
    words = ["--fastrouter", fast, "--fastrouter-subscription-server", server, "--http-to", fast]
    with running(*words, "--http-stats", stats_address, *options) as gate:
        wait_until(lambda: peers.accepts(fast), "the fastrouter listens")
        yield Router(gate, server, stats_address, "fastrouter", fast)


@contextlib.contextmanager
def uwsgi_router(where: Path, *options: str, listens: str, name: str = "router") -> Iterator[Peer]:
    """uWSGI without an application: only what ``options`` say."""
    argv = [peers.script("uwsgi"), "--master", "--die-on-term", *options]
    with peers.peer(argv, [listens], where / f"{name}.log") as started:
        yield started


@contextlib.contextmanager
def node(
    where: Path,
    *options: str,
    socket_address: str | None = "",
    name: str = "node",
    program: str = "",
    listens: Sequence[str] | None = None,
    before: Sequence[str] = (),
    application: bool = True,
) -> Iterator[Peer]:
    """A uWSGI instance with the workhorse application that announces itself as ``options`` say.

    ``socket_address``: its ``--uwsgi-socket``, else a free TCP address; None for none of ours.
    ``listens``: where it can be reached, if that is not its socket's address. ``before``: options
    before its socket. Without ``application`` it brings its own, or answers 500. At the end it is
    killed, as that is quick; ``stop`` lets it say goodbye.
    """
    # One thread: with several of them uWSGI 2.0.30 hangs now and then when it is told to end.
    bound = [] if socket_address is None else [socket_address or address()]
    # A reload of pyuwsgi starts the interpreter that the virtual environment was made from.
    environ = {} if program else {"PYTHONPATH": sysconfig.get_path("purelib")}
    argv = [program or peers.script("uwsgi"), "--master"]
    if application:
        argv += ["--need-app", "--pythonpath", str(peers.APPS), "--module", "workhorse"]
    argv += [*before, *(word for each in bound for word in ("--uwsgi-socket", each)), *options]
    with peers.peer(
        argv,
        bound if listens is None else list(listens),
        where / f"{name}.log",
        stop=signal.SIGKILL,
        environ={"NODE_NAME": name, **environ},
    ) as started:
        yield started


def subscribe(router: Router, key: str = KEY, freq: int = 0) -> tuple[str, ...]:
    """The words with which a node announces itself to the router."""
    words = ("--subscribe-to", f"{router.server}:{key}")
    return (*words, "--subscribe-freq", str(freq)) if freq else words


def wait_idle(instance: Peer) -> None:
    """Wait until uWSGI's master sleeps until its next second.

    Its signal handlers say goodbye, and while it signs an announcement they send that unsigned.
    """
    status = Path(f"/proc/{instance.process.pid}/stat")

    def asleep() -> bool:
        return status.read_text().rpartition(")")[2].split()[0] == "S"

    wait_until(asleep, "the master sleeps")


def stop(instance: Peer) -> None:
    """SIGINT, upon which it says goodbye: without ``die-on-term`` SIGTERM would be a reload.

    Its end is not waited for: a worker that was starting just then does not hear of it.
    """
    wait_idle(instance)
    instance.process.send_signal(signal.SIGINT)


def kill_all(instance: Peer) -> None:
    """kill -9 of master and workers at once: nobody says goodbye."""
    os.killpg(instance.process.pid, signal.SIGKILL)
    instance.process.wait()


def node_logged(instance: Peer, text: str, times: int = 1) -> None:
    """Wait until ``text`` is in the instance's log that often."""
    try:
        wait_until(lambda: instance.logged.count(text) >= times, text, 20)
    except AssertionError as error:
        raise AssertionError(f"{error}; log:\n{instance.logged}") from None


class Traffic:
    """A client that asks again and again in a thread: did anybody notice anything?

    Each request has a connection of its own. ``names``: who answered, in order. ``failures``:
    whatever was not a 200.
    """

    def __init__(self, router: Router, key: str = KEY) -> None:
        self._router = router
        self._key = key
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask)
        self.names: list[str] = []
        self.failures: list[str] = []

    def __enter__(self) -> Traffic:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()
        if exc[0] is None:
            assert not self.failures, (Counter(self.failures), self._router.log)

    def _ask(self) -> None:
        while not self._stop.wait(0.002):
            try:
                reply = self._router.ask(key=self._key)
            except (OSError, AssertionError) as error:
                self.failures.append(repr(error))
                continue
            if reply.status == 200:
                self.names.append(json.loads(reply.body)["name"])
            else:
                self.failures.append(f"{reply.status} {reply.body[:100]!r}")

    def more(self, count: int = 30) -> list[str]:
        """Wait for that many more answers: those."""
        start = len(self.names)
        wait_until(lambda: len(self.names) >= start + count, "traffic goes on", 30)
        return self.names[start : start + count]

    def comes_from(self, names: set[str], count: int = 30) -> None:
        """Wait until exactly these nodes answer."""
        wait_until(lambda: set(self.more(count)) == names, f"answers of {names}", 30)


class Relay:
    """Passes datagrams on to a router and remembers them: somebody who listens on the wire.

    ``address``: where nodes send. ``seen``: all datagrams, ``senders``: where each came from.
    """

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self.target = target
        self._target = (host, int(port))
        self.senders: list[str] = []
        self._sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._sock.bind(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._sock.getsockname()[1]}"
        self.seen: list[bytes] = []
        self._thread = threading.Thread(target=self._relay)

    def __enter__(self) -> Relay:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
            last.sendto(b"", self._sock.getsockname())
        self._thread.join()
        self._sock.close()

    def _relay(self) -> None:
        while True:
            datagram, sender = self._sock.recvfrom(65536)
            if not datagram:
                return
            self.senders.append(f"{sender[0]}:{sender[1]}")
            self.seen.append(datagram)
            self.send(datagram)

    def send(self, datagram: bytes) -> None:
        """Send a datagram to the router."""
        self._sock.sendto(datagram, self._target)

    def wait(self, count: int, command: int = 0) -> bytes:
        """The ``count``-th datagram with that command, once it has come."""

        def those() -> list[bytes]:
            return [each for each in self.seen if each[3] == command]

        wait_until(lambda: len(those()) >= count, f"{count} datagrams", 20)
        return those()[count - 1]


class Keys:
    """``public``: the router's directory. ``private``: the node's key file, made in ``where``."""

    def __init__(self, where: Path, public: Path, kind: str = "rsa") -> None:
        self.where = where
        self.public = public
        self.public.mkdir(exist_ok=True)
        self.private = self.make("node", kind, KEY)

    def make(self, name: str, kind: str = "rsa", key: str = "") -> Path:
        """A private key file; its public one becomes that of ``key``."""
        made: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
        if kind == "rsa":
            made = rsa.generate_private_key(65537, 2048)
        else:
            made = ec.generate_private_key(ec.SECP256R1())
        path = self.where / f"{name}.pem"
        path.write_bytes(
            made.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        path.chmod(0o644)
        if key:
            public = made.public_key().public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
            (self.public / f"{key.replace(':', '_')}.pem").write_bytes(public)
        return path


def announce_once(server: str, key: str, node_address: str, *options: str) -> None:
    """One announcement, sent by ``uwgate announce``."""
    words = ["--server", server, "--key", key, "--addr", node_address, "--once", *options]
    done = subprocess.run(
        [sys.executable, "-m", "uwgate", "announce", *words],
        cwd=peers.ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def flipped(datagram: bytes) -> bytes:
    """The datagram with the other command: the signature does not cover that."""
    return datagram[:3] + bytes([1 - datagram[3]]) + datagram[4:]


def one_request(target: str, path: str = "/name", key: str = KEY) -> Reply:
    """A request to any HTTP router at ``HOST:PORT``."""
    host, _, port = target.rpartition(":")
    with Client((host, int(port))) as client:
        return client.ask(f"GET {path} HTTP/1.1\r\nHost: {key}\r\n\r\n".encode())
