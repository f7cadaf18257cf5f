"""Certificates for the TLS workloads: ECDSA P-256, self-signed, the same for all contenders."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

HOST = "www.example.com"
_DAY = datetime.timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Pair:
    """PEM files: certificate, key, and both in one (as HAProxy wants them)."""

    cert: Path
    key: Path
    both: Path


def make(directory: Path, name: str = HOST) -> Pair:
    """A new pair for ``name`` in ``directory``, which is made."""
    directory.mkdir(parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    pair = Pair(*(directory / f"server.{end}" for end in ("crt", "key", "pem")))
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public = _certificate(name, key)
    pair.cert.write_bytes(public)
    pair.key.write_bytes(private)
    pair.both.write_bytes(public + private)
    return pair


def fill(directory: Path, count: int) -> list[str]:
    """``NAME.crt`` and ``NAME.key`` for so many names, as ``sni-dir`` wants them; the names.

    All have one key: making ten thousand would take longer than what is measured.
    """
    directory.mkdir(parents=True)
    key = ec.generate_private_key(ec.SECP256R1())
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    names = [f"site{number}.example.com" for number in range(count)]
    for name in names:
        (directory / f"{name}.crt").write_bytes(_certificate(name, key))
        (directory / f"{name}.key").write_bytes(private)
    return names


def _certificate(name: str, key: ec.EllipticCurvePrivateKey) -> bytes:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _DAY)
        .not_valid_after(now + 30 * _DAY)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(Encoding.PEM)
