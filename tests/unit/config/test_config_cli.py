"""The command: what it prints, where, and its exit codes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from config_tools import BASE, configured, settings_of

from uwgate import __version__
from uwgate.config.docs import main as print_page
from uwgate.config.help import options_page
from uwgate.config.options import OPTIONS, TOPICS
from uwgate.config.show import show

ROOT = Path(__file__).resolve().parents[3]


def run(*words: str, stdin: bytes = b"", **environ: str) -> subprocess.CompletedProcess[bytes]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("UW")}
    done = subprocess.run(
        [sys.executable, "-m", "uwgate", *words],
        input=stdin,
        capture_output=True,
        cwd=ROOT,
        env=kept | environ,
        timeout=30,
    )
    assert b"Traceback" not in done.stderr
    return done


def test_check() -> None:
    done = run("--check", *BASE)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"configuration ok\n", b"")


def test_check_a_file(tmp_path: Path) -> None:
    path = tmp_path / "router.ini"
    path.write_text("[uwsgi]\nhttp = 8080\nhttp-timout = 3\nhttp-to = a:1,5\nmodule = x\n")
    done = run("--check", str(path))
    assert done.returncode == 1
    assert done.stdout == b""
    assert done.stderr.decode().splitlines() == [
        f"uwgate: warning: {path}:3: http-timout: unknown option, taken as a placeholder that"
        " nothing uses; did you mean http-timeout?",
        "uwgate: warning: ignored, as they belong to the application server: module",
        f"uwgate: error: {path}:2: http: '8080' is not an address (uWSGI makes a unix socket);"
        " write :8080",
        f"uwgate: error: {path}:4: http-to: ',5' is not understood; write a:1,modifier1=5",
    ]


def test_errors_end_the_start() -> None:
    done = run("--http", ":0")
    assert done.returncode == 1
    assert b"no node to send requests to" in done.stderr


def test_no_arguments() -> None:
    done = run()
    assert done.returncode == 1
    assert done.stderr == (
        b"uwgate: error: http: no address to listen on; give one, such as http = :8080"
        b" (see --help)\n"
    )


def test_problems_stay_on_one_line() -> None:
    done = run("--check", *BASE, "--http-var", "A\nB=\xff")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    done = run("--check", *BASE, os.fsdecode(b"--x\xff\x1b"))
    assert done.stderr.splitlines()[0].endswith(b"--x\xff\\x1b: unknown option")


def test_version() -> None:
    assert run("--version").stdout == f"uwgate {__version__}\n".encode()


def test_help() -> None:
    text = run("--help").stdout.decode()
    assert text.startswith("Usage: uwgate")
    for row in OPTIONS:
        assert row.name in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("topic", TOPICS)
def test_help_on_a_topic(topic: str) -> None:
    done = run("--help", topic)
    assert done.returncode == 0
    assert done.stdout.decode().startswith(TOPICS[topic])


def test_help_on_something_else() -> None:
    done = run("--help", "cooking")
    assert done.returncode == 1
    assert b"--help cooking: there is no such topic; expected http, http2, nodes" in done.stderr


def test_get() -> None:
    done = run("--get", "http-to", "--get", "x", *BASE, "-", stdin=b"[uwsgi]\nx = %(http)!\n")
    assert (done.returncode, done.stdout) == (0, b"127.0.0.1:3031\n:8080!\n")
    assert run("--get", "nope", *BASE).returncode == 1


def test_print() -> None:
    assert run("--check", *BASE, "--print", "hello").stderr == b"hello\n"


def test_environment() -> None:
    assert run("--check", UWSGI_HTTP=":1", UWGATE_HTTP_TO="a:1").returncode == 0


def test_a_reader_that_left() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "uwgate", "--help"],
        stdout=write,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        timeout=30,
    )
    os.close(write)
    assert done.stderr == b""


def test_a_directory_that_is_gone(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    script = f"cd {gone} && rmdir {gone} && exec {sys.executable} -m uwgate --http :1"
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(["/bin/sh", "-c", script], capture_output=True, env=environ, timeout=30)
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr
    assert b"the current directory is gone" in done.stderr


def test_closed_descriptors() -> None:
    script = f"exec {sys.executable} -m uwgate --check --http :1 --http-to a:1 - <&- >&- 2>&-"
    done = subprocess.run(["/bin/sh", "-c", script], cwd=ROOT, timeout=30)
    assert done.returncode == 0


INI = r"""[uwsgi]
http = :8080
http = 127.0.0.1:81
http-to = http://127.0.0.1:9000,weight=2
http-to = @name
http-timeout = 5
http-keepalive
http-auto-gzip = true
http-use-pattern = /run/%%s.sock
log-format = %(uri) %%(x) 100%%
disable-logging = true
error-page-502 = /dev/null
error-page-503 = /dev/null
"""


def test_show_config() -> None:
    done = run("--show-config", "-", stdin=INI.encode())
    assert done.returncode == 0
    lines = done.stdout.decode().splitlines()
    assert lines[0] == "[uwsgi]"
    shown = dict(zip(lines[2::2], lines[1::2], strict=True))
    assert shown["http = :8080"] == "; standard input:2"
    assert shown["http = 127.0.0.1:81"] == "; standard input:3"
    assert shown["http-timeout = 5"] == "; standard input:6"
    assert shown["http-headers-timeout = 5"] == "; default"
    assert shown["http-auto-gzip = true"] == "; standard input:8"
    assert shown["http-use-pattern = /run/%%s.sock"] == "; standard input:9"
    assert shown["http-gracetime = 30"] == "; default"
    assert shown["error-page-503 = /dev/null"] == "; standard input:13"


def test_show_config_gives_the_same_settings() -> None:
    made = configured("--procname", "a%b", "-", stdin=INI.encode())
    assert made.settings is not None
    shown = show(made, made.settings)
    assert settings_of("-", stdin=shown.encode()) == made.settings
    plain = configured(*BASE)
    assert plain.settings is not None
    assert settings_of("-", stdin=show(plain, plain.settings).encode()) == plain.settings


def test_the_options_page_is_current(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "options.md").read_text()
    assert page == options_page(), "run: python -m uwgate.config.docs > docs/options.md"
    print_page()
    assert capsys.readouterr().out == page
