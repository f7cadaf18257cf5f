"""Hooks into OpenSSL: found, put to the test, and harmless where they do not fit."""

from __future__ import annotations

import ctypes
import gc
import os
import ssl
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
from openssl_tools import TLS_1_2, World, connect, hooks, visit

from uwgate.tls import openssl
from uwgate.tls.openssl import OpenSsl, Unavailable, load, refusal, survives

ROOT = Path(__file__).resolve().parents[3]


def test_this_python_is_served() -> None:
    assert hooks().number == ssl.OPENSSL_VERSION_NUMBER


@pytest.mark.parametrize(
    ("implementation", "version", "number", "locked", "reason"),
    [
        ("cpython", "OpenSSL 3.0.22 25 Aug 2026", 0x30000160, True, ""),
        ("cpython", "OpenSSL 1.1.1w  11 Sep 2023", 0x1010117F, True, ""),
        ("cpython", "OpenSSL 1.1.0l  10 Sep 2019", 0x101000CF, True, "older than 1.1.1"),
        ("cpython", "LibreSSL 3.8.2", 0x20000000, True, "not OpenSSL"),
        ("cpython", "AWS-LC 1.29.0", 0x1010107F, True, "not OpenSSL"),
        ("cpython", "OpenSSL 1.1.1 (compatible; AWS-LC 1.40.0)", 0x1010107F, True, "not OpenSSL"),
        ("cpython", "OpenSSL 3.0.22 25 Aug 2026", 0x30000160, False, "free-threaded"),
        ("pypy", "OpenSSL 3.0.22 25 Aug 2026", 0x30000160, True, "pypy is not CPython"),
    ],
)
def test_what_is_not_even_tried(
    implementation: str, version: str, number: int, locked: bool, reason: str
) -> None:
    found = refusal(implementation, version, number, locked=locked)
    assert found == reason or (reason and reason in found)


def test_without_hooks_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssl, "OPENSSL_VERSION", "LibreSSL 3.8.2")
    lines: list[str] = []
    assert load(lines.append) is None
    assert lines == [
        "warning: LibreSSL 3.8.2 cannot be reached through Python (the TLS library is not "
        "OpenSSL): TLS ticket keys are not rotated, and each worker keeps its own sessions"
    ]


def test_library_of_another_version_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssl, "OPENSSL_VERSION_NUMBER", 0x30F00000)
    lines: list[str] = []
    assert load(lines.append) is None
    assert "its library was not found" in lines[0]


class Shifted(OpenSsl):
    """Looks for the pointer where another layout would have it."""

    def pointer(self, context: ssl.SSLContext) -> int:
        return ctypes.c_void_p.from_address(id(context) + self.offset).value or 0


@pytest.mark.parametrize("offset", [0, 8, 24, 32, 40])
def test_another_layout_is_noticed(offset: int) -> None:
    shifted = Shifted(hooks().library, print)
    shifted.offset = offset  # type: ignore[attr-defined]
    assert not survives(lambda: openssl._check(shifted))
    assert survives(lambda: openssl._check(hooks()))


def crash() -> None:
    ctypes.string_at(0)


def fail() -> None:
    os.write(1, b"this goes nowhere")
    raise RuntimeError("nor does this")


def hang() -> None:
    time.sleep(60)


def children() -> set[str]:
    """Of this process, zombies too: fixtures of other tests may have some that live."""
    found: set[str] = set()
    for thread in Path("/proc/self/task").iterdir():
        found.update((thread / "children").read_text().split())
    return found


@pytest.mark.parametrize("check", [crash, fail, hang])
def test_child_that_crashes_fails_or_hangs(
    check: Callable[[], None], capfd: pytest.CaptureFixture[str]
) -> None:
    others = children()
    before = time.monotonic()
    assert not survives(check, 5.0 if check is not hang else 0.2)
    assert time.monotonic() - before < 5
    assert capfd.readouterr() == ("", "")
    assert children() <= others


def test_child_is_judged_where_the_kernel_collects_children() -> None:
    code = (
        "import signal\n"
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
        "from uwgate.tls.openssl import load\n"
        "assert load(print) is not None\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=30)


def test_what_is_set_is_set() -> None:
    library = hooks().library
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    pointer = hooks().pointer(context)
    hooks().set_timeout(context, 77)
    hooks().set_verify_depth(context, 3)
    assert library.SSL_CTX_get_timeout(pointer) == 77
    assert library.SSL_CTX_get_verify_depth(pointer) == 3
    library.SSL_CTX_ctrl(pointer, 78, 0x10, None)  # SSL_CTRL_CLEAR_MODE
    assert not library.SSL_CTX_ctrl(pointer, 33, 0, None) & 0x10
    hooks().save_memory(context)
    assert library.SSL_CTX_ctrl(pointer, 33, 0, None) & 0x10  # SSL_CTRL_MODE
    assert library.SSL_CTX_ctrl(pointer, 40, 0, None) == 0  # SSL_CTRL_GET_READ_AHEAD
    hooks().read_ahead(context)
    assert library.SSL_CTX_ctrl(pointer, 40, 0, None) == 1


def test_wrong_values() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    for sid in (b"", bytes(33)):
        with pytest.raises(ValueError, match="1 to 32 bytes"):
            hooks().set_session_context(context, sid)
    for length in (0, 48, 79, 81):
        with pytest.raises(ValueError, match="80 bytes"):
            hooks().set_ticket_keys(context, bytes(length))
    with pytest.raises(TypeError):
        hooks().pointer("context")  # type: ignore[arg-type]


def test_missing_function_is_unavailable() -> None:
    with pytest.raises(Unavailable, match="no_such_function is missing"):
        openssl.declare(hooks().library, (("no_such_function", None, ()),))


def test_clients_are_told_whose_certificates_are_good(tmp_path: Path) -> None:
    world = World(tmp_path)
    library = hooks().library
    openssl.declare(
        library,
        (
            ("SSL_CTX_get_client_CA_list", ctypes.c_void_p, (ctypes.c_void_p,)),
            ("OPENSSL_sk_num", ctypes.c_int, (ctypes.c_void_p,)),
            ("ERR_peek_error", ctypes.c_ulong, ()),
        ),
    )
    context = world.server()

    def named() -> int:
        names = library.SSL_CTX_get_client_CA_list(hooks().pointer(context))
        return int(library.OPENSSL_sk_num(names)) if names else 0

    for other in (world.pair.key, tmp_path / "missing"):
        hooks().name_authorities(context, str(other))
        assert named() == 0
        assert library.ERR_peek_error() == 0
    hooks().name_authorities(context, str(world.authority.file))
    assert named() == 1


def test_no_sessions_kept(tmp_path: Path) -> None:
    world = World(tmp_path)
    server, client = world.server(), world.client(TLS_1_2, ssl.OP_NO_TICKET)
    session = visit(server, client)[1]
    assert visit(server, client, session)[0]
    hooks().no_sessions(server)
    session = visit(server, client)[1]
    assert not visit(server, client, session)[0]


class Broken:
    """A store that does not work."""

    def new(self, key: bytes, der: bytes) -> None:
        raise OSError("no memory")

    def get(self, key: bytes) -> bytes | None:
        raise OSError("no memory")

    def remove(self, key: bytes) -> None:
        raise KeyboardInterrupt


def test_broken_store_costs_full_handshakes_and_is_logged_once(tmp_path: Path) -> None:
    lines: list[str] = []
    own = OpenSsl(hooks().library, lines.append)
    world, store = World(tmp_path), Broken()
    server, client = world.server(), world.client(TLS_1_2, ssl.OP_NO_TICKET)
    own.external_sessions(server, store.new, store.get, store.remove)
    session = visit(server, client)[1]
    assert own.failures == 1
    assert not visit(server, client, session)[0]
    assert own.failures == 3  # asked, and told again
    connect(server, client)  # without close_notify: the session is removed
    assert own.failures == 5
    assert lines == [
        "TLS session callback failed: OSError: no memory",
        "TLS session callback failed: KeyboardInterrupt: ",
    ]


def test_log_may_be_broken_too(tmp_path: Path) -> None:
    def log(line: str) -> None:
        raise OSError(line)

    own = OpenSsl(hooks().library, log)
    world, store = World(tmp_path), Broken()
    server, client = world.server(), world.client(TLS_1_2, ssl.OP_NO_TICKET)
    own.external_sessions(server, store.new, store.get, store.remove)
    assert not visit(server, client)[0]
    assert own.failures == 2


def test_store_lives_as_long_as_its_contexts(tmp_path: Path) -> None:
    world, store = World(tmp_path), Broken()
    gone = weakref.ref(store)
    server = world.server()
    hooks().external_sessions(server, store.new, store.get, store.remove)
    del store
    gc.collect()
    assert gone() is not None
    del server
    gc.collect()
    assert gone() is None


AT_THE_END = "sys.modules['kept'] = ends\n"
IN_A_CYCLE = "server.me = server, ends\n"


@pytest.mark.parametrize("kept", [AT_THE_END, IN_A_CYCLE], ids=["at the end", "in a cycle"])
def test_connections_may_outlive_everything(tmp_path: Path, kept: str) -> None:
    """OpenSSL calls when it frees a connection, which the collector may do last."""
    code = (
        "import sys, pathlib, gc\n"
        "sys.path[:0] = ['tests', 'tests/unit/tls']\n"
        "from openssl_tools import *\n"
        "world = World(pathlib.Path(sys.argv[1]))\n"
        "server = world.server()\n"
        "hooks().external_sessions(server, *[lambda *_: None] * 3)\n"
        "ends = connect(server, world.client(TLS_1_2, ssl.OP_NO_TICKET))\n"
        f"{kept}"
        "del ends, server\n"
        "gc.collect()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
