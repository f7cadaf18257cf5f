"""Files of certificates and keys: what is read of them, and what is wrong with them.

Files may be named by whoever may announce a node, so only regular files of a sensible size are
read. A key's bytes are left to OpenSSL; where certificate and key share a file, what was read of it
is overwritten.
"""

from __future__ import annotations

import os
import re
import ssl
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import dsa, ec, rsa

from uwgate.tls.errors import TlsError

MAX_FILE = 4 << 20
"""Bytes of the largest file that is read: fifteen times the CA certificates of a browser."""

_CERTIFICATE = re.compile(
    rb"-----BEGIN (X509 |TRUSTED )?CERTIFICATE-----.*?-----END (?:X509 |TRUSTED )?CERTIFICATE-----",
    re.DOTALL,
)

# The last one: the key is of a type that the certificate is not of.
_MISMATCHES = ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED")


class Facts(NamedTuple):
    """Of the first certificate of a file. ``names``: what it is for, in lower case (RFC 5280
    §4.2.1.6); ``not_after``: epoch seconds of its end, 0 if that cannot be read."""

    names: tuple[str, ...]
    not_after: int


def load(context: ssl.SSLContext, cert: str, key: str) -> Facts:
    """Have ``context`` show the chain in the file ``cert``, with the DH parameters in it, if there
    are any. TlsError, which names the file."""
    text = read(cert, "certificate")
    try:
        first = _CERTIFICATE.search(text)
        if first is None:
            raise TlsError(f"certificate {cert}: there is no PEM certificate in it")
        certificate = _parse(bytes(first[0]))
        several = _CERTIFICATE.search(text, first.end()) is not None
        parameters = b"-----BEGIN DH PARAMETERS" in text
    finally:
        text[:] = bytes(len(text))
    _load_pair(context, cert, key, _Certificate(certificate, several))
    if parameters:
        try:
            with opened(cert, "certificate") as file:
                context.load_dh_params(file)
        except (ssl.SSLError, OSError) as error:
            why = getattr(error, "reason", None) or error.strerror
            raise TlsError(f"certificate {cert}: its DH PARAMETERS cannot be used: {why}") from None
    if certificate is None:
        return Facts((), 0)
    return Facts(_names(certificate), _end(certificate))


def read(path: str, what: str) -> bytearray:
    """The bytes of a regular file of at most MAX_FILE bytes; TlsError, with ``what`` it is."""
    handle = _open(path, what)
    try:
        size = os.fstat(handle).st_size
        data = bytearray(size + 1)
        with open(handle, "rb", buffering=0, closefd=False) as file:
            del data[file.readinto(data) :]
        return data
    except OSError as error:
        raise TlsError(f"{what} {path}: {_why(error)}") from None
    finally:
        os.close(handle)


def _open(path: str, what: str) -> int:
    """TlsError unless it is a regular file: a FIFO would stop everything, a device never end."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except (OSError, ValueError) as error:
        raise TlsError(f"{what} {path}: {_why(error)}") from None
    status = os.fstat(handle)
    fault = ""
    if not stat.S_ISREG(status.st_mode):
        fault = "not a regular file"
    elif status.st_size > MAX_FILE:
        fault = f"{status.st_size} bytes are too many"
    elif not status.st_size:  # those of /proc say so, and may never end
        fault = "it is empty"
    if fault:
        os.close(handle)
        raise TlsError(f"{what} {path}: {fault}")
    return handle


@contextmanager
def opened(path: str, what: str) -> Iterator[str]:
    """A name for OpenSSL to open the file by, which stays the one that was looked at: whoever may
    write to the directory could put a FIFO in its place meanwhile."""
    handle = _open(path, what)
    try:
        yield f"/proc/self/fd/{handle}"
    finally:
        os.close(handle)


def _why(error: Exception) -> str:
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return (reason or str(error)).lower()


class _Certificate(NamedTuple):
    """The first of a file, None if it is too odd to be read; whether there are more."""

    first: x509.Certificate | None
    several: bool


class _EncryptedError(Exception):
    """A key has a password."""


def _no_password() -> str:
    """OpenSSL would ask on the terminal otherwise."""
    raise _EncryptedError


def _load_pair(context: ssl.SSLContext, cert: str, key: str, certificate: _Certificate) -> None:
    try:
        with opened(key, "key") as key_file, opened(cert, "certificate") as cert_file:
            context.load_cert_chain(cert_file, key_file, password=_no_password)
    except _EncryptedError:
        raise TlsError(
            f"key {key}: it is encrypted, and there is nobody to type a password; "
            "store it without one"
        ) from None
    except ssl.SSLError as error:
        raise TlsError(_explain(error.reason or "", cert, key, certificate)) from None
    except OSError as error:
        raise TlsError(f"certificate {cert}, key {key}: {_why(error)}") from None


def _explain(reason: str, cert: str, key: str, certificate: _Certificate) -> str:
    if reason in _MISMATCHES:
        order = "; the server's own certificate has to be the first one in its file"
        return f"key {key} does not belong to certificate {cert}" + order * certificate.several
    if reason.endswith(("_TOO_SMALL", "_TOO_WEAK")):
        whose = "a CA's" if reason.startswith("CA_") else _kind(certificate.first)
        return f"certificate {cert}: {whose} key or signature is too weak for OpenSSL ({reason})"
    # The certificate's file is read first, and OpenSSL does not say where it stopped.
    try:
        probe = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        probe.load_verify_locations(cert)
    except (ssl.SSLError, OSError):
        return f"certificate {cert}: there is no PEM certificate in it that can be read"
    return f"key {key}: there is no PEM key in it that can be read ({reason or 'unknown'})"


def _kind(certificate: x509.Certificate | None) -> str:
    """For example "its 1024-bit RSA"; "its" where that cannot be told."""
    try:
        key = None if certificate is None else certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        key = None
    for kind, name in (
        (rsa.RSAPublicKey, "RSA"), (ec.EllipticCurvePublicKey, "EC"), (dsa.DSAPublicKey, "DSA"),
    ):  # fmt: skip
        if isinstance(key, kind):
            return f"its {key.key_size}-bit {name}"
    return "its"


def _parse(pem: bytes) -> x509.Certificate | None:
    """None for what OpenSSL may take all the same."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # OpenSSL is the judge
        try:
            return x509.load_pem_x509_certificate(pem)
        except (ValueError, x509.InvalidVersion):
            return None


def _names(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        return tuple(name.lower() for name in found.value.get_values_for_type(x509.DNSName))
    except (
        x509.ExtensionNotFound,
        x509.DuplicateExtension,
        x509.UnsupportedGeneralNameType,
        ValueError,
    ):
        return ()


def _end(certificate: x509.Certificate) -> int:
    try:
        return int(certificate.not_valid_after_utc.timestamp())
    except (ValueError, OverflowError):
        return 0
