"""What is said of a client's certificate, beside what OpenSSL says of it."""

from __future__ import annotations

import ctypes
import hashlib
import ssl
import subprocess
import warnings
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.name import _ASN1Type
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st
from openssl_tools import hooks
from support.certificates import Authority, Pair

from uwgate.config.settings_tls import ListenerTls, PairSettings
from uwgate.tls.distinguished import identity, one_line
from uwgate.tls.openssl import declare
from uwgate.tls.peer import Peer

LISTENER = ListenerTls(PairSettings("a.crt", "a.key"), "http-:443")


def peer(der: bytes | None) -> Peer:
    return Peer(
        version="TLSv1.3",
        cipher="TLS_AES_256_GCM_SHA384",
        resumed=False,
        server_name="a.example",
        domain="required /ca.pem",
        alpn=None,
        der=der,
        listener=LISTENER,
    )


def openssl_line(name: bytes) -> str | None:
    """What OpenSSL makes of a whole name in DER; None if it takes it for none."""
    library = hooks().library
    pointer, text = ctypes.c_void_p, ctypes.POINTER(ctypes.c_char_p)
    declare(
        library,
        (
            ("d2i_X509_NAME", pointer, (pointer, text, ctypes.c_long)),
            ("X509_NAME_oneline", pointer, (pointer, pointer, ctypes.c_int)),
            ("X509_NAME_free", None, (pointer,)),
            ("CRYPTO_free", None, (pointer, ctypes.c_char_p, ctypes.c_int)),
        ),
    )
    library.ERR_set_mark()
    cursor = ctypes.c_char_p(name)
    found = library.d2i_X509_NAME(None, ctypes.byref(cursor), len(name))
    library.ERR_pop_to_mark()
    if not found:
        return None
    line = library.X509_NAME_oneline(found, None, 0)
    value = ctypes.string_at(line).decode("ascii")
    library.CRYPTO_free(line, b"", 0)
    library.X509_NAME_free(found)
    return value


def element(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 128:
        return bytes((tag, size)) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + content


UTF8, PRINTABLE, T61, IA5, BMP, UNIVERSAL, NUMERIC = 12, 19, 20, 22, 30, 28, 18
KNOWN = [
    oid.dotted_string for oid in vars(NameOID).values() if isinstance(oid, x509.ObjectIdentifier)
]
STRANGE = ["1.2.3.4", "2.999.3", "1.3.6.1.4.1.4294967296.7", "2.5.4.127", "0.9"]


def encoded(oid: str) -> bytes:
    first, second, *rest = map(int, oid.split("."))
    out = b""
    for number in (first * 40 + second, *rest):
        digits = [number & 0x7F]
        while number := number >> 7:
            digits.insert(0, number & 0x7F | 0x80)
        out += bytes(digits)
    return element(6, out)


def values(tag: int) -> st.SearchStrategy[bytes]:
    """Strings of that type; OpenSSL wants whole characters of those of fixed width."""
    width = {BMP: 2, UNIVERSAL: 4}.get(tag, 1)
    plain = st.text('a/+\\"= ,é\x00\x7f', max_size=40).map(lambda text: text.encode())
    some = st.one_of(plain, st.binary(max_size=200))
    return some.map(lambda value: value[: len(value) // width * width])


attributes = st.tuples(
    st.sampled_from(KNOWN + STRANGE),
    st.sampled_from([UTF8, PRINTABLE, T61, IA5, BMP, UNIVERSAL, NUMERIC]).flatmap(
        lambda tag: values(tag).map(lambda value: element(tag, value))
    ),
).map(lambda pair: element(0x30, encoded(pair[0]) + pair[1]))
names = st.lists(st.lists(attributes, min_size=1, max_size=3), max_size=4)


@given(names)
@settings(max_examples=120, deadline=None)
def test_one_line_is_that_of_openssl(steps: list[list[bytes]]) -> None:
    content = b"".join(element(0x31, b"".join(step)) for step in steps)
    expected = openssl_line(element(0x30, content))
    if expected is not None:
        assert one_line(content) == expected


@given(names, st.data())
@settings(max_examples=100, deadline=None)
def test_what_is_no_name_is_an_error_and_no_other(
    steps: list[list[bytes]], data: st.DataObject
) -> None:
    content = bytearray(b"".join(element(0x31, b"".join(step)) for step in steps))
    for _ in range(data.draw(st.integers(1, 3))):
        if content:
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(content)[: data.draw(st.integers(0, len(content)))]
    try:
        assert one_line(cut).isascii()
    except ValueError:
        pass


def test_the_queue_of_errors_of_openssl_stays_empty() -> None:
    """What is left in it would be taken for the next handshake's."""
    library = hooks().library
    declare(library, (("ERR_peek_error", ctypes.c_ulong, ()),))
    content = b"".join(
        element(0x31, element(0x30, element(6, oid) + element(UTF8, b"x")))
        for oid in (b"", b"\x00", b"\x80", b"\xff" * 700 + b"\x01", bytes.fromhex("883703"))
    )
    assert "=x" in one_line(content)
    assert library.ERR_peek_error() == 0


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def files(authority: Authority) -> Pair:
    attribute = x509.NameAttribute
    subject = x509.Name(
        [
            attribute(NameOID.COUNTRY_NAME, "IT"),
            attribute(NameOID.STATE_OR_PROVINCE_NAME, "Lazio/Roma"),
            attribute(NameOID.ORGANIZATION_NAME, "Acme, Inc"),
            attribute(NameOID.COMMON_NAME, "Zoë", _type=_ASN1Type.BMPString),
            attribute(NameOID.EMAIL_ADDRESS, "a+b@a.example"),
            attribute(NameOID.SERIAL_NUMBER, "77"),
            attribute(NameOID.DOMAIN_COMPONENT, "example"),
            attribute(NameOID.USER_ID, "u"),
            attribute(x509.ObjectIdentifier("1.2.3.4"), "x"),
        ]
    )
    return authority.issue("client", subject=subject)


def x509_says(path: Path, *options: str) -> str:
    command = ["openssl", "x509", "-in", str(path), "-noout", *options]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return said.partition("=")[2].strip()


def test_facts_of_a_certificate(files: Pair) -> None:
    it = peer(files.der)
    assert it.subject == (
        "/C=IT/ST=Lazio\\/Roma/O=Acme, Inc/CN=\\x00Z\\x00o\\x00\\xEB/emailAddress=a\\+b@a.example"
        "/serialNumber=77/DC=example/UID=u/1.2.3.4=x"
    )
    assert it.issuer == "/CN=uwgate test CA"
    assert it.serial == x509_says(files.cert, "-serial")
    hexadecimal = x509_says(files.cert, "-fingerprint", "-sha256").replace(":", "").lower()
    assert it.fingerprint == hexadecimal == hashlib.sha256(files.der).hexdigest()
    assert it.pem == files.cert.read_bytes()


@pytest.mark.parametrize("serial", [0, 1, 127, 128, 255, 256, -1, -129, 2**159 - 1])
def test_serial_numbers(serial: int) -> None:
    content = serial.to_bytes(serial.bit_length() // 8 + 1, "big", signed=True)
    rest = element(0x30, b"") * 4
    for version in (b"", element(0xA0, element(2, b"\x02"))):
        tbs = element(0x30, version + element(2, content) + rest)
        it = peer(element(0x30, tbs + rest))
        digits = it.serial.removeprefix("-")
        assert len(digits) % 2 == 0
        assert int(it.serial, 16) == serial


def test_nothing_can_be_read(files: Pair) -> None:
    """Such a client is still one whose certificate OpenSSL has verified."""
    for der in (b"", b"\x30", b"\x30\x80\x00\x00", b"\x30\x03\x02\x01\x01", files.der[:60], None):
        it = peer(der)
        assert (it.subject, it.issuer, it.serial) == ("", "", "")
    assert (it.fingerprint, it.pem) == ("", b"")


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_damaged_certificates_raise_nothing(files: Pair, data: st.DataObject) -> None:
    der = bytearray(files.der)
    der[data.draw(st.integers(0, 250))] = data.draw(st.integers(0, 255))
    it = peer(bytes(der))
    assert it.subject.isascii()
    assert it.issuer.isascii()
    assert it.serial.isascii()


def test_what_cryptography_reads_is_the_same(files: Pair) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        certificate = x509.load_der_x509_certificate(files.der)
        found = identity(files.der)
        assert found.serial == certificate.serial_number
        for mine, theirs in (
            (found.subject, certificate.subject),
            (found.issuer, certificate.issuer),
        ):
            assert element(0x30, mine) == theirs.public_bytes()
    assert ssl.PEM_cert_to_DER_cert(peer(files.der).pem.decode()) == files.der
