"""The Dockerfile, as far as it can be tried without a daemon of containers: what it copies, what it
starts, how it asks for health, and what ends it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest
from support.client import Client
from support.nodes import RawHttpNode
from support.uwgate import ROOT
from support.waiting import DEADLINE, free_port, wait_until

GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"


def instructions() -> list[tuple[str, str]]:
    """``(FROM, words)``… with lines joined that belong together."""
    text = re.sub(r"(?m)^\s*#.*\n", "", (ROOT / "Dockerfile").read_text()).replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines)]


def the(name: str) -> str:
    """The words of an instruction that counts once, the last time."""
    return [rest for word, rest in instructions() if word == name][-1]


def in_context(path: Path) -> bool:
    """Whether .dockerignore lets a file into the build: the last pattern that fits decides."""
    name, found = str(path.relative_to(ROOT)), True
    for line in (ROOT / ".dockerignore").read_text().split():
        pattern = line.removeprefix("!").removeprefix("**/")
        parts = [name, *map(str, Path(name).parents), *Path(name).parts]
        if any(fnmatch(part, pattern) for part in (parts if "**/" in line else parts[:-1])):
            found = line.startswith("!")
    return found


def test_what_is_copied_is_there_and_suffices() -> None:
    copied = [
        ROOT / name
        for word, rest in instructions()
        if word == "COPY" and not rest.startswith("--from")
        for name in rest.split()[:-1]
    ]
    assert copied
    for path in copied:
        assert path.exists(), path
        assert in_context(path), path
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for needed in ("pyproject.toml", project["readme"], "uwgate"):
        assert ROOT / needed in copied, needed
    assert in_context(ROOT / "uwgate" / "master" / "systemd.py")
    for kept_out in (".git/config", "tests/conftest.py", "uwgate/__pycache__/cli.cpython-311.pyc"):
        assert not in_context(ROOT / kept_out), kept_out


def test_it_is_not_root() -> None:
    user, _, group = the("USER").partition(":")
    assert user.isdecimal()
    assert group.isdecimal()
    assert int(user) > 0 < int(group)
    assert the("STOPSIGNAL") == "SIGTERM"


def words_of(text: str, where: Path) -> list[str]:
    """A command in its JSON form, for a directory of ours and the program that is tested."""
    program, *words = json.loads(text[text.index("[") :])
    assert program == "uwgate"
    places = ("/run/uwgate", "/etc/uwgate")
    for place in places:
        words = [word.replace(place, str(where)) for word in words]
    return [sys.executable, "-m", "uwgate", *words]


@pytest.fixture
def node() -> Iterator[RawHttpNode]:
    with RawHttpNode() as found:
        yield found


def test_its_commands(tmp_path: Path, node: RawHttpNode) -> None:
    """Healthy while it runs, and not before or after; a reload keeps it so; the stop signal ends it
    in order."""
    port = free_port()
    (tmp_path / "uwgate.ini").write_text(
        f"[uwsgi]\nhttp = 127.0.0.1:{port}\nhttp-to = {node.spec}\n"
    )
    start = words_of(the("ENTRYPOINT"), tmp_path) + json.loads(
        the("CMD").replace("/etc/uwgate", str(tmp_path))
    )

    def healthy() -> bool:
        check = words_of(the("HEALTHCHECK").partition(" CMD ")[2], tmp_path)
        return subprocess.run(check, cwd=ROOT, capture_output=True, timeout=20).returncode == 0

    def serves() -> bool:
        try:
            with Client(("127.0.0.1", port)) as client:
                return client.ask(GET).status == 200
        except OSError:
            return False

    assert not healthy()
    with subprocess.Popen(start, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        try:
            wait_until(serves, "it serves")
            assert healthy()
            reload = [sys.executable, "-m", "uwgate", "reload", "--timeout", "20"]
            environ = {**os.environ, "UWGATE_CONTROL": str(tmp_path / "control.sock")}
            done = subprocess.run(reload, cwd=ROOT, env=environ, capture_output=True, timeout=30)
            assert done.returncode == 0, done.stderr
            assert healthy()
            assert serves()
            process.send_signal(signal.Signals[the("STOPSIGNAL")])
            assert process.wait(DEADLINE) == 0
        finally:
            process.kill()
    assert not healthy()
