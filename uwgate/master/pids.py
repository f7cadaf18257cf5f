"""Processes, without mistaking one for another that has got its number."""

from __future__ import annotations

import contextlib
import os
import signal


def hold(pid: int) -> int:
    """A descriptor (pidfd) that stands for this very process, and is readable once it has ended; -1
    if there is none to be had. Nothing of ours inherits it over an execution."""
    try:
        return os.pidfd_open(pid)
    except (OSError, AttributeError):
        return -1


def stands_for(pidfd: int, pid: int) -> bool:
    """Whether a descriptor is a pidfd of the process that has, or had, that number."""
    try:
        with open(f"/proc/self/fdinfo/{pidfd}", "rb") as file:
            lines = file.read().split(b"\n")
    except OSError:
        return False
    # -1: it has ended, and nobody else can be meant.
    return f"Pid:\t{pid}".encode() in lines or b"Pid:\t-1" in lines


def send(pid: int, pidfd: int, number: signal.Signals) -> None:
    """A signal to the process behind ``pidfd``; without one (-1) to whoever has the number, which
    is sure as long as it is a child that is not waited for. Nothing if it has ended."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if pidfd >= 0:
            signal.pidfd_send_signal(pidfd, number)
        else:
            os.kill(pid, number)


def parent_of(pid: int) -> int:
    """Of a process, also of one that has ended and is not buried; 0 if there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return 0
