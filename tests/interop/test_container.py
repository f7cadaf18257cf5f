"""The Dockerfile, as far as it can be tried without a daemon of containers: what it copies, what it
starts, how it asks for health, and what ends it."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
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


def copied() -> list[Path]:
    """What the build copies from here."""
    return [
        ROOT / name
        for word, rest in instructions()
        if word == "COPY" and not rest.startswith("--from")
        for name in rest.split()[:-1]
    ]


def test_what_is_copied_is_there_and_suffices() -> None:
    assert copied()
    for path in copied():
        assert path.exists(), path
        assert in_context(path), path
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for needed in ("pyproject.toml", project["readme"], "uwgate"):
        assert ROOT / needed in copied(), needed
    assert in_context(ROOT / "uwgate" / "master" / "systemd.py")
    for kept_out in (".git/config", "tests/conftest.py", "uwgate/__pycache__/cli.cpython-311.pyc"):
        assert not in_context(ROOT / kept_out), kept_out


def test_what_is_copied_is_a_package_that_runs(tmp_path: Path) -> None:
    """What pip does with it, but for the wheel: without an index there may be no tool for one."""
    pytest.importorskip("setuptools")
    for path in copied():
        if path.is_dir():
            kept_out = shutil.ignore_patterns("__pycache__")
            shutil.copytree(path, tmp_path / path.name, ignore=kept_out)
        else:
            shutil.copy(path, tmp_path)
    built = tmp_path / "built"
    words = ["-q", "build_py", "--build-lib", str(built)]
    script = "import setuptools; setuptools.setup()"
    python = [sys.executable, "-W", "ignore", "-c"]
    subprocess.run([*python, script, *words], cwd=tmp_path, check=True, timeout=60)

    def files(root: Path) -> set[str]:
        found = (root / "uwgate").rglob("*")
        return {str(each.relative_to(root)) for each in found if each.suffix in (".py", ".typed")}

    assert files(built) == files(tmp_path)
    code = "import uwgate.cli as cli; print(cli.__file__); cli.main()"
    done = subprocess.run(
        [*python, code, "--version"], cwd=built, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout.split()[0]) == (0, str(built / "uwgate" / "cli.py"))


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
    return [sys.executable, "-m", "uwgate", *(here(word, where) for word in words)]


def here(text: str, where: Path) -> str:
    """The same with a directory of ours."""
    return text.replace("/run/uwgate", str(where)).replace("/etc/uwgate", str(where))


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

    def health() -> int:
        check = here(the("HEALTHCHECK").partition(" CMD ")[2], tmp_path)
        assert check.startswith("uwgate ")
        check = f"{shlex.quote(sys.executable)} -m {check}"
        words = ["/bin/sh", "-c", check]
        return subprocess.run(words, cwd=ROOT, capture_output=True, timeout=20).returncode

    def serves() -> bool:
        try:
            with Client(("127.0.0.1", port)) as client:
                return client.ask(GET).status == 200
        except OSError:
            return False

    assert health() == 1
    with subprocess.Popen(start, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        try:
            wait_until(serves, "it serves")
            assert health() == 0
            reload = [sys.executable, "-m", "uwgate", "reload", "--timeout", "20"]
            environ = {**os.environ, "UWGATE_CONTROL": str(tmp_path / "control.sock")}
            done = subprocess.run(reload, cwd=ROOT, env=environ, capture_output=True, timeout=30)
            assert done.returncode == 0, done.stderr
            assert health() == 0
            assert serves()
            process.send_signal(signal.Signals[the("STOPSIGNAL")])
            assert process.wait(DEADLINE) == 0
        finally:
            process.kill()
    assert health() == 1
