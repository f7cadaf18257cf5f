"""Facts of an established TLS connection, and of the certificate that its client showed."""

from __future__ import annotations

import re
from functools import cached_property

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from uwgate.config.settings_tls import ListenerTls

# As OpenSSL abbreviates them.
_SHORT = {
    NameOID.COMMON_NAME: "CN",
    NameOID.COUNTRY_NAME: "C",
    NameOID.DOMAIN_COMPONENT: "DC",
    NameOID.DN_QUALIFIER: "dnQualifier",
    NameOID.EMAIL_ADDRESS: "emailAddress",
    NameOID.GENERATION_QUALIFIER: "generationQualifier",
    NameOID.GIVEN_NAME: "GN",
    NameOID.INITIALS: "initials",
    NameOID.LOCALITY_NAME: "L",
    NameOID.ORGANIZATION_IDENTIFIER: "organizationIdentifier",
    NameOID.ORGANIZATION_NAME: "O",
    NameOID.ORGANIZATIONAL_UNIT_NAME: "OU",
    NameOID.POSTAL_CODE: "postalCode",
    NameOID.PSEUDONYM: "pseudonym",
    NameOID.SERIAL_NUMBER: "serialNumber",
    NameOID.STATE_OR_PROVINCE_NAME: "ST",
    NameOID.STREET_ADDRESS: "street",
    NameOID.SURNAME: "SN",
    NameOID.TITLE: "title",
    NameOID.UNSTRUCTURED_NAME: "unstructuredName",
    NameOID.USER_ID: "UID",
    NameOID.X500_UNIQUE_IDENTIFIER: "x500UniqueIdentifier",
}
_SPECIAL = re.compile(rb"[/+]")
_UNPRINTABLE = re.compile(rb"[^\x20-\x7e]")


class Peer:
    """One connection.

    ``version``: "TLSv1.3"; ``cipher``: OpenSSL's name; ``domain``: of the context (``Context``);
    ``alpn``: the negotiated protocol; ``der``: the client's certificate, verified, None without
    one; ``listener``: where it came in. What is read from the certificate is so when first asked.
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
    def _certificate(self) -> x509.Certificate:
        assert self.der is not None
        return x509.load_der_x509_certificate(self.der)

    @cached_property
    def subject(self) -> str:
        """Distinguished name in OpenSSL's one-line form, "" if it cannot be read."""
        try:
            return one_line(self._certificate.subject)
        except ValueError:
            return ""

    @cached_property
    def issuer(self) -> str:
        """The same of the issuer."""
        try:
            return one_line(self._certificate.issuer)
        except ValueError:
            return ""

    @cached_property
    def serial(self) -> str:
        """Serial number, upper-case hexadecimal digits in pairs, as OpenSSL prints it."""
        try:
            digits = f"{self._certificate.serial_number:X}"
        except ValueError:
            return ""
        return "0" + digits if len(digits) % 2 else digits

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the certificate, 64 lower-case hexadecimal digits."""
        digest = hashes.Hash(hashes.SHA256())
        assert self.der is not None
        digest.update(self.der)
        return digest.finalize().hex()

    @cached_property
    def pem(self) -> bytes:
        """The certificate as PEM text, with a newline at its end."""
        return self._certificate.public_bytes(Encoding.PEM)


def one_line(name: x509.Name) -> str:
    """``/C=IT/O=Acme, Inc/CN=x``: ``/`` and ``+`` inside of values after a backslash, bytes that
    are not printable as ``\\xNN``; several attributes of one step are joined by ``+``."""
    steps = []
    for step in name.rdns:
        parts = []
        for attribute in step:
            value = attribute.value
            raw = value.encode("utf-8") if isinstance(value, str) else value
            raw = _SPECIAL.sub(rb"\\\g<0>", raw)
            raw = _UNPRINTABLE.sub(lambda match: b"\\x%02X" % match[0][0], raw)
            label = _SHORT.get(attribute.oid, attribute.oid.dotted_string)
            parts.append(f"{label}={raw.decode('ascii')}")
        steps.append("/" + "+".join(parts))
    return "".join(steps)
