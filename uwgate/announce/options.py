"""The words of ``uwgate announce``: options, help, and one line for whatever is wrong."""

from __future__ import annotations

import argparse
import difflib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn, get_args

from uwgate.config import addresses, subscribe, values
from uwgate.config.settings import Algo, AnnounceSettings, Endpoint, SubscribeSettings
from uwgate.protocols.uwsgi import path_info

_PATH = re.compile(r"/[\x21-\x7e]{0,1000}")
_ANY_HOST = re.compile(r"(\*|\[\*\])?:([0-9]{1,5})")

_DESCRIPTION = """\
Announces a server to subscription servers (uwgate's or uWSGI's gateways), so that
they send it the requests for KEY. With COMMAND it also runs the server: it is
announced once it is well, taken back as soon as it is not, and a goodbye is said
before it is stopped. Without COMMAND it announces until it is told to stop.
"""

_EPILOG = """\
ADDR is HOST:PORT, [IPV6]:PORT, @ABSTRACT or the path of a unix socket, as the router
reaches it; with *:PORT (or :PORT) the host is the address that this machine has on
the way to each server. SERVER is HOST:PORT (UDP) or the path of a unix datagram
socket. Durations are seconds, or end in ms, s, m or h.

Signals: SIGTERM and SIGINT say goodbye, wait for --drain seconds while COMMAND goes
on serving, then send it SIGTERM and, after --stop-timeout, SIGKILL; a second one
skips the drain. SIGQUIT says goodbye and is passed on at once. SIGHUP, SIGUSR1,
SIGUSR2, SIGTTIN, SIGTTOU and SIGWINCH are passed on.

Exit code: that of COMMAND, 128+N if it died of signal N, 126 or 127 if it could not
be started; 1 for mistakes in the options.

  uwgate announce --server 10.0.0.1:4040 --key example.com --addr '*:9000' \\
      --proto http --check-http /healthz -- gunicorn -b :9000 app:app
"""


class OptionError(ValueError):
    """A mistake in the command line: one sentence."""


@dataclass(frozen=True, slots=True)
class CheckOptions:
    """How health is told. ``kind`` "none": the server is well as long as it runs.

    ``value``: path (``http``) or shell command (``command``). ``address``: where to connect.
    ``host``: for the Host field. Times in seconds.
    """

    kind: str = "none"
    value: str = ""
    address: Endpoint | None = None
    host: str = "localhost"
    protocol: str = "uwsgi"
    modifier1: int = 0
    modifier2: int = 0
    interval: float = 2.0
    timeout: float = 1.0
    rise: int = 1
    fall: int = 2


@dataclass(frozen=True, slots=True)
class Options:
    """Everything that the command line said. ``mode``: "run", "once" or "goodbye"."""

    settings: AnnounceSettings
    check: CheckOptions
    cores: int
    drain: float
    stop_timeout: float
    mode: str
    command: tuple[str, ...]


def parse(argv: Sequence[str]) -> Options | str:
    """The options, or the text of the help if that is what was asked for.

    Raises OptionError.
    """
    words, command = list(argv), None
    if "--" in words:
        index = words.index("--")
        words, command = words[:index], words[index + 1 :]
    parser = _parser()
    # It may stand anywhere, also beside mistakes.
    if "--help" in words or "-h" in words:
        return parser.format_help()
    if command == []:
        raise OptionError("the command is missing after --")
    given, rest = parser.parse_known_args(words)
    if rest:
        raise OptionError(_unknown(rest[0], parser))
    return _options(given, tuple(command or ()))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise OptionError(message.removeprefix("argument "))


def _of(convert: Callable[[str], Any]) -> Callable[[str], Any]:
    """Keep the sentence of a converter: argparse would say "invalid value"."""

    def checked(text: str) -> Any:
        try:
            return convert(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return checked


def _key(text: str) -> str:
    if text == "@":
        raise ValueError("the file name is missing after '@'")
    return text if text.startswith("@") else subscribe.key(text)


def _path(text: str) -> str:
    if not _PATH.fullmatch(text):
        raise ValueError(f"{text!r} is not a path such as /healthz")
    path_info(text.encode("ascii"))  # refuses escapes that no uwsgi packet can carry
    return text


def _command(text: str) -> str:
    if not text.strip() or "\0" in text:
        raise ValueError("a command is missing")
    return text


def _parser() -> _Parser:
    parser = _Parser(
        prog="uwgate announce",
        usage="uwgate announce --server SERVER --key KEY --addr ADDR [OPTION]... [-- COMMAND...]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    _add_what(parser.add_argument_group("what is announced"))
    _add_health(parser.add_argument_group("health"))
    _add_life(parser.add_argument_group("life"))
    return parser


def _add_what(group: argparse._ArgumentGroup) -> None:
    def add(name: str, metavar: str, convert: Callable[[str], Any], text: str, **more: Any) -> None:
        group.add_argument(name, metavar=metavar, type=_of(convert), help=text, **more)

    add("--server", "SERVER", subscribe.server, "whom to tell; may be repeated", action="append")
    text = "the routing key, or @FILE with a key a line; may be repeated"
    add("--key", "KEY", _key, text, action="append")
    add("--addr", "ADDR", _address, "where the server is")
    add("--proto", "PROTO", values.choice("http", "uwsgi"), "http or uwsgi (default)")
    add("--weight", "N", subscribe.weight, "share of the requests", default=0)
    add("--backup", "N", values.integer(0, 1000), "level; the lowest alive is used", default=0)
    add("--modifier1", "N", subscribe.modifier, "of uwsgi packets", default=0)
    add("--modifier2", "N", subscribe.modifier, "of uwsgi packets", default=0)
    add("--algo", "A", values.choice(*get_args(Algo)), "how the router picks")
    add("--cores", "N", values.integer(0, 1_000_000), "shown in the router's stats", default=0)
    for name, what in (("key", "private key"), ("crt", "certificate"), ("ca", "client CA")):
        text = f"TLS {what} of the key: a file on the router"
        add(f"--sni-{name}", "FILE", subscribe.path_text, text)
    add("--sign", "DIGEST:FILE", subscribe.sign, "sign with this private key", default=("", ""))
    text = "bind this unix datagram socket; log the acknowledgements that arrive there"
    add("--notify", "PATH", subscribe.notify_path, text)
    text = "time between announcements (10)"
    add("--freq", "SECONDS", values.seconds(0.1, 86400.0), text, default=10.0)


def _add_health(group: argparse._ArgumentGroup) -> None:
    def add(name: str, metavar: str, convert: Callable[[str], Any], text: str, **more: Any) -> None:
        group.add_argument(name, metavar=metavar, type=_of(convert), help=text, **more)

    add("--check-http", "PATH", _path, "well if GET PATH answers 2xx or 3xx")
    add("--check-command", "CMD", _command, "well if this shell command exits with 0")
    group.add_argument("--check-tcp", action="store_true", help="well if ADDR takes a connection")
    add("--check-addr", "ADDR", addresses.connecting, "where to check, if not at --addr")
    add("--check-interval", "SECONDS", values.seconds(0.01, 86400.0), "(2)", default=2.0)
    add("--check-timeout", "SECONDS", values.seconds(0.01, 3600.0), "(1)", default=1.0)
    count = values.integer(1, 1000)
    add("--rise", "N", count, "checks that must pass before it is announced (1)", default=1)
    add("--fall", "N", count, "checks that must fail before it is taken back (2)", default=2)


def _add_life(group: argparse._ArgumentGroup) -> None:
    def add(name: str, convert: Callable[[str], Any], text: str, default: float) -> None:
        group.add_argument(name, metavar="SECONDS", type=_of(convert), help=text, default=default)

    text = "time from the goodbye to COMMAND's SIGTERM (5)"
    add("--drain", values.seconds(0.0, 86400.0), text, 5.0)
    text = "time from its SIGTERM to its SIGKILL (30)"
    add("--stop-timeout", values.seconds(0.0, 86400.0), text, 30.0)
    group.add_argument("--once", action="store_true", help="announce once and exit")
    group.add_argument("--goodbye", action="store_true", help="take back once and exit")
    group.add_argument("-h", "--help", action="store_true", help="show this text")


def _address(text: str) -> str:
    """As in ``subscribe-to``, but ``:PORT`` is ``*:PORT``: nobody means the router's machine."""
    if text.startswith(":"):
        text = "*" + text
    return os.path.abspath(text) if _is_relative(text) else subscribe.address(text)


def _is_relative(text: str) -> bool:
    found = None if text.startswith(("*:", "[*]:")) else addresses.connecting(text)
    return found is not None and found.kind == "unix" and not text.startswith("/")


def _unknown(word: str, parser: argparse.ArgumentParser) -> str:
    if not word.startswith("-"):
        return f"{word!r} is not expected here; the command goes behind --, as in -- gunicorn app"
    name = word.partition("=")[0]
    known = [option for action in parser._actions for option in action.option_strings]
    near = difflib.get_close_matches(name, known, 1, 0.6)
    return f"{name}: unknown option" + (f"; did you mean {near[0]}?" if near else "; see --help")


def _options(given: argparse.Namespace, command: tuple[str, ...]) -> Options:
    for name, value in (("server", given.server), ("key", given.key), ("addr", given.addr)):
        if not value:
            raise OptionError(f"--{name} is missing; see uwgate announce --help")
    if bool(given.sni_key) != bool(given.sni_crt):
        raise OptionError("--sni-key and --sni-crt belong together; one of them is missing")
    check = _check(given)
    mode = _mode(given, check, command)
    one = SubscribeSettings(
        given.server[0],
        address=given.addr,
        modifier1=given.modifier1,
        modifier2=given.modifier2,
        weight=given.weight,
        backup=given.backup,
        algo=given.algo or "",
        protocol=given.proto or "uwsgi",
        sign_digest=given.sign[0],
        sign_key=given.sign[1],
        sni_key=given.sni_key or "",
        sni_crt=given.sni_crt or "",
        sni_ca=given.sni_ca or "",
    )
    notify = os.path.abspath(given.notify) if given.notify else ""
    if len(os.fsencode(notify)) > subscribe.MAX_NOTIFY:
        raise OptionError(f"--notify: {notify} has more than {subscribe.MAX_NOTIFY} bytes")
    settings = AnnounceSettings(
        entries=tuple(
            replace(one, server=server, **_key_fields(key))
            for server in dict.fromkeys(given.server)
            for key in dict.fromkeys(given.key)
        ),
        frequency=given.freq,
        # One announcement and then exit: nobody would be there to hear the answer.
        notify_socket=notify if mode == "run" else "",
        announced_notify_socket=notify,
    )
    return Options(
        settings, check, given.cores, given.drain, given.stop_timeout, mode, command
    )


def _key_fields(key: str) -> dict[str, Any]:
    return {"key_file": os.path.abspath(key[1:])} if key.startswith("@") else {"key": key}


def _mode(given: argparse.Namespace, check: CheckOptions, command: tuple[str, ...]) -> str:
    if not given.once and not given.goodbye:
        return "run"
    mode = "once" if given.once else "goodbye"
    if given.once and given.goodbye:
        raise OptionError("--once and --goodbye exclude each other")
    if command:
        raise OptionError(f"--{mode} runs no command")
    if check.kind != "none":
        raise OptionError(f"--{mode} does not check anything; leave --check-{check.kind} out")
    return mode


def _check(given: argparse.Namespace) -> CheckOptions:
    kinds = {"http": given.check_http, "command": given.check_command, "tcp": given.check_tcp}
    wanted = [kind for kind, value in kinds.items() if value]
    if len(wanted) > 1:
        raise OptionError(f"--check-{wanted[0]} and --check-{wanted[1]} exclude each other")
    if not wanted:
        if given.check_addr is not None:
            raise OptionError("--check-addr needs --check-http or --check-tcp")
        return CheckOptions()
    key = str(given.key[0])
    return CheckOptions(
        kind=wanted[0],
        value=str(kinds[wanted[0]]),
        address=given.check_addr or _check_address(given.addr),
        host="localhost" if key.startswith("@") else key.partition("/")[0],
        protocol=given.proto or "uwsgi",
        modifier1=given.modifier1,
        modifier2=given.modifier2,
        interval=given.check_interval,
        timeout=given.check_timeout,
        rise=given.rise,
        fall=given.fall,
    )


def _check_address(announced: str) -> Endpoint:
    match = _ANY_HOST.fullmatch(announced)
    if match is None:
        return addresses.connecting(announced)
    host = "[::1]" if match[1] == "[*]" else "127.0.0.1"
    return addresses.connecting(f"{host}:{match[2]}")
