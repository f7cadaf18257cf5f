"""Signatures: the captured ones of uWSGI, our own both ways with OpenSSL, keys that do not do."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import given
from hypothesis import strategies as st
from interop.peers import needs
from packet_tools import FIXTURES, captured

from uwgate.subscriptions.packet import Announcement, decode, encode
from uwgate.subscriptions.signing import (
    Signer,
    SigningError,
    Verifier,
    digest_known,
    key_file,
    split,
)

PUBLIC_KEY = (FIXTURES / "signing_public_key.pem").read_bytes()
SIGNED = ["subscribe_signed_sha1", "unsubscribe_signed_sha1", "subscribe2_signed_sha256"]
DIGESTS = [
    "sha1", "sha224", "sha256", "sha384", "sha512", "sha512-224", "sha512-256",
    "sha3-224", "sha3-256", "sha3-384", "sha3-512",
]  # fmt: skip
ONLY_EC = ["blake2b512", "blake2s256"]

Private = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


def private_pem(
    key: Private,
    form: PrivateFormat = PrivateFormat.PKCS8,
    encryption: KeySerializationEncryption | None = None,
) -> bytes:
    return key.private_bytes(Encoding.PEM, form, encryption or NoEncryption())


def public_pem(key: Private, form: PublicFormat = PublicFormat.SubjectPublicKeyInfo) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, form)


RSA_KEY = rsa.generate_private_key(65537, 2048)
OTHER_RSA_KEY = rsa.generate_private_key(65537, 2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())
ED_KEY = ed25519.Ed25519PrivateKey.generate()
# 648 bits: a product of two primes of Mersenne.
SHORT_P, SHORT_Q = 2**521 - 1, 2**127 - 1
KEYS = {"rsa": RSA_KEY, "ec": EC_KEY}


def short_key() -> rsa.RSAPrivateKey:
    d = pow(65537, -1, (SHORT_P - 1) * (SHORT_Q - 1))
    return rsa.RSAPrivateNumbers(
        SHORT_P,
        SHORT_Q,
        d,
        d % (SHORT_P - 1),
        d % (SHORT_Q - 1),
        pow(SHORT_Q, -1, SHORT_P),
        rsa.RSAPublicNumbers(65537, SHORT_P * SHORT_Q),
    ).private_key()


# --- what uWSGI signed -------------------------------------------------------------------------


@pytest.mark.parametrize("name", SIGNED)
def test_captured_signature(name: str) -> None:
    found = decode(captured(name))
    digest = name.rpartition("_")[2]
    assert Verifier(PUBLIC_KEY, digest).verify(found.signed, found.signature)
    assert Verifier(PUBLIC_KEY, digest.upper()).verify(found.signed, found.signature)
    for other in {"sha1", "sha256", "sha512"} - {digest}:
        assert not Verifier(PUBLIC_KEY, other).verify(found.signed, found.signature)
    assert not Verifier(public_pem(RSA_KEY), digest).verify(found.signed, found.signature)
    assert not Verifier(public_pem(EC_KEY), digest).verify(found.signed, found.signature)


@pytest.mark.parametrize("name", SIGNED)
def test_every_signed_byte_counts(name: str) -> None:
    found = decode(captured(name))
    verify = Verifier(PUBLIC_KEY, name.rpartition("_")[2]).verify
    for index in range(len(found.signed)):
        changed = bytearray(found.signed)
        changed[index] ^= 1
        assert not verify(bytes(changed), found.signature)
    for index in range(len(found.signature)):
        changed = bytearray(found.signature)
        changed[index] ^= 0x80
        assert not verify(found.signed, bytes(changed))


# --- our own -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize("digest", DIGESTS)
def test_sign_and_verify(kind: str, digest: str) -> None:
    key = KEYS[kind]
    signature = Signer(private_pem(key), digest).sign(b"data")
    verifier = Verifier(public_pem(key), digest)
    assert verifier.verify(b"data", signature)
    assert not verifier.verify(b"date", signature)
    assert not verifier.verify(b"data", signature[:-1])
    assert not verifier.verify(b"data", signature + b"\0")
    assert not verifier.verify(b"data", b"")


@pytest.mark.parametrize("digest", ONLY_EC)
def test_digests_for_ec_keys_only(digest: str) -> None:
    signature = Signer(private_pem(EC_KEY), digest).sign(b"data")
    assert Verifier(public_pem(EC_KEY), digest).verify(b"data", signature)
    with pytest.raises(SigningError, match="cannot be used with this key"):
        Signer(private_pem(RSA_KEY), digest)
    with pytest.raises(SigningError, match="cannot be used with this key"):
        Verifier(public_pem(RSA_KEY), digest)


@pytest.mark.parametrize("kind", KEYS)
def test_signed_packet(kind: str) -> None:
    key = KEYS[kind]
    sent = Announcement("example.com", "10.0.0.7:3031", weight=4, unix=1795231162)
    found = decode(encode(sent, sign=Signer(private_pem(key), "sha256").sign))
    verify = Verifier(public_pem(key), "sha256").verify
    assert verify(found.signed, found.signature)
    assert encode(sent)[4:] == found.signed
    forged = decode(encode(sent, sign=lambda data: found.signature[::-1]))
    assert not verify(forged.signed, forged.signature)


@given(st.binary(max_size=600), st.sampled_from(["rsa", "ec"]))
def test_rubbish_is_no_signature(signature: bytes, kind: str) -> None:
    assert not Verifier(public_pem(KEYS[kind]), "sha256").verify(b"data", signature)


@given(st.binary(max_size=200), st.integers(0, 71), st.binary(max_size=8))
def test_rubbish_in_der_is_no_signature(data: bytes, where: int, patch: bytes) -> None:
    signature = EC_SIGNATURE[:where] + patch + EC_SIGNATURE[where + len(patch) :]
    expected = data == b"data" and signature == EC_SIGNATURE
    assert EC_VERIFIER.verify(data, signature) is expected


EC_SIGNATURE = Signer(private_pem(EC_KEY), "sha256").sign(b"data")
EC_VERIFIER = Verifier(public_pem(EC_KEY), "sha256")


# --- with OpenSSL's command --------------------------------------------------------------------


def openssl(*arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [needs("openssl"), *map(str, arguments)], capture_output=True, check=False, timeout=20
    )


@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize("digest", ["sha1", "SHA256", "sha512", "sha3-256"])
def test_openssl_verifies_ours_and_we_verify_its(kind: str, digest: str, tmp_path: Path) -> None:
    key = KEYS[kind]
    secret, public = tmp_path / "private.pem", tmp_path / "public.pem"
    data, theirs, ours = tmp_path / "data", tmp_path / "theirs", tmp_path / "ours"
    secret.write_bytes(private_pem(key))
    public.write_bytes(public_pem(key))
    data.write_bytes(b"\x03\0key\x01\0k")
    done = openssl("dgst", f"-{digest.lower()}", "-sign", secret, "-out", theirs, data)
    assert done.returncode == 0, done.stderr
    assert Verifier(public.read_bytes(), digest).verify(data.read_bytes(), theirs.read_bytes())
    ours.write_bytes(Signer(secret.read_bytes(), digest).sign(data.read_bytes()))
    done = openssl("dgst", f"-{digest.lower()}", "-verify", public, "-signature", ours, data)
    assert (done.returncode, done.stdout) == (0, b"Verified OK\n"), done.stderr


def test_keys_that_openssl_makes(tmp_path: Path) -> None:
    """The recipe of uWSGI's documentation, in both formats that OpenSSL has written since."""
    secret, public = tmp_path / "private.pem", tmp_path / "public.pem"
    for traditional in ([], ["-traditional"]):
        done = openssl("genrsa", *traditional, "-out", secret, "2048")
        assert done.returncode == 0, done.stderr
        done = openssl("rsa", "-in", secret, "-pubout", "-out", public)
        assert done.returncode == 0, done.stderr
        signature = Signer(secret.read_bytes(), "sha1").sign(b"data")
        assert Verifier(public.read_bytes(), "sha1").verify(b"data", signature)


# --- what does not do --------------------------------------------------------------------------


def test_old_formats_of_rsa_keys() -> None:
    signature = Signer(private_pem(RSA_KEY, PrivateFormat.TraditionalOpenSSL), "sha1").sign(b"x")
    assert Verifier(public_pem(RSA_KEY, PublicFormat.PKCS1), "sha1").verify(b"x", signature)
    assert not Verifier(public_pem(OTHER_RSA_KEY), "sha1").verify(b"x", signature)


def test_rsa_of_1024_bits_is_the_least() -> None:
    key = rsa.generate_private_key(65537, 1024)
    signature = Signer(private_pem(key), "sha512").sign(b"x")
    assert Verifier(public_pem(key), "sha512").verify(b"x", signature)


PUBLIC_FAULTS: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "not a public key in PEM"),
    "rubbish": (lambda: b"\xff" * 100, "not a public key in PEM"),
    "private": (lambda: private_pem(RSA_KEY), "not a public key in PEM"),
    "cut": (lambda: PUBLIC_KEY[:200], "not a public key in PEM"),
    "ed25519": (lambda: public_pem(ED_KEY), "of the kind Ed25519; expected an RSA or EC key"),
    "short": (lambda: public_pem(short_key()), "has 648 bits; at least 1024"),
}
PRIVATE_FAULTS: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "not a private key in PEM"),
    "rubbish": (lambda: b"\xff" * 100, "not a private key in PEM"),
    "public": (lambda: PUBLIC_KEY, "not a private key in PEM"),
    "cut": (lambda: private_pem(RSA_KEY)[:300], "not a private key in PEM"),
    "ed25519": (lambda: private_pem(ED_KEY), "of the kind Ed25519; expected an RSA or EC key"),
    "short": (lambda: private_pem(short_key()), "has 648 bits; at least 1024"),
    "openssh": (lambda: private_pem(RSA_KEY, PrivateFormat.OpenSSH), "ssh-keygen -p -m PEM"),
    "passphrase": (
        lambda: private_pem(RSA_KEY, encryption=BestAvailableEncryption(b"secret")),
        "has a passphrase",
    ),
}


@pytest.mark.parametrize("name", PUBLIC_FAULTS)
def test_public_keys_that_do_not_do(name: str) -> None:
    pem, text = PUBLIC_FAULTS[name]
    with pytest.raises(SigningError, match=text):
        Verifier(pem(), "sha256")


@pytest.mark.parametrize("name", PRIVATE_FAULTS)
def test_private_keys_that_do_not_do(name: str) -> None:
    pem, text = PRIVATE_FAULTS[name]
    with pytest.raises(SigningError, match=text):
        Signer(pem(), "sha256")


def test_digests() -> None:
    for name in (*DIGESTS, *ONLY_EC, "SHA1", "Sha256"):
        assert digest_known(name), name
    for name in ("", "md5", "MD5", "sha", "sha0", "sha256 ", "none", "sm3"):
        assert not digest_known(name), name
    with pytest.raises(SigningError, match="'MD5' is too weak"):
        Verifier(PUBLIC_KEY, "MD5")
    with pytest.raises(SigningError, match="'md5' is too weak"):
        Signer(private_pem(RSA_KEY), "md5")
    with pytest.raises(SigningError, match=r"'sha257' is not known; expected one of sha1, "):
        Verifier(PUBLIC_KEY, "sha257")


@pytest.mark.parametrize(
    ("directory", "key", "path"),
    [
        ("/keys", "example.com", "/keys/example.com.pem"),
        ("/keys/", "test.it:8000", "/keys/test.it_8000.pem"),
        ("", "k", "k.pem"),
        ("keys", "a-b_C.9", "keys/a-b_C.9.pem"),
        ("/keys", "example.com/mount/point", "/keys/example.com.pem"),
        ("/keys", "../../etc/passwd", "/keys/...pem"),
        ("/keys", "..", "/keys/...pem"),
        ("/keys", "/absolute", "/keys/.pem"),
        ("/keys", "a\\b%2f~\0é", "/keys/a_b_2f____.pem"),
        ("/keys", "[::1]:80", "/keys/___1__80.pem"),
    ],
)
def test_key_file(directory: str, key: str, path: str) -> None:
    assert key_file(directory, key) == path


@given(st.text(max_size=300))
def test_no_key_leaves_the_directory(key: str) -> None:
    path = key_file("/keys", key)
    assert path.startswith("/keys/")
    assert path.count("/") == 2
    assert path.endswith(".pem")


def test_split() -> None:
    assert split("SHA1:/etc/keys") == ("SHA1", "/etc/keys")
    assert split("sha256:dir:with:colons") == ("sha256", "dir:with:colons")
    for text in ("", "sha1", "sha1:", ":/etc/keys"):
        with pytest.raises(ValueError, match="is not complete; expected DIGEST:PATH"):
            split(text)
    with pytest.raises(ValueError, match="too weak"):
        split("md5:/etc/keys")
    with pytest.raises(ValueError, match="not known"):
        split("/etc/keys:sha1")
