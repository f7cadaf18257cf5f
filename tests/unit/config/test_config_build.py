"""Items -> settings: every option, the rules between options, and all the complaints."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from config_tools import (
    BASE,
    configured,
    errors_of,
    http_ini,
    http_of,
    ini_errors,
    settings_of,
    warnings_of,
)
from hypothesis import given
from hypothesis import strategies as st

from uwgate.config import compose
from uwgate.config.model import State
from uwgate.config.options import OPTIONS, find, foreign
from uwgate.config.settings import (
    AnnounceSettings,
    Endpoint,
    ErrorPage,
    FastSettings,
    HashBy,
    Http2Settings,
    HttpSettings,
    ListenerSettings,
    MapperSettings,
    NodeSettings,
    ProcessSettings,
    RequestLogSettings,
    SubscriptionSettings,
)
from uwgate.config.settings_process import LifeSettings, MainLogSettings, ZergSettings
from uwgate.config.settings_static import StaticSettings
from uwgate.config.settings_tls import SessionSettings, TicketSettings, TlsSettings

NODE = NodeSettings(Endpoint("tcp", "127.0.0.1:3031", host="127.0.0.1", port=3031))


def test_defaults() -> None:
    settings = settings_of(*BASE)
    listener = ListenerSettings(Endpoint("tcp", ":8080", port=8080))
    assert settings.http == HttpSettings(listeners=(listener,), nodes=(NODE,))
    assert settings.process == ProcessSettings()
    assert settings.request_log == RequestLogSettings()


@pytest.mark.parametrize(
    ("line", "field", "expected"),
    [
        ("http-processes = 4", "processes", 4),
        ("http-workers = 2", "processes", 2),
        ("http-uid = 0", "uid", 0),
        ("http-gid = 0", "gid", 0),
        ("http-quiet = true", "quiet", True),
        ("http-timeout = 5", "timeout", 5.0),
        ("http-timeout = 5", "headers_timeout", 5.0),
        ("http-timeout = 5", "connect_timeout", 5.0),
        ("http-timeout = 5", "keepalive_timeout", 5.0),
        ("http-headers-timeout = 500ms", "headers_timeout", 0.5),
        ("http-connect-timeout = 2", "connect_timeout", 2.0),
        ("http-keepalive = true", "keepalive", True),
        ("http-keepalive", "keepalive", True),
        ("http-keepalive = 1", "keepalive_timeout", 60.0),
        ("http-keepalive = 75", "keepalive_timeout", 75.0),
        ("http-keepalive = 0", "keepalive", False),
        ("http-keepalive = no", "keepalive", False),
        ("http-body-min-rate = 1k", "body_min_rate", 1024),
        ("http-drain-timeout = 0", "drain_timeout", 0.0),
        ("http-max-head = 32k", "max_head", 32768),
        ("http-max-headers = 64", "max_headers", 64),
        ("http-max-body = 10m", "max_body", 10 << 20),
        ("http-body-buffer = 4k", "body_buffer", 4096),
        ("http-max-spool = 2g", "max_spool", 2 << 30),
        ("http-manage-expect = true", "manage_expect", 1),
        ("http-manage-expect = 1m", "manage_expect", 1 << 20),
        ("http-auto-chunked = false", "auto_chunked", False),
        ("http-auto-gzip = true", "auto_gzip", True),
        ("http-raw-body =", "raw_body", True),
        ("http-chunked-input = 1", "chunked_input", True),
        ("http-manage-source = yes", "manage_source", True),
        ("http-manage-rtsp = yes", "manage_rtsp", True),
        ("http-server-name-as-http-host = 1", "server_name_as_http_host", True),
        ("http-var = A=1\nhttp-var = B=x=y", "variables", ((b"A", b"1"), (b"B", b"x=y"))),
        ("http-allow-underscores = true", "allow_underscores", True),
        ("http-enable-proxy-protocol = true", "proxy_protocol", True),
        ("enable-proxy-protocol = true", "proxy_protocol", True),
        ("http-stud-prefix = 10.0.0.1", "stud_prefix", ("10.0.0.1",)),
        (
            "http-trusted-proxy = 10.0.0.0/8\nhttp-trusted-proxy = unix",
            "trusted_proxies",
            (ipaddress.ip_network("10.0.0.0/8"),),
        ),
        ("http-trusted-proxy = unix", "trust_unix", True),
        ("http-trusted-proxy = ::1", "trust_unix", False),
        ("http-x-forwarded = false", "x_forwarded", False),
        ("http-forwarded = true", "forwarded", True),
        ("http-via = gw1", "via", "gw1"),
        ("http-via = off", "via", ""),
        ("http-fallback = 127.0.0.1:3031", "fallback", (NODE,)),
        ("http-algo = iphash", "algo", "iphash"),
        ("http-algo = wrr-uwsgi", "algo", "wrr-uwsgi"),
        ("http-algo = p2c", "algo", "p2c"),
        ("http-algo = hash\nhttp-hash-by = cookie:SID", "hash_by", HashBy("cookie", "SID")),
        ("http-modifier1 = 9", "modifier1", 9),
        ("http-modifier2 = 1", "modifier2", 1),
        ("http-gracetime = 0", "gracetime", 0.0),
        ("http-max-retries = 0", "max_retries", 0),
        ("http-resolve-interval = 5", "resolve_interval", 5.0),
        ("http-node-keepalive = 0", "node_keepalive", 0),
        ("http-node-keepalive-timeout = 4", "node_keepalive_timeout", 4.0),
        ("http-events = 9\nhttp-buffer-size = 9", "max_head", 65536),
    ],
)
def test_http_options(line: str, field: str, expected: object) -> None:
    assert getattr(http_ini(line), field) == expected


@pytest.mark.parametrize(
    ("line", "field", "expected"),
    [
        ("listen = 5", "listen", 5),
        ("reuse-port = true", "reuse_port", True),
        ("freebind = true", "freebind", True),
        ("socket-timeout = 9", "defer_accept", 9),
        ("no-defer-accept = true", "defer_accept", 0),
        ("no-defer-accept = false", "defer_accept", 4),
        ("chmod-socket =", "chmod_socket", 0o666),
        ("chmod = 600", "chmod_socket", 0o600),
        ("umask = 027", "umask", 0o027),
        ("uid = 0", "uid", 0),
        ("gid = 0", "gid", 0),
        ("pidfile = /run/x.pid", "pidfile", "/run/x.pid"),
        ("logto2 = gate.log", "log_file", os.path.abspath("gate.log")),
        ("chdir = /", "chdir", "/"),
        ("vacuum = true", "vacuum", True),
        ("procname = gate", "procname", "gate"),
        ("procname-prefix = a\nprocname-append = b", "procname", "auwgateb"),
        ("procname-prefix-spaced = my\nprocname-master = x", "procname", "my x"),
        ("http-stats = :9191", "stats", Endpoint("tcp", ":9191", port=9191)),
        ("http-ss = /run/s", "stats", Endpoint("unix", "/run/s", path="/run/s")),
        ("stats-min = true", "stats_minified", True),
        ("stats-http = true", "stats_http", True),
        (
            "shared-socket = :1\nundeferred-shared-socket = :2\nshared-socket = :3",
            "undeferred",
            (False, True, False),
        ),
        ("shared-socket = 127.0.0.1:", "shared_sockets",
         (Endpoint("tcp", "127.0.0.1:0", host="127.0.0.1"),)),
        ("master = true\nauto-procname = true\ndie-on-term = true", "respawn_delay", 1.0),
    ],
)  # fmt: skip
def test_process_options(line: str, field: str, expected: object) -> None:
    settings = settings_of(*BASE, "-", stdin=f"[uwsgi]\n{line}".encode())
    assert getattr(settings.process, field) == expected


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("http-log = true", RequestLogSettings(enabled=True)),
        ("log-requests = true", RequestLogSettings(enabled=True)),
        ("log-format = %(uri)", RequestLogSettings(enabled=True, format="%(uri)")),
        ("http-log-format = json", RequestLogSettings(enabled=True, format="json")),
        ("http-log-file = /l", RequestLogSettings(enabled=True, path="/l")),
        ("http-log-file = l", RequestLogSettings(enabled=True, path=os.path.abspath("l"))),
        ("log-format = x\ndisable-logging = true", RequestLogSettings(format="x")),
        ("http-log = true\ndisable-logging = true", RequestLogSettings(enabled=True)),
        ("http-log = false\nlog-format = x", RequestLogSettings(format="x")),
        ("log-x-forwarded-for = true", RequestLogSettings(x_forwarded_for=True)),
    ],
)
def test_request_log(lines: str, expected: RequestLogSettings) -> None:
    settings = settings_of(*BASE, "-", stdin=f"[uwsgi]\n{lines}".encode())
    assert settings.request_log == expected


# Fields that are composed of several options, or that only another gateway has an option for.
_COMPOSED = {
    "http": "listeners nodes fallback mapper subscriptions variables keepalive keepalive_timeout"
    " stud_prefix trusted_proxies trust_unix error_pages tls static http2",
    "fastrouter": "listeners nodes fallback mapper subscriptions modifier1 modifier2 variables"
    " node_keepalive_timeout body_buffer manage_expect raw_body chunked_input x_forwarded forwarded"
    " post_buffering_dir",
    "http2": "",
    "process": "shared_sockets undeferred respawn_delay add_gids",
    "request_log": "",
    "subscriptions": "sign_digest sign_directory sign_skip_uids credentials",
    "announce": "entries use_credentials",
    "tls": "sni sni_regexps sni_dirs dotsplit options alpn sessions tickets",
    "sessions": "cache url",
    "tickets": "source",
    "static": "checks maps docroot index skip_ext safe mime expires compressed sendfile accel"
    " sendfile_fields",
    "life": "fifos touches",
    "main_log": "uid gid",
    "zerg": "servers pools attach",
}
_SECTIONS: dict[str, type[Any]] = {
    "http": HttpSettings,
    "http2": Http2Settings,
    "fastrouter": FastSettings,
    "process": ProcessSettings,
    "request_log": RequestLogSettings,
    "subscriptions": SubscriptionSettings,
    "announce": AnnounceSettings,
    "tls": TlsSettings,
    "sessions": SessionSettings,
    "tickets": TicketSettings,
    "static": StaticSettings,
    "life": LifeSettings,
    "main_log": MainLogSettings,
    "zerg": ZergSettings,
}


def test_every_field_has_an_option() -> None:
    options = {row.field for row in OPTIONS if row.field}
    for section, kind in _SECTIONS.items():
        names = {field.name for field in fields(kind)}
        without = {name for name in names if f"{section}.{name}" not in options}
        assert without == set(_COMPOSED[section].split()), section
        options -= {f"{section}.{name}" for name in names}
    assert options == set()


def test_relative_sockets_and_chdir(tmp_path: Path) -> None:
    words = ("--http", "in.sock", "--http-to", "out.sock", "--http-fallback", "@x")
    process_words = ("--shared-socket", "s.sock", "--http-stats", "st.sock")
    settings = settings_of(*words, *process_words, "--chdir", str(tmp_path))
    assert settings.http is not None
    here = os.getcwd()
    listener = settings.http.listeners[0]
    assert listener.endpoint == Endpoint("unix", "in.sock", path=f"{here}/in.sock")
    assert settings.http.nodes[0].endpoint.path == f"{here}/out.sock"
    assert settings.http.fallback[0].endpoint.path == "x"
    assert settings.process.shared_sockets[0].path == f"{here}/s.sock"
    assert settings.process.stats is not None
    assert settings.process.stats.path == f"{here}/st.sock"
    assert http_of(*words).nodes[0].endpoint.path == "out.sock"
    long = "x" * 107
    assert settings_of("--http", long, *BASE[2:], "--chdir", "/").http is not None
    assert errors_of(*BASE, "--chdir", f"{tmp_path}/none") == [
        f"command line: chdir: {tmp_path}/none is not a directory"
    ]


# Listeners.


def test_shared_sockets_are_counted() -> None:
    http = http_of("--shared-socket", ":1", "--http", "=0", "--http-to", "a:1")
    assert http.listeners[0].endpoint == Endpoint("shared", "=0", number=0)
    assert errors_of("--shared-socket", ":1", "--http", "=1", "--http-to", "a:1") == [
        "command line: http: there is no shared-socket number 1; 1 are given"
    ]


def test_a_listener_given_twice() -> None:
    assert errors_of(*BASE, "--httprouter", ":8080") == [
        "command line: httprouter: :8080 is listened on already (see command line)"
    ]
    assert len(http_of("--http", ":0", "--http", ":0", "--http-to", "a:1").listeners) == 2


def test_nothing_to_listen_on() -> None:
    assert errors_of() == [
        "http: no address to listen on; give one, such as http = :8080 (see --help)"
    ]


# Where nodes come from.


def test_no_node() -> None:
    assert errors_of("--http", ":1") == [
        "command line: http: no node to send requests to;"
        " add http-to = ADDRESS of the application server"
    ]
    assert len(errors_of("--http", ":1", "--http-to", "3031")) == 1
    assert len(errors_of("--http", "1", "--http-to", "a:1")) == 1


def test_sockets_as_nodes() -> None:
    words = ("--http", ":1", "--socket", ":3031", "-s", "/b.sock")
    assert http_of(*words).nodes == (
        NodeSettings(Endpoint("tcp", ":3031", host="127.0.0.1", port=3031)),
    )
    assert warnings_of(*words) == [
        "command line: socket: no http-to is given:"
        " requests go to :3031 (uwgate runs no application)"
    ]
    assert http_of(*words, "--http-use-socket").nodes[0].endpoint.text == ":3031"
    assert http_of(*words, "--http-use-socket=1").nodes[0].endpoint.path == "/b.sock"
    assert errors_of(*words, "--http-use-socket=2") == [
        "command line: http-use-socket: there is no socket option number 2; 2 are given"
    ]
    assert "cannot serve as a node" in errors_of("--http", ":1", "--socket", "127.0.0.1:0")[0]


def test_base() -> None:
    http = http_of("--http", ":1", "--http-use-base", "/run/apps/")
    assert http.mapper == MapperSettings("base", "/run/apps/")
    assert http.nodes == ()
    assert "no path" in errors_of("--http", ":1", "--http-use-base", "h:1/")[0]


def test_pattern() -> None:
    http = http_of("--http", ":1", "--http-use-pattern", "/run/%s.sock")
    assert http.mapper == MapperSettings("pattern", "/run/%s.sock")
    assert "is not a port" in errors_of("--http", ":1", "--http-use-pattern", "h:%s")[0]
    assert warnings_of("--http", ":1", "--http-use-pattern", "/run/%%%(%x") == [
        "command line: http-use-pattern: has no %s, so that every host has the same node;"
        " in files write %%s"
    ]


def test_code(tmp_path: Path) -> None:
    good = tmp_path / "map:it.py"
    bad = tmp_path / "bad.py"
    good.write_text("def where(key): return 'a:1'\n")
    bad.write_text("\ndef where(key) return\n")
    words = ("--http", ":1", "--http-use-code-string")
    http = http_of(*words, f"5:{good}:where", "--http-code-timeout", "250ms")
    assert http.mapper == MapperSettings("code", str(good), "where", 5, 0.25)
    assert http_of(*words, f"0:{good}:where").mapper.code_timeout == 1.0
    assert "expected MODIFIER1:FILE:FUNCTION" in errors_of(*words, "x.py:where")[0]
    assert "expected MODIFIER1:FILE:FUNCTION" in errors_of(*words, f"256:{good}:where")[0]
    assert f"{bad}:2 is not valid Python" in errors_of(*words, f"0:{bad}:where")[0]
    assert "No such file" in errors_of(*words, "0:/no/such.py:where")[0]
    bad.write_bytes(b"\0")
    assert "is not valid Python" in errors_of(*words, f"0:{bad}:where")[0]


def test_only_one_source_counts() -> None:
    words = (*BASE, "--http-use-base", "/x/")
    assert http_of(*words).mapper.kind == "base"
    assert warnings_of(*words) == [
        "command line: http-use-base: decides where requests go; http-to cannot act beside it"
    ]


# Error pages.


def test_error_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.html", "b.json", "c.txt", "d"):
        (tmp_path / name).write_text(name)
    text = "".join(
        f"error-page-{number} = {tmp_path}/{name}\n"
        for number, name in ((404, "a.html"), (502, "b.json"), (503, "c.txt"), (599, "d"))
    )
    assert http_ini(text).error_pages == {
        404: ErrorPage(b"a.html", "text/html; charset=utf-8"),
        502: ErrorPage(b"b.json", "application/json"),
        503: ErrorPage(b"c.txt", "text/plain; charset=utf-8"),
        599: ErrorPage(b"d", "text/html; charset=utf-8"),
    }
    assert ini_errors("error-page-502 = /no/such") == [
        "standard input:2: error-page-502: /no/such: No such file or directory"
    ]
    monkeypatch.setattr(compose, "_MAX_PAGE", 2)
    assert "larger than 2 bytes" in ini_errors(text)[0]


# Names.


def test_server_options_are_named_in_one_line() -> None:
    text = "module = a\nprocesses = 4\nmodule = b\n"
    made = configured(*BASE, "-", stdin=f"[uwsgi]\n{text}".encode())
    assert [str(each) for each in made.problems.warnings] == [
        "ignored, as they belong to the application server: module, processes"
    ]


def test_later_options_are_warned_about_once() -> None:
    words = ("--fs-reload", "/a", "--fs-reload", "/b", "--http-cheap=false")
    assert warnings_of(*BASE, *words) == [
        "command line: fs-reload: known from uWSGI, but without effect in this version of uwgate"
    ]


@pytest.mark.parametrize(
    "name",
    [
        "rawrouter", "forkptyrouter", "tuntap-router", "http-use-cache",
    ],
)  # fmt: skip
def test_what_would_change_the_service_is_refused(name: str) -> None:
    assert ini_errors(f"{name} = x") == [
        f"standard input:2: {name}: not supported by this version"
        " (ignoring it would change what is served)"
    ]


def test_what_may_be_meant_instead_is_named() -> None:
    assert ini_errors("sslrouter = :443,a,b") == [
        "standard input:2: sslrouter: not supported by this version"
        " (ignoring it would change what is served); https serves HTTP over TLS"
    ]


def test_commands_of_uwsgi_are_refused() -> None:
    assert errors_of(*BASE, "--build-plugin", "/x") == [
        "command line: build-plugin: is a command of the uWSGI binary that uwgate does not have"
    ]


@pytest.mark.parametrize(
    "names",
    [
        "emperor stats-push ssl-enable-compression fs-reload rawrouter-zerg log-drain",
    ],
)
def test_known_for_later(names: str) -> None:
    for name in names.split():
        row = find(name)
        assert row is not None
        assert row.state is State.LATER


@pytest.mark.parametrize(
    "name",
    [
        "module", "wsgi-file", "processes", "workers", "threads", "spooler", "plugins", "plugin",
        "env", "callable", "pythonpath", "virtualenv", "home", "need-app", "lazy-apps",
        "enable-threads", "buffer-size", "cheaper", "route", "mount", "http-socket",
        "https-socket", "suwsgi-socket", "ssl-socket",
        "max-requests", "gevent", "cgi", "rack", "psgi",
    ],
)  # fmt: skip
def test_known_of_the_application_server(name: str) -> None:
    row = find(name)
    assert row is not None
    assert row.state is State.SERVER


def test_command_line_options_in_files() -> None:
    assert ini_errors("check = true") == [
        "standard input:2: check: works on the command line only"
    ]


def test_unknown_names() -> None:
    text = "ip = 1\nhttp-var = A=%(ip)\nhttp_timeout = 3\nzzz = 1\nset-ph = q=1\n"
    start = "unknown option, taken as a placeholder that nothing uses"
    assert warnings_of(*BASE, "-", stdin=f"[uwsgi]\n{text}".encode()) == [
        f"standard input:4: http_timeout: {start}; did you mean http-timeout?",
        f"standard input:5: zzz: {start}",
    ]


def test_unknown_names_of_the_environment() -> None:
    environ = {"UWSGI_VERSION": "2", "UWSGI_HTTP_TIMOUT": "3", "UWSGI_XYZZY": "1"}
    assert warnings_of(*BASE, environ=environ)[-1:] == [
        "environment UWSGI_HTTP_TIMOUT: http-timout: unknown option; did you mean http-timeout?"
    ]
    assert settings_of(*BASE, "--strict", environ={"UWSGI_XYZZY": "1"})


def test_odd_booleans_are_warned_about() -> None:
    assert warnings_of(*BASE, "--http-quiet", "flase") == [
        "command line: http-quiet: 'flase' is taken as true (as in uWSGI); expected true or false"
    ]


def test_all_errors_at_once() -> None:
    found = errors_of("--http", "8080", "--http-to", "https://a:1", "--http-processes", "0", "--x")
    assert len(found) == 4


def test_names_are_unique() -> None:
    names = [name for row in OPTIONS for name in (row.name, *row.aliases)]
    assert len(names) == len(set(names))
    others = [row.name for state in State for row in foreign(state)]
    assert len(others) == len(set(others))
    assert not set(names) & set(others)


@given(
    st.lists(
        st.tuples(
            st.sampled_from([row.name for row in OPTIONS if row.state is State.ACTIVE]),
            st.text(max_size=12) | st.sampled_from(["1", ":80", "true", "a:1", "60s", "unix"]),
        ),
        max_size=6,
    )
)
def test_settings_or_errors(items: list[tuple[str, str]]) -> None:
    made = configured(*[f"--{name}={value}" for name, value in items])
    assert (made.settings is None) == bool(made.problems.errors)
    for each in (*made.problems.errors, *made.problems.warnings):
        assert each.message
