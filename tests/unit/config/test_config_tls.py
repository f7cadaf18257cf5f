"""TLS listeners: grammar, files, order, and what all of them share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from config_tools import configured, errors_of, http_of, settings_of, warnings_of
from tls_tools import TO, complaints, ini, pair, remarks, tls

from uwgate.config.settings import Endpoint, ListenerSettings
from uwgate.config.settings_tls import ListenerTls, Redirect, TlsSettings

pytestmark = pytest.mark.usefixtures("files")


# Listeners.


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("https = :443,foobar.crt,foobar.key", {}),
        ("https = :443,foobar.crt,foobar.key,HIGH", {"ciphers": "HIGH"}),
        ("https = :443,foobar.crt,foobar.key,,ca.crt", {"ca": "ca.crt"}),
        (
            "https = :443,foobar.crt,foobar.key,HIGH,!ca.crt",
            {"ciphers": "HIGH", "ca": "ca.crt", "required": True},
        ),
        ("https2 = addr=:443,cert=foobar.crt,key=foobar.key", {}),
        ("https2 = key=foobar.key,crt=foobar.crt,addr=:443,,", {}),
        (
            "https2 = addr=:443,cert=foobar.crt,key=foobar.key,ciphers=HIGH,clientca=!ca.crt",
            {"ciphers": "HIGH", "ca": "ca.crt", "required": True},
        ),
        (
            "https2 = addr=:443,cert=foobar.crt,key=foobar.key,client_ca=ca.crt",
            {"ca": "ca.crt"},
        ),
        (r"https2 = addr=:443,cert=foo\bar.crt,key=foobar.key", {}),
    ],
)
def test_a_listener(line: str, expected: dict[str, str | bool]) -> None:
    http = ini(line)
    where = Endpoint("tcp", ":443", port=443)
    assert http.listeners == (
        ListenerSettings(where, tls=ListenerTls(pair(**expected), "http-:443")),
    )
    assert http.tls == TlsSettings()


def test_a_comma_in_a_name() -> None:
    Path("a,b.crt").write_text("")
    http = ini(r"https2 = addr=:443,cert=a\,b.crt,key=foobar.key")
    assert http.listeners[0].tls is not None
    assert http.listeners[0].tls.pair.cert == os.path.abspath("a,b.crt")


def test_everything_behind_the_fourth_comma_is_the_ca() -> None:
    Path("c,a.crt").write_text("")
    http = ini("https = :443,foobar.crt,foobar.key,,!c,a.crt")
    assert http.listeners[0].tls is not None
    assert http.listeners[0].tls.pair == pair(ca="c,a.crt", required=True)


@pytest.mark.parametrize(
    ("address", "endpoint"),
    [
        ("=0", Endpoint("shared", "=0", number=0)),
        ("[::1]:443", Endpoint("tcp", "[::1]:443", host="::1", port=443)),
        ("fd://3", Endpoint("fd", "fd://3", number=3)),
        ("@tls", Endpoint("abstract", "@tls", path="tls")),
        ("/run/tls.sock", Endpoint("unix", "/run/tls.sock", path="/run/tls.sock")),
    ],
)
def test_addresses(address: str, endpoint: Endpoint) -> None:
    words = ("--shared-socket", ":1", *TO)
    for option in (
        ("--https", f"{address},foobar.crt,foobar.key"),
        ("--https2", f"addr={address},cert=foobar.crt,key=foobar.key"),
        ("--http-to-https", f"{address},443"),
    ):
        listener = http_of(*words, *option).listeners[0]
        assert listener.endpoint == endpoint
        if listener.tls is not None:
            assert listener.tls.context == f"http-{address}"


def test_listeners_are_in_option_order() -> None:
    http = ini(
        "http-to-https = :1\nhttps2 = addr=:2,cert=foobar.crt,key=foobar.key\nhttp = :3\n"
        "https = :4,foobar.crt,foobar.key\nhttp-to-https = :5,8443\n"
    )
    assert [each.endpoint.port for each in http.listeners] == [1, 2, 3, 4, 5]
    assert [each.tls is not None for each in http.listeners] == [False, True, False, True, False]
    assert [each.redirect for each in http.listeners] == [
        Redirect(), None, None, None, Redirect(8443),
    ]  # fmt: skip


def test_a_redirect_needs_no_node() -> None:
    http = http_of("--http-to-https", ":80")
    assert (http.nodes, http.tls) == ((), None)
    assert http.listeners == (
        ListenerSettings(Endpoint("tcp", ":80", port=80), redirect=Redirect()),
    )
    assert warnings_of("--http-to-https", ":80", "--socket", ":3031") == []
    assert errors_of("--http-to-https", ":80", "--https", ":443,foobar.crt,foobar.key") == [
        "command line: https: no node to send requests to;"
        " add http-to = ADDRESS of the application server"
    ]


def test_one_address_for_two_listeners() -> None:
    both = ("--https", ":443,foobar.crt,foobar.key")
    for option, value in (
        ("http", ":443"),
        ("http-to-https", ":443,1"),
        ("https2", "addr=:443,cert=other.crt,key=other.key"),
        ("fastrouter", ":443"),
    ):
        more = ("--fastrouter-to", ":1") if option == "fastrouter" else ()
        assert errors_of(*TO, *both, f"--{option}", value, *more) == [
            f"command line: {option}: :443 is listened on already (see command line)"
        ]
    assert errors_of(*TO, "--https", "=0,foobar.crt,foobar.key") == [
        "command line: https: there is no shared-socket number 0; 0 are given"
    ]


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        (
            "https",
            ":443,foobar.crt",
            "':443,foobar.crt' is not complete; expected ADDRESS,CERT,KEY[,CIPHERS[,[!]CLIENT_CA]]",
        ),
        ("https", ":443,,foobar.key", "the file name of the certificate is missing"),
        ("https", ":443,foobar.crt,", "the file name of the key is missing"),
        (
            "https",
            ":443,foobar.crt,foobar.key,,!",
            "the file name of the client CA is missing after '!'",
        ),
        (
            "https",
            "443,foobar.crt,foobar.key",
            "'443' is not an address (uWSGI makes a unix socket); write :443",
        ),
        (
            "https2",
            "cert=foobar.crt",
            "addr=, key= missing; expected addr=ADDRESS,cert=FILE,key=FILE",
        ),
        ("http-to-https", ":80,https", "'https' is not a number; expected a whole number"),
        ("http-to-https", ":80,0", "'0' is out of range; expected 1 to 65535"),
        ("http-to-https", ":80,", "a value is missing; expected a whole number"),
        ("https-session-context", "", "'' is no name; expected printable text"),
        ("ssl-verify-depth", "x", "'x' is not a number; expected a whole number"),
        ("ssl-option", "0x4000", "'0x4000' is not a number; expected a whole number"),
        ("sni-max-contexts", "0", "'0' is out of range; expected 1 to 1000000"),
    ],
)
def test_bad_values(option: str, value: str, message: str) -> None:
    found = errors_of("--http", ":1", *TO, f"--{option}={value}")
    assert found == [f"command line: {option}: {message}"]


def test_what_https2_passes_over() -> None:
    line = "https2 = addr=:1,crt=foobar.crt,cert=other.crt,key=foobar.key,cypher=x,sni,ciphers"
    assert remarks(line) == [
        "https2: 'cert' is given twice; the last one counts",
        "https2: 'cypher' is not known; did you mean ciphers?",
        "https2: 'sni' is not known; expected addr, cert, crt, key, ciphers, clientca, client_ca,"
        " spdy",
        "https2: 'ciphers' has no value and is passed over",
    ]
    assert ini(line).listeners[0].tls == ListenerTls(pair("other.crt", "foobar.key"), "http-:1")


def test_spdy() -> None:
    text = "https2 = addr=:1,cert=foobar.crt,key=foobar.key,spdy="
    for word, on in (("1", True), ("yes", True), ("0", False), ("off", False)):
        found = ini(text + word).listeners[0].tls
        assert found is not None
        assert found.spdy is on
        assert remarks(text + word) == []


def test_files_have_to_exist() -> None:
    Path("directory").mkdir()
    here = os.getcwd()
    assert errors_of(*TO, "--https", ":443,no.crt,directory,NOTHING,!foobar.crt/ca") == [
        f"command line: https: certificate {here}/no.crt: No such file or directory",
        f"command line: https: key {here}/directory: is a directory",
        f"command line: https: client CA {here}/foobar.crt/ca: Not a directory",
        "command line: https: OpenSSL knows no cipher of 'NOTHING'",
    ]


def test_no_permission_is_left_to_the_master(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> os.stat_result:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("uwgate.config.compose_tls.os.stat", refuse)
    assert tls("") == TlsSettings()
    assert tls("http2 = false").alpn == ("http/1.1",)


def test_names_are_absolute_with_chdir(files: Path) -> None:
    http = ini("https = :443,foobar.crt,foobar.key\nchdir = /\nsni-dir = .\nssl-tmp-dir = .")
    assert http.listeners[0].tls is not None
    assert http.listeners[0].tls.pair == pair()
    assert http.tls is not None
    assert (http.tls.sni_dirs, http.tls.tmp_dir) == ((str(files),), str(files))


# Session contexts.


@pytest.mark.parametrize(
    ("lines", "contexts"),
    [
        ("A B", ["http-:1", "http-:2"]),
        ("x A B", ["x", "x"]),
        ("A x B", ["http-:1", "x"]),
        ("x A y B", ["x", "y"]),
        ("x y A B", ["y", "y"]),
        ("A B x", ["x", "x"]),
        ("A B x y", ["y", "y"]),
        ("A x B y", ["http-:1", "x"]),
    ],
)
def test_session_contexts(lines: str, contexts: list[str]) -> None:
    text = {
        "A": "https = :1,foobar.crt,foobar.key",
        "B": "https2 = addr=:2,cert=foobar.crt,key=foobar.key",
        "x": "https-session-context = x",
        "y": "https-session-context = y",
    }
    http = ini("\n".join(text[each] for each in lines.split()))
    assert [each.tls and each.tls.context for each in http.listeners] == contexts
    stdin = ("[uwsgi]\n" + "\n".join(text[each] for each in lines.split())).encode()
    no_effect = ["has no effect, as no https stands behind it"] * lines.endswith("B y")
    assert [each.message for each in configured(*TO, "-", stdin=stdin).problems.warnings] == (
        no_effect
    )


# What all of them share.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ssl-option = 16384\nssl-option = 536870912", {"options": 16384 | 536870912}),
        ("ssl-verify-depth = 3\nssl-verify-depth", {}),
        ("ssl-verify-depth = 3", {"verify_depth": 3}),
        ("ssl-verbose = true", {"verbose": True}),
        ("sni-strict = true", {"sni_strict": True}),
        ("sni-max-contexts = 7", {"sni_max_contexts": 7}),
        ("sni-dir-ciphers = HIGH", {"sni_dir_ciphers": "HIGH"}),
        ("ssl-enable-tlsv11 = true", {"enable_tlsv11": True}),
        ("ssl-enable-tlsv1 = true", {"enable_tlsv1": True, "enable_tlsv11": True}),
        (
            "ssl-enable3 = true",
            {"enable_sslv3": True, "enable_tlsv1": True, "enable_tlsv11": True},
        ),
        ("ssl-enable3 = false\nssl-enable-tlsv11 = off", {}),
    ],
)
def test_common_options(text: str, expected: dict[str, object]) -> None:
    found = tls(text)
    changed = {
        name: getattr(found, name)
        for name in TlsSettings.__dataclass_fields__
        if name != "tickets" and getattr(found, name) != getattr(TlsSettings(), name)
    }
    assert changed == expected


def test_dotsplit() -> None:
    text = "http-subscription-server = :1\nsubscription-dotsplit = true"
    assert tls(text).dotsplit
    assert not tls("").dotsplit


def test_ssl_option_on_the_command_line() -> None:
    for words in (("--ssl-option", "16384"), ("--ssl-option=16384",)):
        assert tls("", *words).options == 16384


def test_options_of_the_router() -> None:
    http = ini(
        "https = :443,foobar.crt,foobar.key\nhttps-export-cert = true\n"
        "https-client-headers = true\nhttps-hsts = 31536000"
    )
    assert (http.export_cert, http.client_headers) == (True, True)
    assert http.hsts == "max-age=31536000"


@pytest.mark.parametrize("name", ["ssl-enable-sslv3", "ssl-enable-tlsv1", "ssl-enable-tlsv11"])
def test_old_versions_are_warned_about(name: str) -> None:
    found = remarks(f"{name} = true")
    assert len(found) == 1
    assert found[0].startswith(f"{name}: INSECURE: ")
    assert remarks(f"{name} = false") == []


def test_bad_ciphers_of_directories() -> None:
    assert complaints("sni-dir-ciphers = nonsense") == [
        "sni-dir-ciphers: OpenSSL knows no cipher of 'nonsense'"
    ]


@pytest.mark.parametrize(
    "line",
    [
        "https-hsts = 1", "https-export-cert = true", "ssl-option = 1", "ssl-tmp-dir = .",
        "sni = a foobar.crt,foobar.key", "sni-dir = .", "sni-strict = true", "ssl-verbose = true",
        "ssl-enable-tlsv1 = true", "ssl-sessions-timeout = 9", "ssl-tickets = true",
        "https-session-context = x",
    ],
)  # fmt: skip
def test_options_without_a_listener(line: str) -> None:
    name = line.partition(" ")[0]
    stdin = f"[uwsgi]\n{line}".encode()
    assert warnings_of("--http", ":1", *TO, "-", stdin=stdin) == [
        f"standard input:2: {name}: has no effect without https or https2"
    ]
    assert settings_of("--http", ":1", *TO, "-", stdin=stdin).http is not None
    assert http_of("--http", ":1", *TO, "-", stdin=stdin).tls is None


def test_the_listener_that_is_refused_is_the_only_complaint() -> None:
    assert len(errors_of(*TO, "--https", "x", "--sni-strict", "true")) == 1
    assert warnings_of(*TO, "--https", "x", "--sni-strict", "true") == []
