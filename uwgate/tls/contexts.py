"""From files to an ``ssl.SSLContext``: what is offered, what is asked of clients, what is wrong.

Defaults are those of Mozilla's "intermediate" configuration: TLS 1.2 and 1.3, and of TLS 1.2 only
suites with forward secrecy and authenticated encryption.
"""

from __future__ import annotations

import hashlib
import os
import ssl
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass

from uwgate.config.settings_tls import PairSettings, TlsSettings
from uwgate.protocols.spdy3 import ALPN as SPDY
from uwgate.tls import pairs
from uwgate.tls.errors import TlsError
from uwgate.tls.openssl import OpenSsl
from uwgate.tls.sessions import Sessions
from uwgate.tls.tickets import TicketKeys

CIPHERS = (
    "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:"
    "ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384:"
    "ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305:"
    "DHE-RSA-AES128-GCM-SHA256:DHE-RSA-AES256-GCM-SHA384:DHE-RSA-CHACHA20-POLY1305"
)
_OLD_CIPHERS = (
    "ECDHE-ECDSA-AES128-SHA:ECDHE-RSA-AES128-SHA:ECDHE-ECDSA-AES256-SHA:ECDHE-RSA-AES256-SHA:"
    "AES128-SHA:AES256-SHA"
)
_PRIORITIZE_CHACHA = 0x00200000  # for who prefers it, as devices without AES in hardware do
_PEM = "-----BEGIN "


@dataclass(frozen=True, slots=True)
class Context:
    """A context for connections. ``domain``: "" where no client certificate is asked for, else
    the CA file and whether one is required: connections of one domain are no use in another.
    ``names``: what the certificate is for; ``not_after``: epoch seconds of its end."""

    ssl: ssl.SSLContext
    domain: str
    names: tuple[str, ...]
    not_after: int

    def covers(self, name: str) -> bool:
        """Whether the certificate is for ``name`` (RFC 6125 §6.4.3)."""
        return name in self.names or "*." + name.partition(".")[2] in self.names


def domain_of(pair: PairSettings) -> str:
    """``Context.domain`` of what that pair makes."""
    if not pair.client_ca:
        return ""
    return ("required " if pair.client_required else "optional ") + pair.client_ca


class Maker:
    """Makes contexts that share everything but their files.

    ``hooks``: None where OpenSSL's own cannot be reached: what is set through them stays at its
    default then (sessions and tickets of each context by itself, any length of a client's chain).
    """

    def __init__(
        self,
        settings: TlsSettings,
        *,
        hooks: OpenSsl | None,
        tickets: TicketKeys | None,
        sessions: Sessions | None,
        log: Callable[[str], None],
    ) -> None:
        self.settings = settings
        self.log = log
        self._hooks = hooks
        self._tickets = tickets
        self._sessions = sessions
        self._written: dict[str, str] = {}  # files in ssl-tmp-dir: path -> PEM text

    def make(self, pair: PairSettings, identity: str, *, spdy: bool = False) -> Context:
        """A context; ``spdy``: which offers SPDY/3.1, too. Sessions are resumed only between
        contexts of the same ``identity`` and client CA. Raises TlsError, which names the file."""
        cert = self._file(pair.cert, identity, "crt")
        key = self._file(pair.key, identity, "key")
        context = self._bare(pair)
        if spdy:
            offered = [*self.settings.alpn]
            offered.insert(-1, SPDY)  # before HTTP/1.1
            context.set_alpn_protocols(offered)
        facts = pairs.load(context, cert, key)
        authority: bytes | bytearray = b""
        if pair.client_ca:
            path = self._file(pair.client_ca, identity, "ca")
            authority = pairs.read(path, "client CA")
            authority += b"required" if pair.client_required else b"optional"
            self._ask_for_certificate(context, path, pair)
        self._share(context, identity, authority)
        return Context(context, domain_of(pair), facts.names, facts.not_after)

    def _bare(self, pair: PairSettings) -> ssl.SSLContext:
        settings = self.settings
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        lowest = _lowest(settings)
        old = lowest < ssl.TLSVersion.TLSv1_2
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # the operator was warned
            if lowest == ssl.TLSVersion.SSLv3:
                context.options &= ~ssl.OP_NO_SSLv3
            context.minimum_version = lowest
            context.options |= (
                ssl.OP_NO_RENEGOTIATION
                | ssl.OP_NO_COMPRESSION
                | ssl.OP_CIPHER_SERVER_PREFERENCE
                | _PRIORITIZE_CHACHA
                | settings.options
            )
        ciphers = pair.ciphers or (f"{CIPHERS}:{_OLD_CIPHERS}" if old else CIPHERS)
        if old and "@SECLEVEL" not in ciphers:
            ciphers += ":@SECLEVEL=0"
        try:
            context.set_ciphers(ciphers)
        except ssl.SSLError:
            raise TlsError(f"cipher list {pair.ciphers!r}: no cipher of it is known") from None
        context.set_alpn_protocols(list(settings.alpn))
        if not settings.tickets.enabled:
            context.options |= ssl.OP_NO_TICKET
        stateless = settings.tickets.enabled and not context.options & ssl.OP_NO_TICKET
        context.num_tickets = 1 if stateless or self._sessions is not None else 0
        return context

    def _ask_for_certificate(self, context: ssl.SSLContext, path: str, pair: PairSettings) -> None:
        with pairs.opened(path, "client CA") as file:
            try:
                context.load_verify_locations(file)
            except (ssl.SSLError, OSError):
                raise TlsError(f"client CA {path}: there is no PEM certificate in it") from None
            if self._hooks is not None:
                self._hooks.name_authorities(context, file)
        context.verify_mode = ssl.CERT_REQUIRED if pair.client_required else ssl.CERT_OPTIONAL
        if self._hooks is not None:
            self._hooks.set_verify_depth(context, self.settings.verify_depth)

    def _share(self, context: ssl.SSLContext, identity: str, authority: bytes | bytearray) -> None:
        hooks = self._hooks
        if hooks is None:
            return
        # With the CA itself in it, as files of the same name may differ between machines, and in
        # time: a session must not outlive the trust that it was made with.
        digest = hashlib.sha256(identity.encode() + b"\0" + hashlib.sha256(authority).digest())
        hooks.set_session_context(context, digest.digest())
        hooks.set_timeout(context, self.settings.sessions.timeout)
        hooks.save_memory(context)
        if self._sessions is None:
            hooks.no_sessions(context)
        if self._tickets is not None and self.settings.tickets.enabled:
            self._tickets.attach(hooks, context)
        if self._sessions is not None:
            self._sessions.attach(context)

    def _file(self, value: str, identity: str, ending: str) -> str:
        """The file's name; inline PEM is written to ssl-tmp-dir first."""
        if not value.startswith(_PEM):
            return value
        directory = self.settings.tmp_dir
        if not directory:
            raise TlsError("PEM text instead of a file name needs ssl-tmp-dir")
        name = identity.partition(" ")[2].replace("/", "_")
        path = os.path.join(directory, f"{name}.{ending}")
        number = 1
        while self._written.setdefault(path, value) != value:  # another with the same context
            number += 1
            path = os.path.join(directory, f"{name}-{number}.{ending}")
        try:
            _write(path, value)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise TlsError(f"ssl-tmp-dir: {path}: {reason}") from None
        return path


def _lowest(settings: TlsSettings) -> ssl.TLSVersion:
    """The oldest version to accept. An OpenSSL without SSL 3.0, as all are now, has no use for
    ``ssl-enable-sslv3``."""
    if settings.enable_sslv3 and ssl.HAS_SSLv3:
        return ssl.TLSVersion.SSLv3
    if settings.enable_tlsv1:
        return ssl.TLSVersion.TLSv1
    if settings.enable_tlsv11:
        return ssl.TLSVersion.TLSv1_1
    return ssl.TLSVersion.TLSv1_2


def _write(path: str, text: str) -> None:
    """The whole file or none, for the owner only."""
    handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path))
    try:
        with os.fdopen(handle, "w", errors="surrogateescape") as file:
            os.fchmod(file.fileno(), 0o400)
            file.write(text)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
