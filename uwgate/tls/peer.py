"""Facts of an established TLS connection, and of the certificate that its client showed."""

from __future__ import annotations

import hashlib
import ssl
from functools import cached_property

from uwgate.config.settings_tls import ListenerTls
from uwgate.tls.distinguished import Identity, identity, one_line

_UNREADABLE = Identity(0, b"", b"")


class Peer:
    """One connection.

    ``version``: "TLSv1.3"; ``cipher``: OpenSSL's name; ``domain``: of the context (``Context``);
    ``alpn``: the negotiated protocol; ``der``: the client's certificate, verified, None without
    one; ``listener``: where it came in. What is read from the certificate is so when first asked,
    and empty without one.
    """

    def __init__(
        self,
        *,
        version: str,
        cipher: str,
        resumed: bool,
        server_name: str,
        domain: str,
        alpn: str | None,
        der: bytes | None,
        listener: ListenerTls,
    ) -> None:
        self.version = version
        self.cipher = cipher
        self.resumed = resumed
        self.server_name = server_name
        self.domain = domain
        self.alpn = alpn
        self.der = der
        self.listener = listener

    @cached_property
    def _identity(self) -> Identity:
        try:
            return identity(self.der or b"")
        except ValueError:
            return _UNREADABLE

    @cached_property
    def subject(self) -> str:
        """Distinguished name in OpenSSL's one-line form, ASCII; "" if it cannot be read."""
        return _one_line(self._identity.subject)

    @cached_property
    def issuer(self) -> str:
        """The same of the issuer."""
        return _one_line(self._identity.issuer)

    @cached_property
    def serial(self) -> str:
        """Serial number, upper-case hexadecimal digits in pairs, as OpenSSL prints it."""
        if self._identity is _UNREADABLE:
            return ""
        serial = self._identity.serial
        digits = f"{abs(serial):X}"
        return "-" * (serial < 0) + "0" * (len(digits) % 2) + digits

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the certificate, 64 lower-case hexadecimal digits."""
        return "" if self.der is None else hashlib.sha256(self.der).hexdigest()

    @cached_property
    def pem(self) -> bytes:
        """The certificate as PEM text, with a newline at its end."""
        return b"" if self.der is None else ssl.DER_cert_to_PEM_cert(self.der).encode("ascii")


def _one_line(name: bytes) -> str:
    try:
        return one_line(name)
    except ValueError:
        return ""
