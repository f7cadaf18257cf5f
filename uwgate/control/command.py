"""``uwgate reload``, ``uwgate stop``, ``uwgate status``.

Exit codes: 0 done, 1 the order failed (standard error says why), 2 not understood, or no instance
there, 130 interrupted: the instance carries the order out all the same.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import time
from collections.abc import Sequence

from uwgate.control.client import Connection, NoInstance, OrderError, ask_once, candidates
from uwgate.control.table import render
from uwgate.control.terminal import complain, forget_reader, one_line, write

COMMANDS = ("reload", "stop", "status")

EXIT_FAILED, EXIT_NOBODY, EXIT_INTERRUPTED = 1, 2, 130
_PATIENCE = 10.0  # seconds for an answer that is there at once

_ABOUT = {
    "reload": "Let a running instance take on new configuration and new code, without losing a"
    " request; a configuration with errors changes nothing.",
    "stop": "Let a running instance finish what is under way and end; returns when it has ended.",
    "status": "Print the state of a running instance.",
}


def main(words: Sequence[str]) -> int:
    """Run the command with all its words (``["reload", "--chain"]``); the exit code."""
    name = words[0]
    arguments = _parser(name).parse_args(list(words[1:]))
    command = _Command(name, arguments)
    try:
        return command.run()
    except NoInstance as error:
        return _fail(name, str(error), EXIT_NOBODY)
    except OrderError as error:
        return _fail(name, str(error), EXIT_FAILED)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        forget_reader()
        return 0


def add_control(parser: argparse.ArgumentParser) -> None:
    """The option that all commands have."""
    parser.add_argument(
        "-c",
        "--control",
        default="",
        metavar="PATH",
        help="the control socket of the instance (option control-socket); else $UWGATE_CONTROL,"
        " /run/uwgate/control.sock, $XDG_RUNTIME_DIR/uwgate/control.sock",
    )


def _parser(name: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"uwgate {name}",
        description=_ABOUT[name],
        epilog="Exit codes: 0 done, 1 it failed, 2 no instance there.",
        allow_abbrev=False,
    )
    add_control(parser)
    if name == "reload":
        parser.add_argument("--chain", action="store_true", help="one worker after the other")
    if name == "status":
        parser.add_argument("--json", action="store_true", help="print all of it as JSON")
    else:
        parser.add_argument(
            "--timeout",
            type=_seconds,
            default=120.0,
            metavar="SECONDS",
            help="wait no longer than that (120); the order holds all the same",
        )
    return parser


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return value


class _Command:
    def __init__(self, name: str, arguments: argparse.Namespace) -> None:
        self._name = name
        self._arguments = arguments
        self._paths = candidates(arguments.control, os.environ)

    def run(self) -> int:
        """The exit code. Raises NoInstance, OrderError."""
        if self._name == "status":
            return self._status()
        limit = time.monotonic() + self._arguments.timeout
        with Connection(self._paths, limit) as connection:
            if self._name == "reload":
                return self._reload(connection)
            return self._stop(connection, limit)

    def _status(self) -> int:
        status = ask_once(self._paths, "status", _PATIENCE).get("status")
        if not isinstance(status, dict):
            raise OrderError("the answer has no status")
        write(json.dumps(status, indent=2) + "\n" if self._arguments.json else render(status))
        return 0

    def _reload(self, connection: Connection) -> int:
        request = {"command": "reload", "chain": self._arguments.chain}
        for message in connection.ask(request):
            _progress(message)
            if "done" in message:
                return self._done(message)
        raise OrderError("the instance has ended before it was done")

    def _stop(self, connection: Connection, limit: float) -> int:
        with contextlib.ExitStack() as stack:
            process, heard = -1, False
            for message in connection.ask({"command": "stop"}):
                heard = True
                _progress(message)
                # Told and shown by the kernel: it is that process, and in our pid namespace.
                if process < 0 and message.get("pid") == connection.pid:
                    process = _open_process(connection.pid)
                    if process >= 0:
                        stack.callback(os.close, process)
                if "done" in message and (code := self._done(message)):
                    return code
            if not heard:
                raise OrderError("the connection was closed without an answer")
            # The master ends with its connections open: that it has ended is all but sure.
            if process >= 0 and not _ended(process, limit):
                raise OrderError(f"process {connection.pid} has not ended in time")
        return 0

    def _done(self, message: dict[str, object]) -> int:
        text = one_line(str(message.get("text", "")))
        if message["done"] == 0:
            write(f"{text}\n" if text else "")
            return 0
        return _fail(self._name, text or "it failed", EXIT_FAILED)


def _progress(message: dict[str, object]) -> None:
    if "line" in message:
        complain(one_line(str(message["line"])))


def _fail(name: str, problem: str, code: int) -> int:
    complain(f"uwgate {name}: error: {one_line(problem)}")
    return code


def _open_process(pid: int) -> int:
    try:
        return os.pidfd_open(pid)
    except OSError:
        return -1  # gone already, or a kernel before 5.3


def _ended(process: int, limit: float) -> bool:
    poll = select.poll()
    poll.register(process, select.POLLIN)
    return bool(poll.poll(max(0.0, limit - time.monotonic()) * 1000))
