"""The words of ``uwgate announce``, and what a check makes of an answer."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, strategies

from uwgate.announce.checks import judge
from uwgate.announce.options import OptionError, Options, parse

BASE = ("--server", "127.0.0.1:4040", "--key", "k.example", "--addr", "10.0.0.7:80")


def parsed(*words: str, base: tuple[str, ...] = BASE) -> Options:
    options = parse([*base, *words])
    assert isinstance(options, Options)
    return options


def mistake(*words: str, base: tuple[str, ...] = BASE) -> str:
    with pytest.raises(OptionError, match=r"^[^\n]+$") as caught:
        parse([*base, *words])
    return str(caught.value)


def test_defaults() -> None:
    options = parsed()
    (entry,) = options.settings.entries
    assert (entry.key, entry.address, entry.protocol) == ("k.example", "10.0.0.7:80", "uwsgi")
    assert (entry.weight, entry.backup, entry.algo, entry.sign_digest) == (0, 0, "", "")
    assert (options.settings.frequency, options.drain, options.stop_timeout) == (10.0, 5.0, 30.0)
    assert (options.mode, options.command, options.check.kind) == ("run", (), "none")


def test_every_server_gets_every_key_once() -> None:
    options = parsed("--server", "/s", "--server", "/s", "--key", "@keys", "--key", "k.example")
    found = [(entry.server.text, entry.key, entry.key_file) for entry in options.settings.entries]
    keys = os.path.abspath("keys")
    assert found == [
        ("127.0.0.1:4040", "k.example", ""),
        ("127.0.0.1:4040", "", keys),
        ("/s", "k.example", ""),
        ("/s", "", keys),
    ]


@pytest.mark.parametrize(
    ("given_address", "announced", "checked"),
    [
        ("10.0.0.7:80", "10.0.0.7:80", ("10.0.0.7", 80, "")),
        (":80", "*:80", ("127.0.0.1", 80, "")),
        ("*:80", "*:80", ("127.0.0.1", 80, "")),
        ("[*]:80", "[*]:80", ("::1", 80, "")),
        ("[::1]:80", "[::1]:80", ("::1", 80, "")),
        ("app.example:80", "app.example:80", ("app.example", 80, "")),
        ("/run/a", "/run/a", ("", 0, "/run/a")),
        ("a.sock", os.path.abspath("a.sock"), ("", 0, os.path.abspath("a.sock"))),
        ("@name", "@name", ("", 0, "name")),
    ],
)
def test_addresses(
    given_address: str, announced: str, checked: tuple[str, int, str]
) -> None:
    options = parsed("--check-tcp", base=(*BASE[:4], "--addr", given_address))
    assert options.settings.entries[0].address == announced
    endpoint = options.check.address
    assert endpoint is not None
    assert (endpoint.host, endpoint.port, endpoint.path) == checked


def test_checks() -> None:
    options = parsed(
        *("--check-http", "/up", "--check-interval", "500ms", "--check-timeout", "2"),
        *("--rise", "3", "--fall", "4", "--proto=http"),
    )
    check = options.check
    assert (check.kind, check.value, check.host, check.protocol) == (
        "http", "/up", "k.example", "http",
    )  # fmt: skip
    assert (check.interval, check.timeout, check.rise, check.fall) == (0.5, 2.0, 3, 4)
    assert parsed("--check-command", "true").check.value == "true"
    other = parsed("--check-tcp", "--check-addr", "127.0.0.1:9").check
    assert other.address is not None
    assert other.address.port == 9


def test_the_host_of_the_check_is_that_of_the_key() -> None:
    def host(key: str) -> str:
        base = (*BASE[:2], "--key", key, *BASE[4:])
        return parsed("--check-http", "/", base=base).check.host

    assert host("a.example:8080/api") == "a.example:8080"
    assert host("@keys") == "localhost"


def test_all_behind_two_dashes_is_the_command() -> None:
    options = parsed("--drain", "0", "--", "app", "--server", "--", "--help")
    assert options.command == ("app", "--server", "--", "--help")


def test_help_wins_over_mistakes_and_names_every_option() -> None:
    text = parse(["--nonsense", "-h"])
    assert isinstance(text, str)
    names = (
        "server key addr proto weight backup modifier1 modifier2 algo cores sni-key sni-crt sni-ca"
        " sign notify freq check-http check-command check-tcp check-addr check-interval"
        " check-timeout rise fall drain stop-timeout once goodbye help"
    )
    for name in names.split():
        assert f"--{name}" in text


def test_once(tmp_path: Path) -> None:
    options = parsed("--once", "--notify", str(tmp_path / "n"))
    assert options.mode == "once"
    assert options.settings.notify_socket == ""
    assert options.settings.announced_notify_socket == str(tmp_path / "n")
    assert parsed("--goodbye").mode == "goodbye"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--drian", "3"], "--drian: unknown option; did you mean --drain?"),
        (["--drian=3"], "--drian: unknown option; did you mean --drain?"),
        (["--serv", "3"], "--serv: unknown option; did you mean --server?"),
        (["--zzz"], "--zzz: unknown option; see --help"),
        (["gunicorn", "app"], "'gunicorn' is not expected here; the command goes behind --"),
        (["--"], "the command is missing after --"),
        (["--drain"], "--drain: expected one argument"),
        (["--drain", "soon"], "--drain: 'soon' is not a number; expected seconds"),
        (["--freq", "0"], "--freq: '0' is out of range"),
        (["--weight", "1_0"], "--weight: '1_0' is not a number"),
        (["--rise", "0"], "--rise: '0' is out of range"),
        (["--proto", "ftp"], "--proto: 'ftp' is not known; expected one of http, uwsgi"),
        (["--algo", "best"], "--algo: 'best' is not known"),
        (["--key", "a b"], "--key: the key 'a b' may only have visible ASCII"),
        (["--key", "@"], "--key: the file name is missing after '@'"),
        (["--server", "@x"], "--server: '@x' is no datagram address"),
        (["--addr", "80"], "--addr: '80' is not an address"),
        (["--addr", "*:99999"], "--addr: '99999' is not a port"),
        (["--sign", "sha256"], "--sign: 'sha256' is not complete; expected DIGEST:"),
        (["--sni-key", "/k"], "--sni-key and --sni-crt belong together"),
        (["--check-http", "up"], "--check-http: 'up' is not a path such as /healthz"),
        (["--check-http", "/a b"], "--check-http: '/a b' is not a path"),
        (["--check-http", "/%zz"], "--check-http: the request path contains an invalid"),
        (["--check-command", " "], "--check-command: a command is missing"),
        (["--check-tcp", "--check-http", "/"], "--check-http and --check-tcp exclude each other"),
        (["--check-addr", ":1"], "--check-addr needs --check-http or --check-tcp"),
        (["--once", "--goodbye"], "--once and --goodbye exclude each other"),
        (["--once", "--", "app"], "--once runs no command"),
        (["--goodbye", "--check-tcp"], "--goodbye does not check anything; leave --check-tcp out"),
        (["--notify", f"/{'n' * 101}"], "--notify: the path has 102 bytes"),
    ],
)
def test_mistakes(words: list[str], message: str) -> None:
    assert message in mistake(*words)


@pytest.mark.parametrize("missing", ["--server", "--key", "--addr"])
def test_what_has_to_be_given(missing: str) -> None:
    index = BASE.index(missing)
    assert mistake(base=BASE[:index] + BASE[index + 2 :]).startswith(f"{missing} is missing")


def test_a_relative_notify_socket_counts_in_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("d" * 90)
    deep.mkdir()
    monkeypatch.chdir(deep)
    assert "has more than 101 bytes" in mistake("--notify", "n")


# --- answers ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("response", "wanted"),
    [
        (b"HTTP/1.1 200 OK\r\nA: b\r\n\r\nbody", ""),
        (b"HTTP/1.0 204\r\n\r\n", ""),
        (b"HTTP/1.1 399 \xff\n\n", ""),
        (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 3000, ""),
        (b"HTTP/1.1 404 Not Found\r\n", "status 404"),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", "status 100"),
        (b"HTTP/1.1 2000 OK\r\n\r\n", "the answer is not HTTP/1"),
        (b"HTTP/1.1 \xb2\xb3\xb9 OK\r\n\r\n", "the answer is not HTTP/1"),
        (b"HTTP/2 200\r\n\r\n", "the answer is not HTTP/1"),
        (b"A" * 1024, "the answer is not HTTP/1"),
        (b"HTTP/1.1 200 " + b"a" * 1100, "the answer is not HTTP/1"),
    ],
)
def test_judgement(response: bytes, wanted: str) -> None:
    assert judge(response, ended=False) == wanted


@pytest.mark.parametrize("response", [b"", b"HTTP/1.1 20", b"HTTP/1.1 200 OK\r\nA: b\r\n"])
def test_a_short_answer_waits_for_more_and_fails_at_its_end(response: bytes) -> None:
    assert judge(response, ended=False) is None
    reason = judge(response, ended=True)
    assert reason is not None
    assert "closed" in reason


@given(strategies.binary(max_size=80), strategies.booleans())
def test_a_judgement_never_fails_and_only_http_is_well(data: bytes, ended: bool) -> None:
    outcome = judge(data, ended=ended)
    assert outcome is None or isinstance(outcome, str)
    assert outcome != "" or data.startswith(b"HTTP/1.")
