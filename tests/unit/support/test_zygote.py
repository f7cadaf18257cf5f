"""What the tests fork gateways from."""

from __future__ import annotations

import os
import signal
import socket
import tempfile

import pytest
from support import zygote
from support.waiting import free_port
from support.zygote import Forked


def forked(*words: str) -> tuple[int, str]:
    """Exit code and output."""
    with tempfile.TemporaryFile() as log:
        code = Forked(words, log.fileno()).wait(20)
        return code, os.pread(log.fileno(), 1 << 16, 0).decode()


def pid_of_the_zygote() -> int:
    assert forked("--version")[0] == 0
    return zygote._servers[os.getpid(), False][0].pid


def test_exit_codes_are_those_of_the_command() -> None:
    code, output = forked("--version")
    assert code == 0
    assert output
    code, output = forked("--no-such-option")
    assert code == 1, output
    assert "no-such-option" in output


def test_of_a_signal() -> None:
    with tempfile.TemporaryFile() as log:
        words = ["--http", f"127.0.0.1:{free_port()}", "--http-to", "127.0.0.1:9"]
        process = Forked(words, log.fileno())
        process.kill()
        assert process.wait(20) == -signal.SIGKILL
        process.kill()


def test_stray_bytes_end_nothing() -> None:
    """A test once wrote into every socket that this process had open."""
    before = pid_of_the_zygote()
    ours = zygote._servers[os.getpid(), False][1]
    with tempfile.TemporaryFile() as log:
        process = Forked(["--http", "127.0.0.1:0x", "--http-to", "127.0.0.1:9"], log.fileno())
        with pytest.raises(BrokenPipeError):
            process._reports.send(b"?")
        ours.send(b"?")
        socket.send_fds(ours, [b"?"], [log.fileno()])
        assert process.wait(20) == 1
    assert pid_of_the_zygote() == before
