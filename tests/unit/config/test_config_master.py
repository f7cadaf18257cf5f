"""Options of the master's work: what they mean, and what is wrong with a value."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from config_tools import BASE, configured, errors_of, ini_errors, settings_of, warnings_of

from uwgate.config.settings import Endpoint
from uwgate.config.settings_process import Touch, ZergAttach, ZergPool


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


def test_idle_is_needed() -> None:
    assert warnings_of(*BASE, "--die-on-idle") == [
        "command line: die-on-idle: without effect, as there is no idle"
    ]


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
    assert error.endswith("is too long for a unix socket (107 bytes)")


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
        ("cap = net_bind_servise", "is no capability; did you mean net_bind_service?"),
        ("cap = fly", "'fly' is no capability"),
        ("chown-socket = root:", "has no group behind the colon"),
        ("chown-socket = :", "names nobody; expected USER or USER:GROUP"),
        ("logfile-chown = nobody-knows", "nobody-knows"),
        ("http = fd://a/b", "is not complete; expected fd://N with a number N"),
        ("reload-mercy = soon", "'soon' is not a number"),
    ],
)
def test_what_is_wrong_is_said(line: str, reason: str) -> None:
    (error,) = ini_errors(line)
    name = line.partition(" ")[0]
    assert error.startswith(f"standard input:2: {name}: ")
    assert reason in error


def test_owners_groups_capabilities() -> None:
    words = (
        "--chown-socket", "0:0", "--logfile-chown", "0", "--add-gid", "5", "--add-gid", "0",
        "--cap", "CAP_NET_BIND_SERVICE, setgid,setgid", "--chroot", "/srv",
    )  # fmt: skip
    settings = settings_of(*BASE, *words)
    assert settings.process.chown_socket == (0, 0)
    assert (settings.main_log.uid, settings.main_log.gid) == (0, None)
    assert settings.process.add_gids == (5, 0)
    assert settings.process.capabilities == ("net_bind_service", "setgid")
    assert settings.process.chroot == "/srv"


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


def test_paths_mean_the_directory_before(tmp_path: Path) -> None:
    words = ("--zerg-server", "s", "--zerg-pool", "p:a.sock", "--http-zerg", "z")
    zerg = settings_of(*BASE, *words, "--chdir", str(tmp_path)).zerg
    here = os.getcwd()
    assert zerg.servers[0].path == f"{here}/s"
    assert zerg.pools[0].control.path == f"{here}/p"
    assert zerg.pools[0].addresses[0].path == f"{here}/a.sock"
    assert zerg.attach[0].server.path == f"{here}/z"


# --- commands -----------------------------------------------------------------------------------


def test_messages_between_processes_are_no_options() -> None:
    environ = {"UWGATE_HANDOVER": "5", "UWGATE_GUARDIAN": "5:6", "UWGATE_CONTROL": "/c"}
    assert warnings_of(*BASE, environ=environ) == []
