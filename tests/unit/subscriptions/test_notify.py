"""Acknowledgements, with real receivers."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from support.waiting import wait_until

from uwgate.subscriptions.notify import Acknowledger


@pytest.fixture
def directory() -> Iterator[str]:
    with TemporaryDirectory() as path:
        yield path


@pytest.fixture
def acknowledger() -> Iterator[Acknowledger]:
    made = Acknowledger()
    yield made
    made.close()


def test_a_node_is_told(directory: str, acknowledger: Acknowledger) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(f"{directory}/n")
        receiver.settimeout(5)
        assert acknowledger.send(f"{directory}/n", "example.com", "127.0.0.1:3031")
        text = b"[subscription ack] example.com => new node: 127.0.0.1:3031"
        assert receiver.recv(4096) == text
    assert (acknowledger.sent, acknowledger.failed) == (1, 0)


def test_a_full_receiver_does_not_hold_us_up(directory: str, acknowledger: Acknowledger) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(f"{directory}/n")
        while acknowledger.send(f"{directory}/n", "k", "a"):
            assert acknowledger.sent < 100_000
    assert acknowledger.failed == 1


@pytest.mark.parametrize(
    "path",
    ["", "n", "./n", "@n", "\0n", "/{d}/nobody", "/{d}/file", "/{d}/stream", "/{d}/\0", "/" * 200],
)
def test_what_cannot_be_told_is_counted(
    path: str, directory: str, acknowledger: Acknowledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(directory)
    Path(directory, "file").touch()
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as relative,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as abstract,
    ):
        stream.bind(f"{directory}/stream")
        stream.listen()
        relative.bind("n")
        abstract.bind("\0n\0")
        assert not acknowledger.send(path.replace("/{d}", directory), "k", "a")
    assert (acknowledger.sent, acknowledger.failed) == (0, 1)


def test_devices_are_no_receivers(directory: str, acknowledger: Acknowledger) -> None:
    # The only one of the three where a socket can be made for a test.
    with TemporaryDirectory(dir="/dev/shm") as shm:
        Path(directory, "link").symlink_to(shm)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
            receiver.bind(f"{shm}/n")
            name = Path(shm).name
            for path in (
                f"{shm}/n",
                f"//dev/shm/{name}/n",
                f"/tmp/../dev/shm/{name}/n",
                f"{directory}/link/n",
            ):
                assert not acknowledger.send(path, "k", "a"), path
    for path in ("/dev", "/proc/self/fd/0", "/sys/kernel"):
        assert not acknowledger.send(path, "k", "a")


def test_a_flood_of_wishes_is_not_fulfilled(directory: str, acknowledger: Acknowledger) -> None:
    """Each costs a walk through the file system, in the process that hears all nodes."""
    descriptors = len(os.listdir("/proc/self/fd"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(f"{directory}/n")

        def exhausted() -> bool:
            """In one second of the clock: a slow machine may need another try."""
            for _ in range(1000):
                acknowledger.send(f"{directory}/nobody", "k", "a")
            return not acknowledger.send(f"{directory}/n", "k", "a")

        wait_until(exhausted, "nobody is told any more")
        wait_until(lambda: acknowledger.send(f"{directory}/n", "k", "a"), "the next second")
    assert len(os.listdir("/proc/self/fd")) == descriptors
