"""Options of the master's work: what they mean, and what is wrong with a value."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from config_tools import BASE, configured, errors_of, ini_errors, settings_of, warnings_of
from hypothesis import given
from hypothesis import strategies as st

from uwgate.config.argv import parse_argv
from uwgate.config.model import Problems, State
from uwgate.config.options import find, foreign, in_topic
from uwgate.config.options_master import COMMANDS, MASTER_OPTIONS
from uwgate.config.settings import Endpoint
from uwgate.config.settings_process import Touch, ZergAttach, ZergPool
from uwgate.config.show import show


def test_defaults() -> None:
    settings = settings_of(*BASE)
    life = settings.life
    assert (life.reload_mercy, life.drain_delay, life.harakiri, life.idle) == (60, 0, 0, 0)
    assert not (life.cheap)
    assert not (life.no_orphans)
    assert not (life.exit_on_reload)
    assert not (life.die_on_idle)
    assert (life.fifos, life.control, life.touches) == ((), "", ())
    assert settings.zerg.servers == settings.zerg.pools == settings.zerg.attach == ()


def test_life() -> None:
    words = (
        "--reload-mercy", "5", "--drain-delay=500ms", "--max-worker-lifetime", "1h",
        "--min-worker-lifetime", "10", "--reload-on-rss", "300", "--idle", "60", "--die-on-idle",
        "--no-orphans", "--cheap", "--exit-on-reload",
    )  # fmt: skip
    life = settings_of(*BASE, *words).life
    assert (life.reload_mercy, life.drain_delay) == (5.0, 0.5)
    assert (life.max_lifetime, life.min_lifetime, life.reload_on_rss) == (3600.0, 10.0, 300 << 20)
    assert life.idle == 60.0
    assert life.die_on_idle
    assert life.no_orphans
    assert life.cheap
    assert life.exit_on_reload
    assert settings_of(*BASE, "--worker-reload-mercy", "7").life.reload_mercy == 7.0


@pytest.mark.parametrize("name", ["harakiri", "http-harakiri", "fastrouter-harakiri"])
def test_harakiri(name: str) -> None:
    assert settings_of(*BASE, f"--{name}", "9").life.harakiri == 9.0
    assert settings_of(*BASE, "-t", "9").life.harakiri == 9.0


@pytest.mark.parametrize("name", ["http-harakiri", "fastrouter-harakiri"])
def test_harakiri_of_an_application_comes_last(name: str) -> None:
    own, other = (f"--{name}", "5"), ("--harakiri", "60")
    assert settings_of(*BASE, *own, *other).life.harakiri == 5.0
    assert settings_of(*BASE, *other, *own).life.harakiri == 5.0
    assert settings_of(*BASE, f"--{name}", "0", *other).life.harakiri == 0.0
    made = configured(*BASE, *own, *other)
    assert made.settings is not None
    assert settings_of("-", stdin=show(made, made.settings).encode()) == made.settings


def test_idle_is_needed() -> None:
    assert warnings_of(*BASE, "--die-on-idle") == [
        "command line: die-on-idle: has no effect without idle"
    ]
    assert warnings_of(*BASE, "--die-on-idle", "--idle", "9") == []


def test_fifos() -> None:
    words = ("--master-fifo", "a", "--master-fifo", "/b")
    assert settings_of(*BASE, *words).life.fifos == (f"{os.getcwd()}/a", "/b")
    assert errors_of(*BASE, *words, "--master-fifo", "./a") == [
        "command line: master-fifo: ./a is slot 0 already"
    ]
    many = [word for number in range(11) for word in ("--master-fifo", f"/f{number}")]
    assert errors_of(*BASE, *many) == [
        "command line: master-fifo: there are ten slots, 0 to 9, no more"
    ]
    assert len(settings_of(*BASE, *many[:-2]).life.fifos) == 10


def test_control_socket() -> None:
    assert settings_of(*BASE, "--control-socket", "c").life.control == f"{os.getcwd()}/c"
    (error,) = errors_of(*BASE, "--control-socket", "/" + "x" * 107)
    assert error.endswith("the socket path has 108 bytes; at most 107 are possible")
    (error,) = errors_of(*BASE, "--control-socket", "x" * 107)  # behind the current directory
    assert error.endswith("is too long for a unix socket (107 bytes)")
    for text in ("@c", ":80", "127.0.0.1:80"):
        (error,) = errors_of(*BASE, "--control-socket", text)
        assert error.endswith(f"{text!r} is no path of a unix socket")


def test_touches() -> None:
    text = (
        "touch-exec = /e  echo  one two\ntouch-reload = r\ntouch-signal = /s usr1\n"
        "touch-signal = /s 12\ntouch-chain-reload = /c\ntouch-workers-reload = /w\n"
        "touch-logreopen = /o\ntouch-logrotate = /l"
    )
    made = configured(*BASE, "-", stdin=f"[uwsgi]\n{text}".encode())
    assert made.settings is not None
    assert made.settings.life.touches == (
        Touch("/e", "exec", "echo  one two"),
        Touch(f"{os.getcwd()}/r", "reload"),
        Touch("/s", "signal", str(int(signal.SIGUSR1))),
        Touch("/s", "signal", "12"),
        Touch("/c", "chain-reload"),
        Touch("/w", "workers-reload"),
        Touch("/o", "logreopen"),
        Touch("/l", "logrotate"),
    )


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("touch-exec = /e", "'/e' is not understood; expected FILE, a blank, and the command"),
        ("touch-signal = /e NOPE", "'NOPE' is no signal"),
        ("touch-signal = /e 99", "'99' is no signal"),
        ("zerg-pool = /run/pool", "is not understood; expected CONTROL:ADDRESS[,ADDRESS]"),
        ("zerg-pool = :1", "is not understood; expected CONTROL:ADDRESS[,ADDRESS]"),
        ("zerg-pool = /p:", "is not understood; expected CONTROL:ADDRESS[,ADDRESS]"),
        ("zerg-pool = /p:/a,,/b", "has an empty address"),
        ("zerg-pool = /p:fd://3", "a pool binds its sockets itself; fd:// is of no use to it"),
        ("zerg-server = 127.0.0.1:1", "is no unix socket; expected a path or @name"),
        ("http-zerg = 127.0.0.1:1", "is no unix socket; expected a path or @name"),
        ("zerg =", "an address is missing; expected a path or @name"),
        ("cap = net_bind_servise", "is no capability; did you mean net_bind_service?"),
        ("cap = fly", "'fly' is no capability"),
        ("chown-socket = root:", "has no group behind the colon"),
        ("chown-socket = :", "names nobody; expected USER or USER:GROUP"),
        ("logfile-chown = nobody-knows", "nobody-knows"),
        ("http = fd://a/b", "is not complete; expected fd://N or fd://NAME"),
        ("http = =x", "is not complete; expected =N with a number N"),
        ("logfile-chmod =", "a mode is missing; expected three octal digits such as 640"),
        ("reload-mercy = soon", "'soon' is not a number"),
    ],
)
def test_what_is_wrong_is_said(line: str, reason: str) -> None:
    (error,) = ini_errors(line)
    name = line.partition(" ")[0]
    assert error.startswith(f"standard input:2: {name}: ")
    assert reason in error


@pytest.mark.parametrize("key", ["touch-reload", "touch-exec", "zerg-server", "logto"])
@pytest.mark.parametrize("character", ["\\ud800", "\\u0000"])
def test_what_no_file_name_can_have(tmp_path: Path, key: str, character: str) -> None:
    file = tmp_path / "c.json"
    file.write_text(f'{{"uwsgi": {{"{key}": "/a b{character}"}}}}')
    (error,) = errors_of(*BASE, str(file))
    assert error.startswith(f"{file}:1: {key}: ")
    assert error.endswith(
        ("that the system does not take", "has control characters in it")
    )


def test_owners_groups_capabilities() -> None:
    words = (
        "--chown-socket", "0:0", "--logfile-chown=root", "--add-gid", "5", "--add-gid", "0",
        "--cap", "CAP_NET_BIND_SERVICE, setgid,setgid", "--chroot", "/srv",
    )  # fmt: skip
    settings = settings_of(*BASE, *words)
    assert settings.process.chown_socket == (0, 0)
    assert (settings.main_log.uid, settings.main_log.gid) == (0, None)
    assert settings.process.add_gids == (5, 0)
    assert settings.process.capabilities == ("net_bind_service", "setgid")
    assert settings.process.chroot == "/srv"


@pytest.mark.parametrize("word", ["", "=true", "=on", "=1"])
def test_owner_of_the_log_as_in_uwsgi(word: str) -> None:
    words = (f"--logfile-chown{word}", "--logto", "l")  # takes no further word
    made = configured(*BASE, *words, "--uid", "5", "--gid", "6")
    assert made.settings is not None
    assert made.problems.warnings == []
    assert (made.settings.main_log.uid, made.settings.main_log.gid) == (5, 6)
    assert made.settings.process.log_file == f"{os.getcwd()}/l"
    shown = show(made, made.settings)
    assert settings_of("-", stdin=shown.encode()) == made.settings
    log = settings_of(*BASE, *words, "--gid", "6").main_log
    assert (log.uid, log.gid) == (None, 6)
    assert warnings_of(*BASE, *words) == [
        "command line: logfile-chown: has no effect without uid or gid"
    ]


@pytest.mark.parametrize(
    ("value", "owner"),
    [("false", (None, None)), ("0", (None, None)), ("root:5", (0, 5)), ("7", (7, None)),
     (":5", (None, 5)), ("0:0", (0, 0))],
)  # fmt: skip
def test_owner_of_the_log(value: str, owner: tuple[int | None, int | None]) -> None:
    words = ("--logto", "l", "--uid", "5", f"--logfile-chown={value}")
    log = settings_of(*BASE, *words).main_log
    assert (log.uid, log.gid) == owner
    assert warnings_of(*BASE, *words) == []


def test_log_and_background() -> None:
    words = ("--log-maxsize", "1M", "--log-backupname", "old", "--log-reopen", "--log-truncate",
             "--logfile-chmod", "600")  # fmt: skip
    log = settings_of(*BASE, *words).main_log
    assert (log.max_size, log.backup_name) == (1 << 20, f"{os.getcwd()}/old")
    assert log.reopen
    assert log.truncate
    assert log.mode == 0o600
    process = settings_of(*BASE, "--daemonize", "d.log").process
    assert process.daemonize == process.log_file == f"{os.getcwd()}/d.log"
    process = settings_of(*BASE, "--daemonize2", "d.log", "--logto", "/l").process
    assert (process.daemonize2, process.log_file) == (f"{os.getcwd()}/d.log", "/l")


@pytest.mark.parametrize(
    "words",
    [
        ("--log-maxsize", "1m"),
        ("--log-backupname", "b"),
        ("--log-reopen",),
        ("--log-truncate",),
        ("--logfile-chmod", "600"),
        ("--logfile-chown=root",),
        ("--touch-logrotate", "r"),
    ],
)
def test_a_log_is_needed(words: tuple[str, ...]) -> None:
    (warning,) = warnings_of(*BASE, *words)
    name = words[0].removeprefix("--").partition("=")[0]
    assert warning == (
        f"command line: {name}: has no effect without logto or daemonize or daemonize2"
    )
    for log in ("--logto", "--logto2", "--daemonize", "--daemonize2"):
        assert warnings_of(*BASE, *words, log, "f") == []


def test_sockets_by_name() -> None:
    settings = settings_of("--http", "fd://web", "--http-to", "a:1")
    assert settings.http is not None
    endpoint = settings.http.listeners[0].endpoint
    assert endpoint == Endpoint("fd", "fd://web", path="web", number=-1)


def test_socket_options() -> None:
    words = ("--so-keepalive", "--socket-sndbuf", "64k", "--socket-rcvbuf", "1024",
             "--tcp-fast-open", "16")  # fmt: skip
    process = settings_of(*BASE, *words).process
    assert process.keepalive_probes
    assert (process.send_buffer, process.receive_buffer, process.fast_open) == (65536, 1024, 16)


# --- zergs --------------------------------------------------------------------------------------


def test_pools() -> None:
    zerg = settings_of("--zerg-pool", "/run/p:127.0.0.1:1,/run/s", "--zergpool", "@p:@x").zerg
    assert zerg.pools == (
        ZergPool(
            Endpoint("unix", "/run/p", path="/run/p"),
            (
                Endpoint("tcp", "127.0.0.1:1", host="127.0.0.1", port=1),
                Endpoint("unix", "/run/s", path="/run/s"),
            ),
        ),
        ZergPool(Endpoint("abstract", "@p", path="p"), (Endpoint("abstract", "@x", path="x"),)),
    )


def test_a_pool_alone_is_something_to_do() -> None:
    settings = settings_of("--zerg-pool", "/run/p:127.0.0.1:1")
    assert settings.http is None
    assert settings.fastrouter is None


def test_a_zerg_makes_a_gateway() -> None:
    where = Endpoint("unix", "/z", path="/z")
    settings = settings_of("--http-zerg", "/z", "--http-to", "a:1")
    assert settings.http is not None
    assert settings.http.listeners == ()
    assert settings.zerg.attach == (ZergAttach("http", where),)
    settings = settings_of("--fastrouter-zerg", "/z", "--fastrouter-to", "a:1")
    assert settings.http is None
    assert settings.fastrouter is not None
    settings = settings_of("--zerg", "/z", "--http-to", "a:1")
    assert settings.http is not None
    assert settings.zerg.attach == (ZergAttach("", where),)
    settings = settings_of("--zerg", "/z", "--fastrouter-to", "a:1", "--zerg-fallback")
    assert settings.http is None
    assert settings.fastrouter is not None
    assert settings.zerg.fallback


def test_a_zerg_of_nobody() -> None:
    words = (*BASE, "--fastrouter", ":1", "--fastrouter-to", "a:1", "--zerg", "/z")
    assert errors_of(*words) == [
        "command line: zerg: which gateway? write http-zerg or fastrouter-zerg"
    ]


def test_a_zerg_needs_nodes_and_a_pool_none() -> None:
    for name, router in (("http-zerg", "http"), ("fastrouter-zerg", "fastrouter")):
        assert errors_of(f"--{name}", "/z") == [
            f"command line: {name}: no node to send requests to; "
            f"add {router}-to = ADDRESS of the application server"
        ]
    assert warnings_of("--zerg-pool", "/run/p:127.0.0.1:1") == []
    assert warnings_of("--zerg-pool", "/p:/q", "--zerg-server", "/s") == [
        "command line: zerg-server: has no effect without http or https or https2"
        " or http-to-https or fastrouter or zerg or http-zerg or fastrouter-zerg"
    ]


def test_fallback_needs_a_zerg_and_an_address() -> None:
    assert warnings_of(*BASE, "--zerg-fallback") == [
        "command line: zerg-fallback: has no effect without zerg or http-zerg or fastrouter-zerg"
    ]
    words = ("--http-to", "a:1", "--http-zerg", "/z", "--zerg-fallback")
    assert warnings_of(*words) == [
        "command line: zerg-fallback: there is no address to fall back to, if /z is away"
    ]
    assert warnings_of(*words, "--http", ":1") == []


@pytest.mark.parametrize(
    ("words", "where"),
    [
        (("--zerg-pool", "/p:0.0.0.0:8080"), "0.0.0.0:8080"),  # BASE has :8080
        (("--zerg-pool", "/p:127.0.0.1:1,127.0.0.1:1"), "127.0.0.1:1"),
        (("--zerg-pool", "/p:/a", "--zerg-pool", "/q:/a"), "/a"),
        (("--zerg-pool", "/p:/a", "--zerg-pool", "/p:/b"), "/p"),
        (("--zerg-pool", "@p:@p",), "@p"),
        (("--http", "s", "--zerg-server", "./s"), "./s"),
        (("--shared-socket", "/s", "--zerg-pool", "/p:/s"), "/s"),
        (("--zerg-server", "/s", "--control-socket", "/s"), "/s"),
        (("--control-socket", "/s", "--master-fifo", "/s"), "/s"),
    ],
)  # fmt: skip
def test_nothing_is_bound_twice(words: tuple[str, ...], where: str) -> None:
    (error,) = errors_of(*BASE, *words)
    assert error.endswith(f": {where} is listened on already (see command line)")


def test_two_ways_to_write_an_address() -> None:
    for first, second in ((":1", "0.0.0.0:1"), ("a", f"{os.getcwd()}/a")):
        assert errors_of("--http-to", "a:1", "--http", first, "--http", second) == [
            f"command line: http: {second} is listened on already (see command line)"
        ]
    free = ("--http", "127.0.0.1:0", "--zerg-pool", "/p:127.0.0.1:0,127.0.0.1:0")
    assert len(settings_of("--http-to", "a:1", *free).zerg.pools[0].addresses) == 2


def test_nobody_asks_himself_or_twice() -> None:
    for own in (("--zerg-server", "z"), ("--zerg-pool", "z:/a")):
        assert errors_of(*BASE, "--http-zerg", "./z", *own) == [
            "command line: http-zerg: ./z hands out sockets of this very instance"
        ]
    assert errors_of(*BASE, "--http-zerg", "/z", "--zerg", "/z") == [
        "command line: zerg: /z is asked already (see command line)"
    ]
    two = settings_of(*BASE, "--http-zerg", "/z", "--http-zerg", "@z").zerg
    assert len(two.attach) == 2


def test_paths_mean_the_directory_before(tmp_path: Path) -> None:
    words = ("--zerg-server", "s", "--zerg-pool", "p:a.sock", "--http-zerg", "z")
    zerg = settings_of(*BASE, *words, "--chdir", str(tmp_path)).zerg
    here = os.getcwd()
    assert zerg.servers[0].path == f"{here}/s"
    assert zerg.pools[0].control.path == f"{here}/p"
    assert zerg.pools[0].addresses[0].path == f"{here}/a.sock"
    assert zerg.attach[0].server.path == f"{here}/z"


# --- all of them --------------------------------------------------------------------------------

EVERYTHING = """
touch-exec = f  a  b
touch-reload = g
touch-signal = f usr1
touch-exec = g 100%% $x
zerg = z2
http-zerg = z
zerg-pool = p:q,127.0.0.1:3
zerg-pool = @r:@s
zerg-server = @t
zerg-fallback
http = fd://web
master-fifo = b
master-fifo = a
chown-socket = :0
logfile-chown = :0
logfile-chmod = 0600
cap = kill, CAP_SETGID
add-gid = 5
add-gid = 0
reload-on-rss = 3
harakiri = 1500ms
drain-delay = 2
idle = 1h
die-on-idle
chroot = /srv
pidfile2 = p2
safe-pidfile = p3
safe-pidfile2 = p4
control-socket = c
tcp-fast-open = 3
socket-sndbuf = 1k
socket-rcvbuf = 2k
so-keepalive
cheap
no-orphans
exit-on-reload
log-reopen
log-truncate
log-backupname = l
log-maxsize = 1m
"""


@pytest.mark.parametrize("log", ["daemonize = d", "daemonize2 = d", "daemonize = d\nlogto = l"])
def test_show_config_gives_the_same_settings(log: str) -> None:
    made = configured(*BASE, "-", stdin=f"[uwsgi]\n{EVERYTHING}{log}\n".encode())
    assert made.problems.errors == []
    assert made.settings is not None
    shown = show(made, made.settings)
    assert settings_of("-", stdin=shown.encode()) == made.settings


def test_show_config_of_pools_alone() -> None:
    made = configured("--zerg-pool", "p:q", "--control-socket", "c")
    assert made.settings is not None
    shown = show(made, made.settings)
    assert settings_of("-", stdin=shown.encode()) == made.settings


def test_every_option_is_known_once() -> None:
    rows = [*in_topic("reload"), *in_topic("zerg"), *COMMANDS]
    known = [name for row in rows for name in (row.name, *row.aliases)]
    assert len(known) == len(set(known))
    others = {row.name for state in State for row in foreign(state)}
    assert not others.intersection(known)


_PARSERS = [row.parse for row in MASTER_OPTIONS]


@given(
    st.text(max_size=30)
    | st.text(alphabet="/:=,.@ ab09\x00\udcff\ud800", max_size=30)
    | st.builds("{} {}".format, st.text(max_size=8), st.text("sigHUP09- ", max_size=8))
)
def test_parsers_raise_nothing_but_value_errors(text: str) -> None:
    raised: list[ValueError] = []
    for parse in _PARSERS:
        try:
            parse(text)
        except ValueError as error:
            raised.append(error)
    assert {type(error) for error in raised} <= {ValueError}
    assert all(map(str, raised))


# --- commands -----------------------------------------------------------------------------------


def test_messages_between_processes_are_no_options() -> None:
    environ = {"UWGATE_HANDOVER": "5", "UWGATE_GUARDIAN": "5:6", "UWGATE_CONTROL": "/c"}
    assert warnings_of(*BASE, environ=environ) == []


@pytest.mark.parametrize("name", ["reload", "stop", "pause", "suspend", "resume"])
def test_commands(name: str) -> None:
    row = find(name)
    assert row is not None
    assert row.state is State.COMMAND_LINE
    command = parse_argv([f"--{name}", "/f", f"--{name}=/g"], Problems())
    assert [(each.key, each.value) for each in command.items] == [
        (row.name, "/f"), (row.name, "/g")
    ]  # fmt: skip
    assert ini_errors(f"{name} = /f") == [
        f"standard input:2: {name}: works on the command line only"
    ]
