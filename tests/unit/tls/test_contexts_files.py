"""Files of contexts: what may be in them, and the one line that says what is wrong."""

from __future__ import annotations

import os
import ssl
import stat
import subprocess
from datetime import timedelta
from pathlib import Path

import pytest
from openssl_tools import TLS_1_2, World, connect, hooks
from support.certificates import Authority, Pair

from uwgate.config.settings_tls import PairSettings, TlsSettings
from uwgate.tls.contexts import Context, Maker
from uwgate.tls.errors import TlsError
from uwgate.tls.pairs import MAX_FILE


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def files(authority: Authority) -> Pair:
    return authority.issue("localhost", "*.Wild.example", "127.0.0.1")


def made(
    cert: Path | str,
    key: Path | str,
    ca: Path | str = "",
    *,
    identity: str = "listener http-:443",
    tmp_dir: Path | str = "",
    maker: Maker | None = None,
) -> Context:
    settings = TlsSettings(tmp_dir=str(tmp_dir))
    maker = maker or Maker(settings, hooks=hooks(), tickets=None, sessions=None, log=print)
    return maker.make(PairSettings(str(cert), str(key), client_ca=str(ca)), identity)


def refused(cert: Path | str, key: Path | str, ca: Path | str = "") -> str:
    """The line that says why."""
    with pytest.raises(TlsError) as caught:
        made(cert, key, ca)
    line = str(caught.value)
    assert "\n" not in line
    return line


# --- what is in a certificate ---------------------------------------------------------------------


def test_names_and_end(files: Pair) -> None:
    context = made(files.cert, files.key)
    assert context.names == ("localhost", "*.wild.example")
    assert context.not_after == int(files.certificate.not_valid_after_utc.timestamp())
    assert context.covers("localhost")
    assert context.covers("a.wild.example")
    for name in (
        "",
        "wild.example",
        "a.b.wild.example",
        "xlocalhost",
        "127.0.0.1",
        ".wild.example",
    ):
        assert not context.covers(name) or name == ".wild.example"


def test_expired_is_not_refused(authority: Authority) -> None:
    pair = authority.issue("old.example", ends=-timedelta(days=1))
    assert made(pair.cert, pair.key).not_after < pair.cert.stat().st_mtime


def test_certificate_and_key_in_one_file(tmp_path: Path, files: Pair) -> None:
    """In any order; the certificate is the first of its kind."""
    for parts in ((files.cert, files.key), (files.key, files.cert)):
        both = tmp_path / "both.pem"
        both.write_bytes(b"".join(part.read_bytes() for part in parts))
        assert made(both, both).names[0] == "localhost"


def test_a_certificate_of_which_only_openssl_knows_the_form(tmp_path: Path, files: Pair) -> None:
    path = tmp_path / "trusted.pem"
    command = ["openssl", "x509", "-in", str(files.cert), "-trustout", "-out", str(path)]
    subprocess.run(command, check=True, capture_output=True)
    context = made(path, files.key)
    assert (context.names, context.not_after) == ((), 0)
    assert not context.covers("localhost")


def test_a_certificate_of_a_version_that_does_not_exist(tmp_path: Path, files: Pair) -> None:
    der = ssl.PEM_cert_to_DER_cert(
        files.cert.read_text().partition("-----END")[0] + "-----END CERTIFICATE-----\n"
    )
    version = bytes.fromhex("a003020102")  # [0] EXPLICIT INTEGER 2, RFC 5280 section 4.1
    assert der.count(version) == 1
    path = tmp_path / "fifth.crt"
    path.write_text(ssl.DER_cert_to_PEM_cert(der.replace(version, bytes.fromhex("a003020104"))))
    context = made(path, files.key)  # OpenSSL does not mind
    assert (context.names, context.not_after) == ((), 0)


@pytest.mark.parametrize("parameters", [True, False])
def test_dh_parameters_in_the_certificate(tmp_path: Path, parameters: bool) -> None:
    world = World(tmp_path)
    pair = world.authority.issue("localhost", file="rsa", rsa_bits=2048)
    if parameters:
        command = ["openssl", "genpkey", "-genparam", "-algorithm", "DH"]
        command += ["-pkeyopt", "group:ffdhe2048"]
        found = subprocess.run(command, check=True, capture_output=True).stdout
        assert b"BEGIN DH PARAMETERS" in found
        with pair.cert.open("ab") as file:
            file.write(found)
    client = world.client(TLS_1_2)
    client.set_ciphers("DHE-RSA-AES128-GCM-SHA256")
    context = made(pair.cert, pair.key).ssl
    if parameters:
        connect(context, client)
    else:
        with pytest.raises(ssl.SSLError, match="NO_SHARED_CIPHER"):
            connect(context, client)


# --- what is wrong --------------------------------------------------------------------------------


def test_broken_dh_parameters(tmp_path: Path, files: Pair) -> None:
    path = tmp_path / "dh.pem"
    block = "-----BEGIN DH PARAMETERS-----\nAAAA\n-----END DH PARAMETERS-----\n"
    path.write_text(files.cert.read_text() + block)
    assert refused(path, files.key).startswith(f"certificate {path}: its DH PARAMETERS cannot be")


@pytest.mark.parametrize("which", ["certificate", "key", "client CA"])
@pytest.mark.parametrize(
    "kind", ["missing", "directory", "fifo", "device", "empty", "garbage", "nul"]
)
def test_no_such_file(tmp_path: Path, files: Pair, which: str, kind: str) -> None:
    """Named, whatever it is, and at once: nobody writes into that FIFO."""
    path = tmp_path / "thing"
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind in ("empty", "garbage"):
        path.write_text("-----BEGIN\n" * (kind == "garbage"))
    elif kind == "nul":
        path = Path(f"{path}\0x")
    given = {"certificate": files.cert, "key": files.key, "client CA": ""} | {which: path}
    line = refused(given["certificate"], given["key"], given["client CA"])
    assert line.startswith(f"{which} {path}: ")
    assert line.rpartition(": ")[2].startswith(
        {
            "missing": "no such file",
            "nul": "embedded null byte",
            "empty": "it is empty",
            "garbage": "there is no PEM",
        }.get(kind, "not a regular file")
    )


@pytest.mark.parametrize("which", ["certificate", "client CA"])
def test_too_large_a_file(tmp_path: Path, files: Pair, which: str) -> None:
    path = tmp_path / "large"
    path.write_bytes(files.cert.read_bytes())
    os.truncate(path, MAX_FILE + 1)
    given = (path, files.key) if which == "certificate" else (files.cert, files.key, path)
    assert refused(*given) == f"{which} {path}: {MAX_FILE + 1} bytes are too many"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path: Path, files: Pair) -> None:
    path = tmp_path / "key"
    path.touch(0)
    assert refused(files.cert, path) == f"key {path}: permission denied"


def test_an_encrypted_key_asks_nobody(authority: Authority) -> None:
    """OpenSSL would ask on the terminal, and wait for ever."""
    pair = authority.issue("locked.example", password=b"secret")
    line = refused(pair.cert, pair.key)
    assert line.startswith(f"key {pair.key}: it is encrypted")
    assert "secret" not in line


def test_a_key_of_another_certificate(authority: Authority, files: Pair, tmp_path: Path) -> None:
    for other in (authority.issue("b.example"), authority.issue("c.example", rsa_bits=2048)):
        line = refused(files.cert, other.key)
        assert line == f"key {other.key} does not belong to certificate {files.cert}"
    turned = tmp_path / "turned.pem"
    turned.write_bytes(authority.file.read_bytes() + files.cert.read_bytes())
    line = refused(turned, files.key)
    assert line.startswith(f"key {files.key} does not belong to certificate {turned}; ")
    assert "first" in line


def test_a_weak_key_is_called_so(authority: Authority) -> None:
    pair = authority.issue("weak.example", rsa_bits=1024)
    line = refused(pair.cert, pair.key)
    assert line.startswith(
        f"certificate {pair.cert}: its 1024-bit RSA key or signature is too weak"
    )
    assert "EE_KEY_TOO_SMALL" in line


def test_a_certificate_that_is_cut_off(tmp_path: Path, files: Pair) -> None:
    path = tmp_path / "cut.pem"
    lines = files.cert.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], lines[-1]]))
    assert refused(path, files.key).startswith(f"certificate {path}: there is no PEM certificate")


# --- PEM texts ------------------------------------------------------------------------------------


def test_pem_texts_are_written_for_their_owner_only(tmp_path: Path, files: Pair) -> None:
    cert, key = files.cert.read_text(), files.key.read_text()
    made(cert, key, cert, tmp_dir=tmp_path, identity="listener http-unix:/run/x.sock")
    base = tmp_path / "http-unix:_run_x.sock"
    for ending, text in ((".crt", cert), (".key", key), (".ca", cert)):
        path = base.with_name(base.name + ending)
        assert path.read_text() == text
        assert stat.S_IMODE(path.stat().st_mode) == 0o400
    assert len(list(tmp_path.iterdir())) == 3


def test_pem_texts_do_not_meet(tmp_path: Path, authority: Authority, files: Pair) -> None:
    """Listeners with a common context, a name that is like it: each has files of its own."""
    settings = TlsSettings(tmp_dir=str(tmp_path))
    maker = Maker(settings, hooks=hooks(), tickets=None, sessions=None, log=print)
    other = authority.issue("other.example")
    for pair in (files, other, files):
        made(pair.cert.read_text(), pair.key.read_text(), identity="listener x", maker=maker)
    assert (tmp_path / "x.crt").read_bytes() == files.cert.read_bytes()
    assert (tmp_path / "x-2.crt").read_bytes() == other.cert.read_bytes()
    assert len(list(tmp_path.iterdir())) == 4


def test_where_pem_texts_cannot_be_written(tmp_path: Path, files: Pair) -> None:
    cert, key = files.cert.read_text(), files.key.read_text()
    for directory, reason in (("", "needs ssl-tmp-dir"), (tmp_path / "missing", "ssl-tmp-dir: ")):
        with pytest.raises(TlsError, match=reason) as caught:
            made(cert, key, tmp_dir=directory)
        assert "\n" not in str(caught.value)
        assert "BEGIN" not in str(caught.value)
    (tmp_path / "x.crt").mkdir()  # cannot be replaced
    with pytest.raises(TlsError, match="ssl-tmp-dir: "):
        made(cert, key, tmp_dir=tmp_path, identity="name x")
    assert [path.name for path in tmp_path.iterdir()] == ["x.crt"]


def test_a_broken_pem_text_is_never_shown(tmp_path: Path, files: Pair) -> None:
    broken = "-----BEGIN PRIVATE KEY-----\nsecret\n-----END PRIVATE KEY-----\n"
    with pytest.raises(TlsError) as caught:
        made(files.cert, broken, tmp_dir=tmp_path)
    assert "secret" not in str(caught.value)
    assert "http-:443.key" in str(caught.value)
