"""A TLS connection before its first request: PROXY header, ClientHello, certificate, handshake.

The ClientHello is read before OpenSSL sees it. So the context is chosen as a whole (what it asks
of the client, its CA, its options), a session that is kept on another machine can be looked up
without anybody waiting in a callback, and a client that stalls or talks nonsense costs no more
than its socket.
"""

from __future__ import annotations

import socket
import ssl
from _socket import socket as new_socket  # see upstream_uwsgi
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from uwgate.protocols.tls_hello import (
    ALERT_DECODE_ERROR,
    ALERT_UNRECOGNIZED_NAME,
    ClientHello,
    HelloError,
    is_whole,
    parse_hello,
)
from uwgate.router.acceptor import Fresh
from uwgate.router.errors import Failure
from uwgate.router.fast_client import DONTWAIT
from uwgate.router.http1_front import Http1Front
from uwgate.router.http2_connection import Http2Connection
from uwgate.router.preface import Preface, PrefaceError, may_announce
from uwgate.router.tls_stream import TlsStream
from uwgate.tls.peer import Peer

if TYPE_CHECKING:
    from uwgate.config.settings_tls import ListenerTls
    from uwgate.router.http import HttpGateway
    from uwgate.tls.contexts import Context

# Stages of a connection.
PREFACE, HELLO, LOOKUP, HANDSHAKE, OPEN, LINGER, GONE = range(7)

_LINGER = 2.0  # seconds a refused client gets to read why
_PREFACE_LIMIT = 8192  # more than any PROXY header
_ATTEMPTS = 64  # to make sense of a ClientHello in more than one record
_HEADER = 5  # bytes of a record's
_HANDSHAKE_RECORD = 22

_REASONS = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": Failure.TLS_CLIENT_CERT,
    "CERTIFICATE_VERIFY_FAILED": Failure.TLS_CLIENT_CERT,
    "NO_SHARED_CIPHER": Failure.TLS_VERSION,
    "UNSUPPORTED_PROTOCOL": Failure.TLS_VERSION,
    "UNKNOWN_PROTOCOL": Failure.TLS_VERSION,
    "VERSION_TOO_LOW": Failure.TLS_VERSION,
    "NO_SUITABLE_SIGNATURE_ALGORITHM": Failure.TLS_VERSION,
    "NO_SUITABLE_KEY_SHARE": Failure.TLS_VERSION,
    "INAPPROPRIATE_FALLBACK": Failure.TLS_VERSION,
}

Fronts = Callable[[], Http1Front | Http2Connection]


class TlsDoor:
    """The way in of one TLS listener. ``fronts``: by negotiated protocol (ALPN), the front of a
    connection; None: of one that negotiated none."""

    __slots__ = ("fronts", "gateway", "listener")

    def __init__(
        self, gateway: HttpGateway, listener: ListenerTls, fronts: dict[str | None, Fronts]
    ) -> None:
        self.gateway = gateway
        self.listener = listener
        self.fronts = fronts

    def welcome(self, fresh: Fresh) -> None:
        """Serve new connections."""
        gateway = self.gateway
        tally = gateway.tally
        tally.accepted += len(fresh)
        tally.connections += len(fresh)
        for sock, data in fresh:
            connection = TlsConnection(self, sock)
            try:
                connection.begin(data)
            except Exception as error:  # one client's, and not that of all who come after
                gateway.loop.call_exception_handler(
                    {"message": "a TLS connection failed", "exception": error}
                )
                connection.fail()


class TlsConnection(TlsStream):
    """One connection, from ``begin`` to the handshake's end; then its front's transport."""

    __slots__ = (
        "attempts",
        "context",
        "deadline",
        "door",
        "held",
        "hello",
        "preface",
        "stage",
        "wanted",
    )

    def __init__(self, door: TlsDoor, sock: new_socket) -> None:
        super().__init__(door.gateway, sock)
        self.door = door
        self.stage = HELLO
        self.held = b""  # received, and not understood yet
        self.wanted = _HEADER  # bytes of the hello, below which no more can be known of it
        self.attempts = 0
        self.hello: ClientHello | None = None
        self.context: Context | None = None
        self.preface: Preface | None = None
        self.deadline = 0.0

    def begin(self, data: bytes | None) -> None:
        """What has come with the connection."""
        gateway = self.gateway
        gateway.handshaking[self] = None
        self.deadline = gateway.handshake_deadline
        try:
            if self.sock.family != socket.AF_UNIX:
                name = self.sock.getpeername()
                self.peername = (name[0], name[1])
        except OSError:
            data = b""  # gone already
        if gateway.settings.proxy_protocol:
            client = self.peername[0].encode("ascii") if self.peername is not None else b""
            allowed = may_announce(gateway.settings, client)
            self.preface = Preface(stud=False, allowed=allowed)
            self.stage = PREFACE
        if data is not None:
            if data:
                self.received(data)
            else:
                self.end_of_input()
        if self.stage < LINGER:
            self.watch_socket()

    def received(self, data: bytes) -> None:
        stage = self.stage
        if stage == OPEN:
            self.incoming.write(data)
            self.decrypt()
        elif stage == HANDSHAKE:
            self.gateway.tally.rx += len(data)
            self.incoming.write(data)
            self._shake()
        elif stage != LINGER:
            self.gateway.tally.rx += len(data)
            self.held = self.held + data if self.held else data
            if stage == PREFACE:
                self._read_preface()
            elif stage == HELLO:
                self._read_hello()

    def end_of_input(self) -> None:
        if self.stage == OPEN:
            super().end_of_input()
        elif self.stage == LINGER:
            self._drop()
        else:
            # Who connects and leaves without a word only wanted to know whether anybody is here.
            quiet = self.stage in (PREFACE, HELLO) and not self.held
            self._drop(None if quiet else Failure.TLS_CLOSED)

    def lost(self, error: Exception | None) -> None:
        if self.stage in (OPEN, GONE):
            super().lost(error)
        else:
            self.end_of_input()

    # --- before the handshake ---------------------------------------------------------------------

    def _read_preface(self) -> None:
        """A PROXY header, which comes in clear text before all else."""
        preface = self.preface
        assert preface is not None
        try:
            consumed = preface.read(self.held[:_PREFACE_LIMIT])
        except PrefaceError:
            self._refuse(Failure.BAD_PROXY, b"")
            return
        if consumed < 0:
            return
        if preface.address is not None:
            self.peername = (preface.address[0].decode("ascii"), preface.address[1])
        self.preface = None
        self.stage = HELLO
        self.held = self.held[consumed:]
        if self.held:
            self._read_hello()

    def _read_hello(self) -> None:
        held = self.held
        if len(held) < self.wanted and held[0] == _HANDSHAKE_RECORD:
            return
        terminator = self.gateway.terminator
        assert terminator is not None
        if not terminator.needs_hello and is_whole(held):
            self.context = terminator.choose(self.door.listener, "")
            self._begin_handshake()
            return
        try:
            hello = parse_hello(held)
        except HelloError as error:
            if error.reason == "http":
                self._speak_in_clear()
            else:
                self._refuse(Failure.TLS_HELLO, ALERT_DECODE_ERROR)
            return
        if hello is None:
            # Looking again at every byte of many records would cost more than it costs to send.
            if len(held) >= _HEADER and self.wanted == _HEADER:
                self.wanted += int.from_bytes(held[3:5], "big")
            else:
                self.attempts += 1
                if self.attempts > _ATTEMPTS:
                    self._refuse(Failure.TLS_HELLO, ALERT_DECODE_ERROR)
            return
        self.hello = hello
        self.context = terminator.choose(self.door.listener, hello.server_name)
        if self.context is None:
            self._refuse(Failure.TLS_NAME, ALERT_UNRECOGNIZED_NAME)
            return
        wanted = terminator.wants(hello)
        if wanted:
            self.stage = LOOKUP
            self.pause_reading()
            terminator.prefetch(wanted, self._looked_up)
        else:
            self._begin_handshake()

    def _looked_up(self) -> None:
        """The distributed store has answered, or had its time."""
        if self.stage == LOOKUP:
            self.resume_reading()
            self._begin_handshake()

    def _begin_handshake(self) -> None:
        context = self.context
        assert context is not None
        self.stage = HANDSHAKE
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.engine = context.ssl._wrap_bio(  # type: ignore[attr-defined]
            self.incoming, self.outgoing, True, None
        )
        self.read = self.engine.read
        self.incoming.write(self.held)
        self.held = b""
        self._shake()

    # --- the handshake ----------------------------------------------------------------------------

    def _shake(self) -> None:
        try:
            self.engine.do_handshake()
        except ssl.SSLWantReadError:
            if self.outgoing.pending:
                self._send_out()
            if self.closing:  # sending failed, and nobody is there to be told
                self._drop(Failure.TLS_CLOSED)
            return
        except ssl.SSLError as error:
            alert = self.outgoing.read() if self.outgoing.pending else b""
            failure = _REASONS.get(error.reason or "", Failure.TLS_FAILED)
            terminator = self.gateway.terminator
            if terminator is not None and terminator.verbose:
                self.gateway.complain(f"TLS: {self._who()}: {error.reason or error}")
            self._refuse(failure, alert)
            return
        self._open()

    def _who(self) -> str:
        return f"{self.peername[0]}:{self.peername[1]}" if self.peername is not None else "client"

    def _open(self) -> None:
        """The handshake is done: the front takes over."""
        gateway, engine, context, hello = self.gateway, self.engine, self.context, self.hello
        assert context is not None
        self._enter()
        version = engine.version()
        resumed = engine.session_reused
        tally = gateway.tally
        tally.handshakes[version] = tally.handshakes.get(version, 0) + 1
        if resumed:
            tally.resumed[version] = tally.resumed.get(version, 0) + 1
        protocol = engine.selected_alpn_protocol()
        self.peer = Peer(
            version=version,
            cipher=engine.cipher()[0],
            resumed=resumed,
            server_name=hello.server_name if hello is not None else "",
            domain=context.domain,
            alpn=protocol,
            der=engine.getpeercert(True) if context.domain else None,
            listener=self.door.listener,
        )
        self.hello = self.context = None
        fronts = self.door.fronts
        front = self.front = fronts[protocol if protocol in fronts else None]()
        front.connection_made(self)  # type: ignore[arg-type]
        if self.outgoing.pending:
            if version == "TLSv1.3" and not gateway.draining:
                gateway.ticketed[self] = None  # it goes with the first response
            else:
                self._send_out()
        if self.incoming.pending:
            self.decrypt()

    def send_ticket(self) -> None:
        """No response has taken the ticket along so far."""
        if self.fd >= 0 and self.outgoing.pending and not self.closing:
            self._send_out()

    def gone(self, error: Exception | None) -> None:
        self.gateway.ticketed.pop(self, None)
        super().gone(error)

    def _enter(self) -> None:
        """From here on the front sees to deadlines and ends."""
        gateway = self.gateway
        self.stage = OPEN
        del gateway.handshaking[self]

    def _speak_in_clear(self) -> None:
        """The client speaks HTTP, which a front can tell it not to, as it can any other request."""
        tally = self.gateway.tally
        tally.accepted -= 1  # the front counts those that come in clear
        tally.connections -= 1
        self._enter()
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.engine = _Clear(self.outgoing)
        self.read = self.incoming.read
        held, self.held = self.held, b""
        front = self.front = cast(Http1Front, self.door.fronts[None]())
        front.connection_made(self)  # type: ignore[arg-type]
        front.spoke_in_clear(held)

    # --- ends before a request --------------------------------------------------------------------

    def _refuse(self, failure: Failure, answer: bytes) -> None:
        """Send the answer (an alert), FIN, and read a moment longer: unread bytes would turn the
        end into a reset, which can destroy the answer on its way."""
        gateway = self.gateway
        gateway.tally.errors[failure] += 1
        self.stage = LINGER
        self.held = b""
        self.engine = None
        try:
            if answer and not self.unsent:
                gateway.tally.tx += self.sock.send(answer, DONTWAIT)
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._drop()
            return
        self.deadline = gateway.clock.now + _LINGER
        gateway.handshaking.pop(self, None)
        gateway.lingering[self] = None
        self.reading = True
        self.watch_socket()

    def _drop(self, failure: Failure | None = None) -> None:
        """Close; the front has not been made."""
        if self.stage == GONE:
            return
        self.stage = GONE
        gateway = self.gateway
        if failure is not None:
            gateway.tally.errors[failure] += 1
        gateway.tally.connections -= 1
        gateway.handshaking.pop(self, None)
        gateway.lingering.pop(self, None)
        self.closing = True
        self.close_socket()
        self.engine = self.hello = self.context = None
        if gateway.draining:
            gateway.check_drained()

    def drain(self) -> None:
        """The gateway is stopping: who has said nothing yet may go elsewhere."""
        if self.stage in (PREFACE, HELLO) and not self.held:
            self._drop()

    def expired(self) -> None:
        """The time for the handshake, or for reading the answer, is over."""
        if self.stage == LINGER:
            self._drop()
        elif self.stage < OPEN:
            self._drop(Failure.TLS_TIMEOUT)

    def fail(self) -> None:
        """There is something wrong with us."""
        if self.stage == OPEN:
            self.abort()
        else:
            self._drop(Failure.TLS_FAILED)

    def cut(self) -> None:
        """The gateway ends now."""
        self._drop(Failure.KILLED)


class _Clear:
    """Stands for OpenSSL where the client speaks in clear text."""

    __slots__ = ("write",)

    def __init__(self, outgoing: ssl.MemoryBIO) -> None:
        self.write = outgoing.write

    def shutdown(self) -> None:
        """There is no close_notify."""
