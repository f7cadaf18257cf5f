"""The master FIFO of a running instance."""

from __future__ import annotations

import contextlib
import os
import stat
import string
import subprocess
import sys
from pathlib import Path

import pytest
from support.nodes import RawHttpNode
from support.uwgate import ROOT, Gateway, StartGateway
from support.waiting import DEADLINE, dead_address, free_port, wait_until

GET = b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"


def write(path: Path, orders: str) -> None:
    """As ``echo -n orders > path``; without a reader it fails at once."""
    fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    try:
        os.write(fd, orders.encode())
    finally:
        os.close(fd)


def logged(gateway: Gateway, text: str, times: int = 1) -> None:
    try:
        wait_until(lambda: gateway.log.count(text) >= times, text)
    except AssertionError as error:
        raise AssertionError(f"{error}; log:\n{gateway.log}") from None


def serves(gateway: Gateway) -> None:
    with gateway.connect() as client:
        assert client.ask(GET).status == 200


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Those of three slots, none of which exists."""
    return [tmp_path / name for name in ("new", "running", "sleeping")]


def options(paths: list[Path]) -> list[str]:
    return [word for path in paths for word in ("--master-fifo", str(path))]


def test_orders(start_gateway: StartGateway, http_node: RawHttpNode, paths: list[Path]) -> None:
    gateway = start_gateway("--http-to", http_node.spec, *options(paths))
    new, running, _sleeping = paths
    found = os.lstat(new)
    assert stat.S_ISFIFO(found.st_mode)
    assert stat.S_IMODE(found.st_mode) == 0o600
    write(new, "s+?\ns")
    logged(gateway, "stats: workers ", 2)
    logged(gateway, "FIFO: ? does nothing here")
    logged(gateway, "FIFO: + does nothing here: the number of workers is fixed")
    write(new, "1")
    wait_until(running.exists, "slot 1")
    wait_until(lambda: not new.exists(), "slot 0 left")

    def master_knows_that_it_serves() -> bool:
        write(running, "s")
        return "stats: workers idle" in gateway.log

    wait_until(master_knows_that_it_serves, "the worker")  # before that "w" means "not now"
    write(running, "w")
    logged(gateway, "respawned uwgate http 1 ")
    serves(gateway)
    write(running, "2q")
    assert gateway.process.wait(DEADLINE) == 0
    assert not any(path.exists() for path in paths)


def test_no_letter_does_harm(
    start_gateway: StartGateway, http_node: RawHttpNode, paths: list[Path]
) -> None:
    """All but those that end the instance or begin another one."""
    gateway = start_gateway("--http-to", http_node.spec, *options(paths[:1]))
    everything = "".join(set(map(chr, range(256))) - set("qQfrRcwWC"))
    write(paths[0], everything + "pp" + "SS" + "s")
    logged(gateway, "stats: workers ", 2)
    write(paths[0], "p")  # the one among everything
    serves(gateway)
    assert "Traceback" not in gateway.log


def test_over_a_reload(
    start_gateway: StartGateway, http_node: RawHttpNode, paths: list[Path]
) -> None:
    """The slot stays, and nothing that is written meanwhile is lost."""
    gateway = start_gateway("--http-to", http_node.spec, *options(paths))
    write(paths[0], "2")
    wait_until(paths[2].exists, "slot 2")
    before = os.lstat(paths[2]).st_ino
    write(paths[2], "r")
    logged(gateway, "] executing ")
    letters = [letter for letter in string.ascii_letters if letter not in "cCflLpPqQrRsSwWBE"]
    for letter in letters:
        write(paths[2], letter)
    logged(gateway, "] reloaded: ")
    for letter in letters:
        logged(gateway, f"FIFO: {letter} does nothing here")
    assert os.lstat(paths[2]).st_ino == before
    assert not paths[0].exists()
    serves(gateway)


def test_workers_have_no_part_in_it(start_gateway: StartGateway, paths: list[Path]) -> None:
    """They may be of another user, and face the network."""
    gateway = start_gateway("--http-to", dead_address(), *options(paths[:1]))
    pid = gateway.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    assert children

    def has_it(process: str) -> bool:
        for link in Path(f"/proc/{process}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                if os.readlink(link) == str(paths[0]):
                    return True
        return False

    assert has_it(str(pid))
    wait_until(lambda: not any(map(has_it, children)), "the workers have let go")


def test_another_file_in_the_way(paths: list[Path]) -> None:
    paths[0].write_text("precious")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "uwgate", "--http", f"127.0.0.1:{free_port()}"),
            *("--http-to", dead_address(), "--master-fifo", str(paths[0])),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == 1
    message = f"master-fifo = {paths[0]}: the file exists and is not a FIFO"
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert paths[0].read_text() == "precious"


def test_a_second_instance_takes_the_path(start_gateway: StartGateway, paths: list[Path]) -> None:
    old = start_gateway("--http-to", dead_address(), *options(paths[:1]))
    new = start_gateway("--http-to", dead_address(), *options(paths[:1]))
    write(paths[0], "s")
    logged(new, "stats: workers ")
    assert "stats: workers " not in old.log
    old.stop()
    write(paths[0], "q")
    assert new.process.wait(DEADLINE) == 0
    assert not paths[0].exists()
