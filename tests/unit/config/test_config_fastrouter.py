"""The fastrouter's options: settings, sources of nodes, and what does not go together."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from config_tools import errors_of, settings_of, warnings_of

from uwgate.config.settings import (
    Endpoint,
    FastSettings,
    HashBy,
    ListenerSettings,
    MapperSettings,
    NodeSettings,
)

NODE = NodeSettings(Endpoint("tcp", "127.0.0.1:3031", host="127.0.0.1", port=3031))
BASE = ("--fastrouter", ":3017", "--fastrouter-to", "127.0.0.1:3031")


def fast_of(*words: str) -> FastSettings:
    fast = settings_of(*words).fastrouter
    assert fast is not None
    return fast


def test_defaults() -> None:
    settings = settings_of(*BASE)
    listener = ListenerSettings(Endpoint("tcp", ":3017", port=3017))
    assert settings.fastrouter == FastSettings(listeners=(listener,), nodes=(NODE,))
    assert settings.http is None


@pytest.mark.parametrize(
    ("words", "field", "expected"),
    [
        (("--fastrouter-processes", "4"), "processes", 4),
        (("--fastrouter-workers", "2"), "processes", 2),
        (("--fastrouter-uid", "0"), "uid", 0),
        (("--fastrouter-gid", "0"), "gid", 0),
        (("--fastrouter-quiet", "true"), "quiet", True),
        (("--fastrouter-timeout", "5"), "timeout", 5.0),
        (("--fastrouter-timeout", "5"), "connect_timeout", 5.0),
        (("--fastrouter-connect-timeout", "2"), "connect_timeout", 2.0),
        (("--fastrouter-drain-timeout", "9"), "drain_timeout", 9.0),
        (("--fastrouter-gracetime", "0"), "gracetime", 0.0),
        (("--fastrouter-max-retries", "0"), "max_retries", 0),
        (("--fastrouter-resolve-interval", "5"), "resolve_interval", 5.0),
        (("--fastrouter-node-keepalive", "0"), "node_keepalive", 0),
        (("--fastrouter-fallback", "127.0.0.1:3031"), "fallback", (NODE,)),
        (("--fastrouter-fallback-on-no-key",), "fallback_on_no_key", True),
        (("--fastrouter-algo", "p2c"), "algo", "p2c"),
        (("--fastrouter-hash-by", "cookie:user"), "hash_by", HashBy("cookie", "user")),
        (("--fastrouter-post-buffering", "64k"), "post_buffering", 65536),
        (("--fastrouter-post-buffering-dir", "/"), "post_buffering_dir", "/"),
        (("--fastrouter-max-spool", "1m"), "max_spool", 1 << 20),
        (("--fastrouter-max-body", "1m"), "max_body", 1 << 20),
        (("--fastrouter-cheap",), "cheap", True),
    ],
)
def test_fields(words: tuple[str, ...], field: str, expected: object) -> None:
    assert getattr(fast_of(*BASE, *words), field) == expected


@pytest.mark.parametrize(
    ("words", "mapper"),
    [
        (("--fastrouter-use-base", "/run/"), MapperSettings("base", "/run/")),
        (("--fastrouter-use-pattern", "/run/%s"), MapperSettings("pattern", "/run/%s")),
        (("--fastrouter-subscription-server", "127.0.0.1:4040"), MapperSettings("subscription")),
    ],
)
def test_mappers(words: tuple[str, ...], mapper: MapperSettings) -> None:
    assert fast_of("--fastrouter", ":3017", *words).mapper == mapper


def test_code(tmp_path: Path) -> None:
    code = tmp_path / "code.py"
    code.write_text("def find(key): return None\n")
    words = ["--fastrouter-use-code-string", f"5:{code}:find", "--fastrouter-code-timeout", "3"]
    found = fast_of("--fastrouter", ":3017", *words).mapper
    assert found == MapperSettings("code", str(code), "find", 5, 3.0)


def test_use_socket() -> None:
    words = ["--fastrouter", ":3017", "--socket", "127.0.0.1:3031"]
    assert fast_of(*words, "--fastrouter-use-socket").nodes == (NODE,)
    assert fast_of(*words).nodes == (NODE,)
    assert any("no fastrouter-to is given" in line for line in warnings_of(*words))


def test_a_node_is_needed() -> None:
    (error,) = errors_of("--fastrouter", ":3017")
    assert "add fastrouter-to" in error


def test_a_gateway_is_needed() -> None:
    assert "no address to listen on" in errors_of("--fastrouter-to", "127.0.0.1:3031")[0]


def test_options_without_a_fastrouter() -> None:
    words = ["--http", ":8080", "--http-to", "127.0.0.1:1", "--fastrouter-to", "127.0.0.1:3031"]
    assert settings_of(*words).fastrouter is None
    assert any("has no effect without fastrouter" in line for line in warnings_of(*words))


def test_two_gateways() -> None:
    settings = settings_of(*BASE, "--http", ":8080", "--http-to", "127.0.0.1:3031")
    assert settings.http is not None
    assert settings.fastrouter is not None
    (error,) = errors_of(*BASE, "--http", ":3017", "--http-to", "127.0.0.1:3031")
    assert "is listened on already" in error


def test_one_address_for_statistics() -> None:
    for option in ("--fastrouter-stats", "--fastrouter-stats-server", "--fastrouter-ss"):
        stats = settings_of(*BASE, option, ":9191").process.stats
        assert stats is not None
        assert stats.port == 9191
    assert settings_of(*BASE, "--fastrouter-ss", ":9191", "--http-stats", ":9191").process.stats
    (error,) = errors_of(*BASE, "--fastrouter-stats", ":9192", "--http-stats", ":9191")
    assert "statistics at one address" in error


def test_a_directory_that_is_not_there() -> None:
    (error,) = errors_of(*BASE, "--fastrouter-post-buffering-dir", "/nonexistent")
    assert "is not a directory" in error


def test_options_that_change_what_is_served_are_errors() -> None:
    assert errors_of(*BASE, "--fastrouter-use-cache")
    assert not warnings_of(*BASE, "--fastrouter-events", "9", "--fastrouter-buffer-size", "9")


def test_what_show_config_prints_is_the_same_configuration(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "uwgate", "--show-config"]
    given = [*BASE, "--fastrouter-timeout", "7", "--fastrouter-post-buffering", "9"]
    shown = subprocess.run([*words, *given], capture_output=True, text=True, check=True).stdout
    file = tmp_path / "shown.ini"
    file.write_text(shown)
    assert fast_of(str(file)) == fast_of(*given)
