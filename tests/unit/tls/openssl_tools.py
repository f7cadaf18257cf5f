"""Contexts and handshakes in memory, and the hooks into the OpenSSL of this Python."""

from __future__ import annotations

import functools
import ssl
from dataclasses import dataclass, field
from pathlib import Path

from support.certificates import Authority

from uwgate.tls.openssl import OpenSsl, load

TLS_1_2, TLS_1_3 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
VERSIONS = (TLS_1_2, TLS_1_3)


@functools.cache
def hooks() -> OpenSsl:
    """Those of this process."""
    lines: list[str] = []
    found = load(lines.append)
    assert found is not None, lines
    assert lines == []
    return found


class World:
    """Servers with one certificate, and clients that trust it."""

    def __init__(self, where: Path) -> None:
        self.authority = Authority(where)
        self.pair = self.authority.issue("localhost")

    def server(self, session_context: bytes = b"test", timeout: int = 300) -> ssl.SSLContext:
        """A context of ``localhost``."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.pair.cert, self.pair.key)
        context.num_tickets = 1
        hooks().set_session_context(context, session_context)
        hooks().set_timeout(context, timeout)
        return context

    def client(self, version: ssl.TLSVersion, options: int = 0) -> ssl.SSLContext:
        """A context that speaks this version only."""
        context = ssl.create_default_context(cafile=str(self.authority.file))
        context.minimum_version = context.maximum_version = version
        context.options |= options
        return context


@dataclass
class Ends:
    """Both sides of a connection in memory, ready for data."""

    server: ssl.SSLObject
    client: ssl.SSLObject
    reused: bool
    session: ssl.SSLSession | None = field(repr=False)

    def close(self) -> None:
        """With close_notify from both sides, as OpenSSL drops the session otherwise."""
        for side in (self.client, self.server, self.client):
            try:
                side.unwrap()
            except ssl.SSLWantReadError:
                pass


def connect(
    server: ssl.SSLContext, client: ssl.SSLContext, session: ssl.SSLSession | None = None
) -> Ends:
    """A handshake; ``session``: that the client wants to go on with."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    near = client.wrap_bio(down, up, server_hostname="localhost", session=session)
    far = server.wrap_bio(up, down, server_side=True)
    waiting = [near, far]
    for _ in range(10):
        for side in list(waiting):
            try:
                side.do_handshake()
                waiting.remove(side)
            except ssl.SSLWantReadError:
                pass
    assert waiting == []
    far.write(b"hello")
    assert near.read(100) == b"hello"  # with the ticket of TLS 1.3 before it
    assert near.session_reused == far.session_reused
    return Ends(far, near, bool(near.session_reused), near.session)


def visit(
    server: ssl.SSLContext, client: ssl.SSLContext, session: ssl.SSLSession | None = None
) -> tuple[bool, ssl.SSLSession | None]:
    """A whole connection: whether it was resumed, and the client's session after it."""
    ends = connect(server, client, session)
    ends.close()
    return ends.reused, ends.session
