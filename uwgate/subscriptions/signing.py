"""Signatures of subscription packets: digests by OpenSSL's names, PEM keys, sign and verify.

A signature is what OpenSSL's EVP_DigestSign makes of the signed bytes: PKCS#1 v1.5 with an RSA key,
DER-encoded ECDSA with an EC key (uWSGI core/ssl.c uses the same calls). Both sides have to name the
same digest: the packet does not say it. Ed25519 and its like take no digest and do not fit.
"""

from __future__ import annotations

import os
import re

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import (
    load_pem_private_key,
    load_pem_public_key,
)

__all__ = ["Signer", "SigningError", "Verifier", "digest_known", "key_file", "split"]

_MIN_RSA_BITS = 1024  # keys not much shorter have been factored; 2048 are what to make today

_HASHES: dict[str, hashes.HashAlgorithm] = {
    "sha1": hashes.SHA1(),  # what uWSGI's examples sign with
    "sha224": hashes.SHA224(),
    "sha256": hashes.SHA256(),
    "sha384": hashes.SHA384(),
    "sha512": hashes.SHA512(),
    "sha512-224": hashes.SHA512_224(),
    "sha512-256": hashes.SHA512_256(),
    "sha3-224": hashes.SHA3_224(),
    "sha3-256": hashes.SHA3_256(),
    "sha3-384": hashes.SHA3_384(),
    "sha3-512": hashes.SHA3_512(),
    "blake2b512": hashes.BLAKE2b(64),  # these two with EC keys only: PKCS#1 has no name for them
    "blake2s256": hashes.BLAKE2s(32),
}
_BROKEN = frozenset(("md2", "md4", "md5", "md5-sha1", "mdc2"))
_NOT_IN_FILE_NAMES = re.compile(rb"[^0-9A-Za-z._-]")
_PKCS1 = padding.PKCS1v15()


class SigningError(ValueError):
    """A digest or key that cannot be used; ``str()`` is one sentence that says why."""


def _hash(digest: str) -> hashes.HashAlgorithm:
    name = digest.lower()
    found = _HASHES.get(name)
    if found is not None:
        return found
    if name in _BROKEN:
        raise SigningError(f"the digest {digest!r} is too weak to sign with; use sha256")
    raise SigningError(f"the digest {digest!r} is not known; expected one of {', '.join(_HASHES)}")


def digest_known(name: str) -> bool:
    """Whether ``name`` is a digest to sign with: OpenSSL's name in any case, MD5 not among them."""
    return name.lower() in _HASHES


def _unfit(key: object) -> SigningError:
    kind = type(key).__name__.removesuffix("PublicKey").removesuffix("PrivateKey")
    return SigningError(f"the key is of the kind {kind}; expected an RSA or EC key")


def _check_size(bits: int) -> None:
    if bits < _MIN_RSA_BITS:
        raise SigningError(f"the RSA key has {bits} bits; at least {_MIN_RSA_BITS} are needed")


class Verifier:
    """A public key and a digest.

    ``pem``: "BEGIN PUBLIC KEY" (or "BEGIN RSA PUBLIC KEY"). SigningError if it is no RSA or EC key,
    an RSA key is under 1024 bits, or this OpenSSL does not do ``digest`` with it.
    """

    __slots__ = ("_hash", "_key")

    def __init__(self, pem: bytes, digest: str) -> None:
        self._hash = _hash(digest)
        try:
            key = load_pem_public_key(pem)
        except (ValueError, UnsupportedAlgorithm):
            raise SigningError("this is not a public key in PEM format") from None
        if isinstance(key, rsa.RSAPublicKey):
            _check_size(key.key_size)
        elif not isinstance(key, ec.EllipticCurvePublicKey):
            raise _unfit(key)
        self._key = key
        try:
            self.verify(b"", b"")
        except UnsupportedAlgorithm:
            raise SigningError(f"the digest {digest!r} cannot be used with this key") from None

    def verify(self, data: bytes, signature: bytes) -> bool:
        """Whether ``signature`` is one of ``data``; False for anything that is no signature."""
        try:
            if isinstance(self._key, rsa.RSAPublicKey):
                self._key.verify(signature, data, _PKCS1, self._hash)
            else:
                self._key.verify(signature, data, ec.ECDSA(self._hash))
        except InvalidSignature:
            return False
        return True


class Signer:
    """A private key and a digest.

    ``pem``: without passphrase. SigningError as in `Verifier`, and for OpenSSH's own format, which
    uWSGI cannot read either.
    """

    __slots__ = ("_hash", "_key")

    def __init__(self, pem: bytes, digest: str) -> None:
        self._hash = _hash(digest)
        if b"BEGIN OPENSSH PRIVATE KEY" in pem:
            raise SigningError(
                "the key is in OpenSSH's format; ssh-keygen -p -m PEM -f FILE makes it PEM"
            )
        try:
            key = load_pem_private_key(pem, None)
        except TypeError:
            raise SigningError("the private key has a passphrase; expected one without") from None
        except (ValueError, UnsupportedAlgorithm):
            raise SigningError("this is not a private key in PEM format") from None
        if isinstance(key, rsa.RSAPrivateKey):
            _check_size(key.key_size)
        elif not isinstance(key, ec.EllipticCurvePrivateKey):
            raise _unfit(key)
        self._key = key
        try:
            self.sign(b"")
        except UnsupportedAlgorithm:
            raise SigningError(f"the digest {digest!r} cannot be used with this key") from None

    def sign(self, data: bytes) -> bytes:
        """The signature: as long as the modulus (RSA), or DER of varying length (EC)."""
        if isinstance(self._key, rsa.RSAPrivateKey):
            return self._key.sign(data, _PKCS1, self._hash)
        return self._key.sign(data, ec.ECDSA(self._hash))


def key_file(directory: str, key: str) -> str:
    """Where the public key of the routing key ``key`` is: ``DIRECTORY/KEY.pem``.

    A mountpoint (all from the first ``/``) does not count; every byte outside ``[0-9A-Za-z._-]``
    becomes ``_``, so that no key leaves the directory (uWSGI: ``test.it:8000`` ->
    ``test.it_8000.pem``). The name may be longer than the file system takes.
    """
    host = key.partition("/")[0].encode("utf-8", "surrogatepass")
    return os.path.join(directory, _NOT_IN_FILE_NAMES.sub(b"_", host).decode("ascii") + ".pem")


def split(text: str) -> tuple[str, str]:
    """``DIGEST:PATH`` -> digest and path; ValueError if a half is missing or the digest unfit."""
    digest, _, path = text.partition(":")
    if not digest or not path:
        raise ValueError(f"{text!r} is not complete; expected DIGEST:PATH, as in sha256:/etc/keys")
    _hash(digest)
    return digest, path
