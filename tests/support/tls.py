"""TLS from the client's side: connections that are as plain to use as those in clear text."""

from __future__ import annotations

import os
import re
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from support.certificates import Authority, Pair
from support.client import Address, Client
from support.nodes import Node
from support.uwgate import Gateway, running
from support.waiting import DEADLINE, free_port, wait_until

NAME = "localhost"
"""The name that most certificates of tests are for."""


def client_context(
    authority: Authority, *, pair: Pair | None = None, version: ssl.TLSVersion | None = None
) -> ssl.SSLContext:
    """Trusts ``authority``; ``pair``: the client's own certificate; ``version``: no other."""
    context = ssl.create_default_context(cafile=str(authority.file))
    if pair is not None:
        context.load_cert_chain(pair.cert, pair.key)
    if version is not None:
        context.minimum_version = context.maximum_version = version
    return context


class TlsClient(Client):
    """A connection over TLS. A stream that ends without close_notify is an error.

    ``first``: bytes to send in clear text before the handshake.
    """

    sock: ssl.SSLSocket

    def __init__(
        self,
        address: Address,
        context: ssl.SSLContext,
        *,
        name: str | None = NAME,
        first: bytes = b"",
        session: ssl.SSLSession | None = None,
        timeout: float = DEADLINE,
    ) -> None:
        super().__init__(address, timeout)
        if first:
            self.sock.sendall(first)
        raw = socket.socket.detach(self.sock)
        plain = socket.socket(fileno=raw)
        plain.settimeout(timeout)
        try:
            self.sock = context.wrap_socket(
                plain, server_hostname=name, session=session, suppress_ragged_eofs=False
            )
        except BaseException:
            plain.close()
            raise

    def half_close(self) -> None:
        """close_notify; what the gateway sends is still read, which ``ssl`` has no word for."""
        self.sock.setblocking(False)
        try:
            self.sock._sslobj.shutdown()  # type: ignore[attr-defined]
        except ssl.SSLError:
            pass  # the gateway's own is not here yet, or data comes before it
        self.sock.settimeout(DEADLINE)

    def receive(self) -> bytes:
        try:
            return super().receive()
        except ssl.SSLZeroReturnError:  # how ``ssl`` puts it once both sides have said goodbye
            return b""

    def cut(self) -> None:
        """FIN without close_notify, as who is cut off would send it."""
        with socket.socket(fileno=os.dup(self.sock.fileno())) as same:
            same.shutdown(socket.SHUT_WR)


@dataclass
class Terminating:
    """A gateway with ``https`` on ``port`` before ``node``."""

    gateway: Gateway
    authority: Authority
    node: Node
    port: int
    stats_port: int

    @property
    def address(self) -> tuple[str, int]:
        """Where TLS is spoken."""
        return ("127.0.0.1", self.port)

    def connect(
        self,
        *,
        name: str | None = NAME,
        pair: Pair | None = None,
        version: ssl.TLSVersion | None = None,
        first: bytes = b"",
    ) -> TlsClient:
        """A connection, its handshake done."""
        context = client_context(self.authority, pair=pair, version=version)
        if name is None:
            context.check_hostname = False
        return TlsClient(self.address, context, name=name, first=first)

    def in_clear(self) -> Client:
        """A connection to the same port without TLS."""
        return Client(self.address)

    def metrics(self, pattern: str) -> int:
        """The sum of all metrics that ``pattern`` matches at the start of their line."""
        with Client(("127.0.0.1", self.stats_port)) as client:
            client.send(b"GET /metrics HTTP/1.0\r\n\r\n")
            text = client.read_to_end().decode()
        if not text.startswith("HTTP/"):  # who says nothing for 0.2 s gets the JSON
            return self.metrics(pattern)
        found = re.findall(rf"^{pattern}[^\n]* (\d+)(?:\.0)?$", text, re.MULTILINE)
        return sum(map(int, found))

    def failed(self, word: str) -> int:
        """How often it was this reason."""
        return self.metrics(rf'uwgate_errors_total\{{[^}}]*reason="{word}"')

    @property
    def open_connections(self) -> int:
        """Client connections open now, those in their handshake included."""
        return self.metrics("uwgate_connections")


@contextmanager
def terminating(
    authority: Authority, node: Node, *options: str, pair: Pair | None = None, ca: str = ""
) -> Iterator[Terminating]:
    """A gateway, stopped and checked at the end. ``ca``: fifth value of ``https``."""
    pair = pair or authority.issue(NAME)
    port, stats_port = free_port(), free_port()
    address = f"127.0.0.1:{port},{pair.cert},{pair.key}"
    if ca:
        address += f",,{ca}"
    words = ["--https", address, "--http-to", node.spec, "--http-timeout", "10"]
    with running(*words, "--http-stats", f"127.0.0.1:{stats_port}", *options) as gateway:
        wait_until(lambda: _answers(stats_port), "the statistics")  # bound after the keys are read
        yield Terminating(gateway, authority, node, port, stats_port)


def _answers(port: int) -> bool:
    try:
        Client(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return False
    return True
