"""Server names; PEM texts in place of files; keys and passwords that nobody should see."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from config_tools import configured, errors_of, settings_of
from hypothesis import given
from hypothesis import strategies as st
from tls_tools import TO, complaints, ini, pair, remarks, tls

from uwgate.config import tls_values
from uwgate.config.masking import masked
from uwgate.config.model import Problems
from uwgate.config.settings_tls import PairSettings, SniSettings
from uwgate.config.show import show

PEM = "-----BEGIN CERTIFICATE-----\nTUlJ\n-----END CERTIFICATE-----"
KEY = "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----"

pytestmark = pytest.mark.usefixtures("files")


# Names.


def test_names() -> None:
    found = tls(
        "sni = WWW.Example.com. foobar.crt,foobar.key\n"
        "sni = *.example.com   other.crt,other.key,HIGH,!ca.crt\n"
        "sni = .b.c foobar.crt,foobar.key,,ca.crt\n"
        "sni = bücher.example foobar.crt,foobar.key\n"
        "sni-regexp = ^[a-z]+\\.x$ foobar.crt,foobar.key,HIGH\n"
        "sni-regexp = ^y foobar.crt,foobar.key"
    )
    assert found.sni == (
        SniSettings("www.example.com", pair()),
        SniSettings(
            "*.example.com",
            pair("other.crt", "other.key", ciphers="HIGH", ca="ca.crt", required=True),
        ),
        SniSettings(".b.c", pair(ca="ca.crt")),
        SniSettings("xn--bcher-kva.example", pair()),
    )
    assert found.sni_regexps == (
        SniSettings("^[a-z]+\\.x$", pair(ciphers="HIGH")),
        SniSettings("^y", pair()),
    )


def test_a_wildcard_as_regular_expression() -> None:
    text = "sni-regexp = *.Unbit.com foobar.crt,foobar.key"
    assert tls(text).sni == (SniSettings("*.unbit.com", pair()),)
    assert tls(text).sni_regexps == ()
    assert remarks(text) == [
        "sni-regexp: *.unbit.com is not a regular expression; taken as sni = *.unbit.com …"
    ]


def test_a_name_given_twice() -> None:
    text = "sni = a.b foobar.crt,foobar.key\nsni = A.b other.crt,other.key"
    assert tls(text).sni == (SniSettings("a.b", pair()),)
    assert remarks(text) == [
        "sni: a.b is given already (standard input:3); the first one counts"
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "sni = a.b",
            "sni: 'a.b' is not complete; expected NAME CERT,KEY[,CIPHERS[,[!]CLIENT_CA]]",
        ),
        (
            "sni-regexp = ^a foobar.crt",
            "sni-regexp: '^a foobar.crt' is not complete;"
            " expected REGEXP CERT,KEY[,CIPHERS[,[!]CLIENT_CA]]",
        ),
        ("sni = a.b foobar.crt,", "sni: the file name of the key is missing"),
        (
            "sni = a/../b foobar.crt,foobar.key",
            "sni: 'a/../b' is not a server name;"
            " expected www.example.com, *.example.com or .example.com",
        ),
        (f"sni = ü{'u' * 80} foobar.crt,foobar.key", f"sni: 'ü{'u' * 80}' is not a server name"),
        (
            "sni-regexp = ( foobar.crt,foobar.key",
            "sni-regexp: '(' is not a regular expression:"
            " missing ), unterminated subpattern at position 0",
        ),
        (
            "sni-regexp = *./ foobar.crt,foobar.key",
            "sni-regexp: '*./' is not a server name;"
            " expected www.example.com, *.example.com or .example.com",
        ),
    ],
)
def test_bad_names(line: str, message: str) -> None:
    assert complaints(line) == [message]


def test_missing_files_of_names_are_no_errors() -> None:
    here = os.getcwd()
    text = "sni = a.b no.crt,foobar.key,NOTHING\nsni-dir = no\nsni-dir = no"
    assert tls(text).sni[0].name == "a.b"
    assert tls(text).sni_dirs == (f"{here}/no",)
    assert remarks(text)[:3] == [
        f"sni: certificate {here}/no.crt: No such file or directory",
        "sni: OpenSSL knows no cipher of 'NOTHING'",
        f"sni-dir: {here}/no is not a directory",
    ]


# PEM texts, and what nobody should see.


def test_pem_texts(files: Path) -> None:
    (files / "pem.crt").write_text(PEM)
    (files / "pem.key").write_text(KEY)
    lines = "https = :443,@(pem.crt),@(pem.key),,!@(pem.crt)\nsni = a @(pem.crt),@(pem.key)"
    http = ini(f"{lines}\nssl-tmp-dir = .")
    assert http.listeners[0].tls is not None
    assert http.listeners[0].tls.pair == PairSettings(PEM, KEY, "", PEM, True)
    assert http.tls is not None
    assert http.tls.sni[0].pair == PairSettings(PEM, KEY)
    made = configured(*TO, "-", stdin=f"[uwsgi]\n{lines}".encode())
    assert [str(each) for each in made.problems.errors] == [
        f"standard input:2: https: PEM text as {what}; this needs ssl-tmp-dir"
        for what in ("certificate", "key", "client CA")
    ]
    assert [each.message for each in made.problems.warnings] == [
        f"PEM text as {what}; this needs ssl-tmp-dir" for what in ("certificate", "key")
    ]


def test_the_temporary_directory_has_to_exist() -> None:
    assert complaints("ssl-tmp-dir = no") == [
        f"ssl-tmp-dir: {os.getcwd()}/no is not a directory"
    ]


def test_show_config_hides_keys(files: Path) -> None:
    (files / "pem.key").write_text(KEY)
    words = (
        *TO, "--https", ":443,foobar.crt,@(pem.key)", "--ssl-tmp-dir", ".",
        "--ssl-sessions-use-cache=redis://u:pass-word@h:1/0", "--cache", "9",
        "--cache-secret", "geheim-geheim", "--cache2", "name=x,items=9,secret=gehei\\,m,udp=:9",
    )  # fmt: skip
    made = configured(*words)
    assert made.settings is not None
    text = show(made, made.settings)
    assert "https = :443,foobar.crt,(PEM text)\n" in text
    assert "cache-secret = ***\n" in text
    assert "cache2 = name=x,items=9,secret=***,udp=:9\n" in text
    assert "ssl-sessions-use-cache = redis://***@h:1/0\n" in text
    everything = text + repr(made.settings)
    for secret in ("c2VjcmV0", "pass-word", "gehei"):
        assert secret not in everything


def test_show_config_gives_the_same_settings() -> None:
    text = (
        "https = :1,foobar.crt,foobar.key\nhttps-session-context = x\nhttp = :2\n"
        "https2 = addr=:3,cert=foobar.crt,key=foobar.key\nhttps-session-context = y\n"
        "http-to-https = :4\nhttps = :5,foobar.crt,foobar.key,HIGH,!ca.crt\n"
        "sni = *.b other.crt,other.key\nsni-regexp = ^a%%b other.crt,other.key\n"
        "cache = 100\ncache-blocksize = 4k\ncache-udp-node = 127.0.0.1:7171\n"
        "ssl-sessions-use-cache\nssl-tickets = true\nssl-option = 4\nssl-option = 8\n"
        "stats = 127.0.0.1:5001\nhttps-hsts = max-age=1; includeSubDomains\n"
    )
    made = configured(*TO, "-", stdin=f"[uwsgi]\n{text}".encode())
    assert made.settings is not None
    assert [each.endpoint.port for each in made.settings.http.listeners] == [  # type: ignore[union-attr]
        1, 2, 3, 4, 5,
    ]  # fmt: skip
    shown = show(made, made.settings)
    assert settings_of("-", stdin=shown.encode()) == made.settings


def test_messages_hide_keys() -> None:
    problems = Problems()
    problems.error("f:1", "https", f"{KEY!r} is wrong")
    problems.warn("f:2", "https", f":443,{PEM}\n{KEY}")
    problems.error("f:3", "https", f"cut off {KEY[:40]}")
    shown = [str(each) for each in (*problems.errors, *problems.warnings)]
    assert shown == [
        "f:1: https: '(PEM text)' is wrong",
        "f:3: https: cut off (PEM text)",
        "f:2: https: :443,(PEM text)\n(PEM text)",
    ]
    assert errors_of(*TO, "--https", KEY) == [
        "command line: https: '(PEM text)' is not complete;"
        " expected ADDRESS,CERT,KEY[,CIPHERS[,[!]CLIENT_CA]]"
    ]


# Properties.

WORDS = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), min_size=1)


@given(st.lists(st.tuples(st.from_regex(r"[a-z_]{1,9}", fullmatch=True), WORDS), max_size=5))
def test_escapes_protect_everything(pairs: list[tuple[str, str]]) -> None:
    text = ",".join(
        f"{name}=" + "".join("\\" + char for char in value) for name, value in pairs
    )
    assert tls_values.key_values(text) == pairs


@given(st.text(max_size=40))
def test_nothing_but_values_errors(text: str) -> None:
    for parse in (
        tls_values.https, tls_values.https2, tls_values.to_https, tls_values.sni,
        tls_values.sni_regexp, tls_values.hsts, tls_values.sessions, tls_values.ticket_keys,
    ):  # fmt: skip
        try:
            parse(text)
        except ValueError:
            pass


@given(st.text(max_size=20), st.from_regex(r"[A-Za-z0-9+/\n]{8,60}", fullmatch=True))
def test_no_part_of_a_key_is_left(before: str, body: str) -> None:
    hidden = f"#{body.strip()}#"
    text = f"{before}-----BEGIN EC PRIVATE KEY-----\n{hidden}\n-----END EC PRIVATE KEY-----"
    assert hidden not in masked(text)
    assert hidden not in masked(text[:-10])
    assert hidden not in masked(text.partition("\n-----END")[0])
