"""Options of the subscription servers: values, defaults, errors, warnings."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from config_tools import errors_of, http_of, settings_of, warnings_of

from uwgate.cli import main
from uwgate.config.model import Option
from uwgate.config.options_subscriptions import SUBSCRIPTION_OPTIONS
from uwgate.config.settings import (
    Endpoint,
    MapperSettings,
    RouterSubscriptions,
    SubscriptionSettings,
)
from uwgate.config.subscription_values import DIGESTS
from uwgate.subscriptions import signing

SERVER = ("--http", ":8080", "--http-subscription-server", "127.0.0.1:4040")
FAST = ("--fastrouter", ":3017", "--fastrouter-subscription-server", "127.0.0.1:4041")
UDP = Endpoint("tcp", "127.0.0.1:4040", host="127.0.0.1", port=4040)


def common(*words: str) -> SubscriptionSettings:
    """What all gateways share; the gateway's own copy is the same."""
    settings = settings_of(*SERVER, *words)
    assert settings.http is not None
    assert settings.http.subscriptions is not None
    assert settings.http.subscriptions.common is settings.subscriptions
    return settings.subscriptions


def router(*words: str) -> RouterSubscriptions:
    http = http_of(*SERVER, *words)
    assert http.mapper == MapperSettings("subscription")
    assert http.subscriptions is not None
    return http.subscriptions


def test_defaults() -> None:
    """Those of uWSGI, where it has the option."""
    assert common() == SubscriptionSettings()
    assert (common().tolerance, common().sign_tolerance, common().algo) == (17, 86400, "wrr")
    assert router() == RouterSubscriptions(SubscriptionSettings(), (UDP,))
    assert not http_of(*SERVER).cheap
    assert warnings_of(*SERVER) == []


# --- addresses of servers -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("127.0.0.1:4040", {"kind": "tcp", "host": "127.0.0.1", "port": 4040}),
        (":4040", {"kind": "tcp", "host": "", "port": 4040}),
        ("[::1]:4040", {"kind": "tcp", "host": "::1", "port": 4040}),
        ("225.1.1.1:4040", {"kind": "tcp", "host": "225.1.1.1", "port": 4040}),
        ("router.example:4040", {"kind": "tcp", "host": "router.example", "port": 4040}),
        ("/run/subs.sock", {"kind": "unix", "path": "/run/subs.sock"}),
        ("subs.sock", {"kind": "unix", "path": os.path.abspath("subs.sock")}),
        ("@subs", {"kind": "unix", "path": os.path.abspath("@subs")}),
    ],
)
def test_servers(text: str, wanted: dict[str, Any]) -> None:
    http = http_of("--http", ":8080", "--http-subscription-server", text)
    assert http.subscriptions is not None
    (server,) = http.subscriptions.servers
    assert {name: getattr(server, name) for name in wanted} == wanted


@pytest.mark.parametrize("text", ["fd://3", "=0", "127.0.0.1:99999", "host:", ""])
def test_what_is_no_server(text: str) -> None:
    (error,) = errors_of("--http", ":8080", f"--http-subscription-server={text}")
    assert "http-subscription-server" in error


def test_several_servers_and_the_same_one_twice() -> None:
    assert len(router("--http-subscription-server", "/run/s").servers) == 2
    (error,) = errors_of(*SERVER, "--http-subscription-server", "127.0.0.1:4040")
    assert "listened on already" in error


def test_each_gateway_has_its_own() -> None:
    settings = settings_of(*SERVER, *FAST, "--fastrouter-subscription-fallback-key", "F")
    assert settings.http is not None
    assert settings.fastrouter is not None
    assert settings.http.subscriptions is not None
    assert settings.fastrouter.subscriptions is not None
    assert settings.http.subscriptions.servers == (UDP,)
    assert settings.fastrouter.subscriptions.servers[0].port == 4041
    assert settings.http.subscriptions.fallback_key == ""
    assert settings.fastrouter.subscriptions.fallback_key == "f"


def test_its_place_among_the_sources_of_nodes() -> None:
    """gateways.md §3.2: behind use-pattern, before use-base and http-to."""
    assert http_of(*SERVER, "--http-to", "127.0.0.1:1").mapper.kind == "subscription"
    assert http_of(*SERVER, "--http-use-pattern", "/run/%s.sock").mapper.kind == "pattern"
    (warning,) = warnings_of(*SERVER, "--http-to", "127.0.0.1:1")
    assert "http-to cannot act beside it" in warning


# --- values -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        ("--subscription-algo lrc", "algo", "lrc"),
        ("--subscription-algo wrr-uwsgi", "algo", "wrr-uwsgi"),
        ("--subscription-tolerance 30", "tolerance", 30),
        ("--subscription-tolerance 1", "tolerance", 1),
        ("--subscription-tolerance 2m", "tolerance", 120),
        ("--subscription-dotsplit", "dotsplit", True),
        ("--subscription-dotsplit=false", "dotsplit", False),
        ("--subscription-mountpoints", "mountpoints", 1),
        ("--subscription-mountpoints=true", "mountpoints", 1),
        ("--subscription-mountpoints=3", "mountpoints", 3),
        ("--subscription-mountpoint=16", "mountpoints", 16),
        ("--subscription-mountpoints=0", "mountpoints", 0),
        ("--subscription-mountpoints=off", "mountpoints", 0),
        ("--subscription-slow-start 30", "slow_start", 30),
        ("--subscription-slow-start 0", "slow_start", 0),
        ("--subscription-state /var/lib/s", "state", "/var/lib/s"),
        ("--subscription-state s", "state", os.path.abspath("s")),
        ("--subscriptions-sign-check-tolerance 60", "sign_tolerance", 60),
        ("--subscriptions-use-credentials", "use_credentials", True),
        ("--subscription-max-keys 5", "max_keys", 5),
        ("--subscription-max-nodes 5", "max_nodes", 5),
        ("--subscription-max-sender-nodes 0", "max_sender_nodes", 0),
        ("--subscription-max-rate 0", "max_rate", 0),
    ],
)
def test_values(words: str, field: str, value: object) -> None:
    assert getattr(common(*words.split()), field) == value


@pytest.mark.parametrize(
    ("option", "text", "message"),
    [
        ("subscription-algo", "fastest", "expected one of wrr"),
        ("subscription-algo", "", "expected one of wrr"),
        ("subscription-tolerance", "0", "out of range"),
        ("subscription-tolerance", "0.5", "out of range"),
        ("subscription-tolerance", "-1", "negative"),
        ("subscription-tolerance", "x", "not a number"),
        ("subscription-mountpoints", "17", "out of range"),
        ("subscription-mountpoints", "x", "not a number"),
        ("subscription-slow-start", "-1", "negative"),
        ("subscription-state", "", "missing"),
        ("subscriptions-sign-check-tolerance", "0", "out of range"),
        ("subscriptions-sign-skip-uid", "no.such.user", "no user named"),
        ("subscriptions-credentials-check", "", "missing"),
        ("subscription-max-keys", "0", "out of range"),
        ("subscription-max-nodes", "0", "out of range"),
        ("subscription-max-sender-nodes", "1_0", "not a number"),
        ("subscription-max-rate", "x", "not a number"),
        ("http-subscription-fallback-key", "", "missing"),
        ("http-subscription-fallback-key", "a b", "visible ASCII"),
        ("http-resubscribe", "127.0.0.1:0", "no port to send to"),
        ("http-resubscribe", "fd://3", "cannot be used here"),
        ("fastrouter-resubscribe-bind", "=1", "cannot be used here"),
        ("subscriptions-sign-check", "sha256", "expected DIGEST:DIR"),
        ("subscriptions-sign-check", "sha256:", "expected DIGEST:DIR"),
        ("subscriptions-sign-check", ":/etc", "unknown or too weak"),
        ("subscriptions-sign-check", "md5:/etc", "unknown or too weak"),
        ("subscriptions-sign-check", "sha256:/no/such/place", "is not a directory"),
    ],
)
def test_errors(option: str, text: str, message: str) -> None:
    errors = errors_of(*SERVER, *FAST, f"--{option}={text}")
    assert len(errors) == 1
    assert option in errors[0]
    assert message in errors[0]


def test_keys_are_in_lower_case() -> None:
    assert router("--http-subscription-fallback-key", "Last.Example").fallback_key == "last.example"


# --- signatures and credentials -----------------------------------------------------------------


def test_digests_are_those_of_the_library() -> None:
    assert set(DIGESTS) == set(signing._HASHES)
    assert all(signing.digest_known(name) for name in DIGESTS)


@pytest.mark.parametrize("digest", ["SHA256", "sha512", "sha3-256"])
def test_sign_check(tmp_path: Path, digest: str) -> None:
    word = f"--subscriptions-sign-check={digest}:{tmp_path}/"
    found = common(word)
    assert (found.sign_digest, found.sign_directory) == (digest, str(tmp_path))
    assert warnings_of(*SERVER, word) == []


@pytest.mark.parametrize("digest", ["SHA1", "sha1"])
def test_sha1_works_and_is_warned_of(tmp_path: Path, digest: str) -> None:
    word = f"--subscriptions-sign-check={digest}:{tmp_path}"
    assert common(word).sign_digest == digest
    (warning,) = warnings_of(*SERVER, word)
    assert "SHA256" in warning


def test_sign_check_relative_to_where_we_are(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "keys").mkdir()
    assert common("--subscriptions-sign-check=sha256:keys").sign_directory == f"{tmp_path}/keys"


def test_credentials(tmp_path: Path) -> None:
    unix = ("--http-subscription-server", "/run/subs.sock")
    words = [
        f"--subscriptions-credentials-check={tmp_path}/",
        f"--subscriptions-credentials-check={tmp_path}/pre-",
        "--subscriptions-sign-skip-uid=1000",
        "--subscription-sign-skip-uid=daemon",
    ]
    found = common(*unix, *words)
    assert found.credentials == (f"{tmp_path}/", f"{tmp_path}/pre-")
    assert found.sign_skip_uids == {1000, 1}
    assert found.use_credentials
    assert warnings_of(*SERVER, *unix, *words) == []


@pytest.mark.parametrize(
    "word", ["--subscriptions-sign-skip-uid=1000", "--subscriptions-credentials-check=/etc/"]
)
def test_nobody_is_known_over_udp(word: str) -> None:
    (warning,) = warnings_of(*SERVER, word)
    assert "unix path" in warning


@pytest.mark.parametrize("root", ["0", "root"])
def test_root_is_never_exempt(root: str) -> None:
    (error,) = errors_of(
        *SERVER, "--http-subscription-server=/run/s", f"--subscriptions-sign-skip-uid={root}"
    )
    assert "root can never be exempt" in error


# --- federation, cheap, sticky ------------------------------------------------------------------


def test_resubscribe() -> None:
    found = router("--http-resubscribe", "10.0.0.1:4040", "--http-resubscribe", "/run/up.sock")
    assert [each.text for each in found.resubscribe] == ["10.0.0.1:4040", "/run/up.sock"]
    fast = settings_of(
        *FAST, "--fastrouter-resubscribe", "10.0.0.1:1", "--fastrouter-resubscribe-bind", ":4444"
    ).fastrouter
    assert fast is not None
    assert fast.subscriptions is not None
    assert fast.subscriptions.resubscribe_bind is not None
    assert fast.subscriptions.resubscribe_bind.port == 4444


@pytest.mark.parametrize(
    ("words", "needed"),
    [
        (("--http-resubscribe=10.0.0.1:1",), "http-subscription-server"),
        (("--http-subscription-fallback-key=k",), "http-subscription-server"),
        (("--http-cheap",), "http-subscription-server"),
        (("--subscription-tolerance=9",), "http-subscription-server or fastrouter-subscription-s"),
        (("--subscription-state=/tmp/s",), "http-subscription-server or fastrouter-subscription-s"),
        (("--subscribe-freq=9",), "subscribe-to or subscribe2"),
        ((*SERVER[2:], "--subscriptions-sign-check-tolerance=9"), "subscriptions-sign-check"),
        ((*FAST, "--fastrouter-resubscribe-bind=:1"), "fastrouter-resubscribe"),
        ((*FAST, "--fastrouter-post-buffering-dir=/"), "fastrouter-post-buffering"),
        ((*FAST, "--fastrouter-fallback-on-no-key"), "fastrouter-fallback"),
    ],
    ids=lambda value: value[-1] if isinstance(value, tuple) else "",
)
def test_what_needs_something_else(words: tuple[str, ...], needed: str) -> None:
    base = () if "--http-subscription-server" in words else ("--http-to", "127.0.0.1:1")
    (warning,) = warnings_of("--http", ":8080", *base, *words)
    assert f"has no effect without {needed}" in warning
    assert words[-1].partition("=")[0].removeprefix("--") in warning


def test_a_cookie_needs_several_nodes() -> None:
    words = ("--http", ":8080", "--http-sticky", "srv")
    (warning,) = warnings_of(*words, "--http-use-base", "/run/")
    assert "http-sticky: has no effect without http-to or http-subscription-server" in warning
    assert not warnings_of(*words, "--http-to", "127.0.0.1:1")


def test_what_is_off_needs_nothing() -> None:
    words = ("--http", ":8080", "--http-to", "127.0.0.1:1", "--http-cheap=false")
    assert not warnings_of(*words, "--subscription-dotsplit=false", "--subscription-mountpoints=0")


def test_cheap() -> None:
    assert http_of(*SERVER, "--http-cheap").cheap
    assert not http_of(*SERVER, "--http-cheap=false").cheap


def test_sticky_and_hash() -> None:
    http = http_of(*SERVER, "--http-sticky", "srv", "--http-hash-by", "header:X-User")
    assert (http.sticky, str(http.hash_by)) == ("srv", "header:x-user")
    for text in ("", "a b", "a;b", "a=b"):
        (error,) = errors_of(*SERVER, f"--http-sticky={text}")
        assert "http-sticky" in error


def test_the_slot_option_means_nothing() -> None:
    assert settings_of(*FAST, "--fastrouter-subscription-slot", "9") == settings_of(*FAST)


# --- the command --------------------------------------------------------------------------------


def test_check(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "g.ini"
    file.write_text(
        "[uwsgi]\nhttp = :8080\nhttp-subscription-server = 127.0.0.1:4040\n"
        f"subscriptions-sign-check = SHA1:{tmp_path}\nsubscription-tolerance = 20\n"
    )
    assert main(["--check", str(file)]) == 0
    assert "SHA-1 can be forged" in capsys.readouterr().err
    file.write_text(file.read_text() + "subscription-tolerance = never\n")
    assert main(["--check", str(file)]) != 0
    error = capsys.readouterr().err
    assert f"{file}:6" in error
    assert "subscription-tolerance" in error


@pytest.mark.parametrize("row", SUBSCRIPTION_OPTIONS, ids=lambda row: row.name)
def test_every_row_is_of_the_topic(row: Option) -> None:
    assert row.topic == "subscriptions"
    assert row.help.endswith(".")


def test_help_has_all_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help", "subscriptions"])
    text = capsys.readouterr().out
    for row in SUBSCRIPTION_OPTIONS:
        assert f"{row.name}" in text
