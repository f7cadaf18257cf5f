"""Sessions across processes, seen by ``openssl s_client``."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from openssl_tools import World

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")

PROGRAM = Path(__file__).with_name("openssl_workers.py")
VERSIONS = ("-tls1_2", "-tls1_3")


class Workers:
    """Two processes on ports of their own."""

    def __init__(self, process: subprocess.Popen[str], world: World, where: Path) -> None:
        self.process = process
        self.world = world
        self.where = where
        assert process.stdout is not None
        self.ports = [int(word) for word in process.stdout.readline().split()]

    def order(self, word: str) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"

    def visit(self, worker: int, version: str, go_on: str = "", keep: str = "") -> bool:
        """Whether the connection was resumed; ``go_on``, ``keep``: names of session files."""
        command = ["openssl", "s_client", "-connect", f"127.0.0.1:{self.ports[worker]}", version]
        command += ["-CAfile", str(self.world.authority.file), "-verify_return_error"]
        if go_on:
            command += ["-sess_in", str(self.where / go_on)]
        if keep:
            command += ["-sess_out", str(self.where / keep)]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as client:
            assert client.stdout is not None
            text = client.stdout.read()  # the server closes first
        assert b"served by" in text, text
        reused = b"\nReused, TLSv1" in text
        assert reused or b"\nNew, TLSv1" in text
        return reused


@contextmanager
def started(mode: str, where: Path) -> Iterator[Workers]:
    world = World(where)
    command = [sys.executable, str(PROGRAM), str(world.pair.cert), str(world.pair.key), mode]
    with subprocess.Popen(
        [*command, str(where)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield Workers(process, world, where)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(10) == 0


@pytest.mark.parametrize("version", VERSIONS)
def test_tickets_across_workers(tmp_path: Path, version: str) -> None:
    with started("tickets", tmp_path) as workers:
        assert not workers.visit(0, version, keep="one")
        assert workers.visit(1, version, go_on="one")
        workers.order("rotate")
        assert workers.visit(1, version, go_on="one")
        assert not workers.visit(1, version, keep="two")
        workers.order("kill")
        assert workers.visit(0, version, go_on="two")
        assert workers.visit(0, version, go_on="one")
        workers.order("retire")
        assert not workers.visit(0, version, go_on="one")
        assert not workers.visit(1, version, go_on="one")
        assert workers.visit(1, version, go_on="two")


@pytest.mark.parametrize("version", VERSIONS)
def test_sessions_across_workers(tmp_path: Path, version: str) -> None:
    with started("sessions", tmp_path) as workers:
        assert not workers.visit(0, version, keep="one")
        assert workers.visit(1, version, go_on="one")
        workers.order("kill")
        assert workers.visit(0, version, go_on="one")


@pytest.mark.parametrize("version", VERSIONS)
def test_ticket_of_another_instance(tmp_path: Path, version: str) -> None:
    with ExitStack() as stack:
        for name in ("here", "there"):
            (tmp_path / name).mkdir()
        here = stack.enter_context(started("tickets", tmp_path / "here"))
        there = stack.enter_context(started("tickets", tmp_path / "there"))
        assert not there.visit(0, version, keep="one")
        assert not here.visit(0, version, go_on="../there/one")
        assert there.visit(1, version, go_on="one")
