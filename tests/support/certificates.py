"""Certificates for tests: ECDSA P-256, good from yesterday for ten days, unless said otherwise."""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAY = datetime.timedelta(days=1)

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@dataclass(frozen=True)
class Pair:
    """PEM files of a certificate and its key, and what is in the certificate."""

    cert: Path
    key: Path
    certificate: x509.Certificate

    @property
    def der(self) -> bytes:
        """The certificate's bytes."""
        return self.certificate.public_bytes(Encoding.DER)


class Authority:
    """A CA whose files are in ``where``; ``file``: its own certificate. ``above``: the CA that
    signs it, if it is not a root."""

    def __init__(
        self, where: Path, name: str = "uwgate test CA", above: Authority | None = None
    ) -> None:
        self.where = where
        self.name = _name(name)
        self.key = ec.generate_private_key(ec.SECP256R1())
        signer = self if above is None else above
        self.certificate = _certificate(
            self.name, signer.name, self.key, signer.key, [], 10 * DAY, ca=True
        )
        self.file = where / f"{name.replace(' ', '-')}.pem"
        self.file.write_bytes(self.certificate.public_bytes(Encoding.PEM))

    def issue(
        self,
        name: str,
        *more: str,
        file: str = "",
        subject: x509.Name | None = None,
        rsa_bits: int = 0,
        ends: datetime.timedelta = 10 * DAY,
        password: bytes = b"",
    ) -> Pair:
        """A pair for ``name`` and ``more`` (host names or addresses), good for servers and clients;
        ``file``: the files' name without ``.crt``, ``.key``; ``subject``: another than CN=name;
        ``rsa_bits``: an RSA key of that size; ``ends``: from now on, may be in the past;
        ``password``: of the key's file."""
        key = _new_key(rsa_bits)
        certificate = _certificate(
            subject or _name(name), self.name, key, self.key, [name, *more], ends, ca=False
        )
        base = self.where / (file or name.replace("*", "_"))
        pair = Pair(
            base.with_name(base.name + ".crt"), base.with_name(base.name + ".key"), certificate
        )
        pair.cert.write_bytes(certificate.public_bytes(Encoding.PEM))
        locked = BestAvailableEncryption(password) if password else NoEncryption()
        pair.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, locked))
        return pair


def _new_key(rsa_bits: int) -> Key:
    if rsa_bits:
        return rsa.generate_private_key(65537, rsa_bits)
    return ec.generate_private_key(ec.SECP256R1())


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _certificate(
    subject: x509.Name,
    issuer: x509.Name,
    key: Key,
    signer: Key,
    names: list[str],
    ends: datetime.timedelta,
    *,
    ca: bool,
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + min(ends, datetime.timedelta()) - DAY)
        .not_valid_after(now + ends)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    )
    if names:
        alternatives = [_alternative(name) for name in names]
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    return builder.sign(signer, hashes.SHA256())
