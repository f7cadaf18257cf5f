"""The client's side of the control socket (``uwgate.master.control_server`` has the protocol)."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from typing import Any

VARIABLE = "UWGATE_CONTROL"
USUAL = "/run/uwgate/control.sock"
LIMIT = 256 * 1024 * 1024
"""Most bytes of an answer."""

_PATIENCE = 10.0  # seconds

Message = dict[str, Any]

_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid


class NoInstance(Exception):
    """Nobody listens there; one line that says where."""


class OrderError(Exception):
    """There is no usable answer, or it is a refusal; one line that says why."""


def candidates(given: str, environ: Mapping[str, str]) -> list[str]:
    """Where the control socket may be: ``given`` (``--control``) alone, else UWGATE_CONTROL alone,
    else the usual places."""
    named = given or environ.get(VARIABLE, "")
    if named:
        return [named]
    runtime = environ.get("XDG_RUNTIME_DIR", "")
    return [USUAL, *([os.path.join(runtime, "uwgate/control.sock")] if runtime else [])]


class Connection:
    """One request and its answer. ``paths``: the first one where somebody listens is taken.

    Raises NoInstance. ``limit``: ``time.monotonic`` until which all has to be done.
    """

    def __init__(self, paths: list[str], limit: float) -> None:
        self._limit = limit
        self._socket, self.path = _connect(paths)
        # Who listened: the master, unless systemd did it for it.
        data = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        self.pid: int = _CREDENTIALS.unpack(data)[0]

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *exc: object) -> None:
        self._socket.close()

    def ask(self, request: Message) -> Iterator[Message]:
        """Send it -> the objects of the answer, as they come, until the connection ends.

        Raises OrderError: not in time, not understood, or refused.
        """
        self._socket.settimeout(max(0.001, self._limit - time.monotonic()))
        # A server that refuses at once has closed already, and said why.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._socket.sendall(json.dumps(request).encode("ascii") + b"\n")
        for line in self._lines():
            try:
                message = json.loads(line)
            except (ValueError, RecursionError):
                message = None
            if not isinstance(message, dict):
                raise OrderError("the answer is not that of a control socket")
            if "error" in message:
                raise OrderError(str(message["error"]))
            yield message

    def _lines(self) -> Iterator[bytes]:
        kept = bytearray()
        while data := self._receive():
            begin = len(kept)
            kept += data
            if len(kept) > LIMIT:
                raise OrderError(f"the answer is larger than {LIMIT >> 20} MB")
            while (end := kept.find(b"\n", begin)) >= 0:
                yield bytes(kept[:end])
                del kept[: end + 1]
                begin = 0

    def _receive(self) -> bytes:
        left = self._limit - time.monotonic()
        try:
            if left <= 0:
                raise TimeoutError
            self._socket.settimeout(left)
            return self._socket.recv(1 << 20)
        except TimeoutError:
            raise OrderError("no answer in time") from None
        except OSError:
            return b""


def ask_once(paths: list[str], command: str, seconds: float) -> Message:
    """The one object that answers ``status`` or ``stats``. Raises NoInstance, OrderError.

    A master that executes itself anew in the midst of an answer is asked again.
    """
    limit = time.monotonic() + seconds
    for _attempt in range(2):
        with Connection(paths, limit) as connection:
            for message in connection.ask({"command": command}):
                return message
    raise OrderError("the connection was closed without an answer")


def _connect(paths: list[str]) -> tuple[socket.socket, str]:
    problems = []
    for path in paths:
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.settimeout(_PATIENCE)
            _patiently(sock, path)
            return sock, path
        except OSError as error:
            sock.close()
            problems.append(f"{path}: {_reason(error)}")
    raise NoInstance("no instance answers at " + ", nor at ".join(problems))


def _patiently(sock: socket.socket, path: str) -> None:
    """Connect; while the queue is full, as somebody floods it, try again."""
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            sock.connect(path)
        except BlockingIOError:
            if time.monotonic() > end:
                raise
            time.sleep(0.02)
        else:
            return


def _reason(error: OSError) -> str:
    reason = error.strerror or str(error)
    return reason[:1].lower() + reason[1:]
