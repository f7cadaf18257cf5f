"""The command ``uwgate``: read the configuration, then check, show, or run it.

Exit codes: 0 fine, 1 something is wrong with the configuration, otherwise what the master returns.
Problems go to standard error, one line each.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import TYPE_CHECKING, BinaryIO, TextIO

from uwgate import __version__
from uwgate.config import options
from uwgate.config.argv import CommandLine, parse_argv
from uwgate.config.build import Configuration, configure
from uwgate.config.help import help_overview, help_topic
from uwgate.config.model import Item, Problems
from uwgate.config.show import show
from uwgate.control import pidfiles

if TYPE_CHECKING:
    from uwgate.master.guardian import Pledge

# As in master.guardian and master.handover, which only a reload has to import.
_GUARDIAN = "UWGATE_GUARDIAN"
_HANDOVER = "UWGATE_HANDOVER"


class _ReadAlready(io.BytesIO):
    """Standard input in a reload: a configuration that came from there cannot be read again."""

    def read(self, size: int | None = -1) -> bytes:
        raise OSError(errno.ENXIO, "standard input cannot be read a second time")



def _write(stream: TextIO | None, text: str) -> None:
    """Print even what the terminal's encoding lacks, and do not mind a reader that left."""
    if stream is None:  # the descriptor was closed when the interpreter started
        return
    data = text.encode("utf-8", "surrogateescape")
    try:
        stream.flush()
        stream.buffer.write(data)
        stream.flush()
    except BrokenPipeError:
        # The interpreter flushes once more at exit; it must not find the closed pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _report(problems: Problems) -> None:
    lines = [f"uwgate: warning: {_one_line(str(each))}\n" for each in problems.warnings]
    lines += [f"uwgate: error: {_one_line(str(each))}\n" for each in problems.errors]
    if lines:
        _write(sys.stderr, "".join(lines))


def _one_line(text: str) -> str:
    return "".join(
        char if char.isprintable() or "\udc80" <= char <= "\udcff" else repr(char)[1:-1]
        for char in text
    )


def _help(command: CommandLine, problems: Problems) -> int:
    text = ""
    for topic in command.words:
        if topic not in options.TOPICS:
            known = ", ".join(options.TOPICS)
            problems.error("", f"--help {topic}", f"there is no such topic; expected {known}")
            continue
        text += help_topic(topic)
    _report(problems)
    if problems.errors:
        return 1
    _write(sys.stdout, text or help_overview())
    return 0


def _get(command: CommandLine, configuration: Configuration) -> int:
    """``--get KEY``: the first value of each key; 1 if one of them has none."""
    missing = 0
    for wanted in command.items:
        if wanted.key != "get":
            continue
        values = [each.value for each in configuration.items if each.key == wanted.value]
        if not values:
            missing = 1
        _write(sys.stdout, "".join(f"{value}\n" for value in values[:1]))
    return missing


def _signal(orders: list[Item]) -> int:
    """``--reload PIDFILE`` and the like: 1 if one of them could not be carried out."""
    complaints = [text for text in map(pidfiles.send, orders) if text]
    _write(sys.stderr, "".join(f"uwgate: error: {_one_line(text)}\n" for text in complaints))
    return 1 if complaints else 0


def _run(configuration: Configuration, pledge: Pledge | None) -> int:
    # Only here: --check and --help need neither the event loop nor the master.
    from uwgate.master import supervisor

    assert configuration.settings is not None
    return supervisor.run(configuration.settings, pledge=pledge)


def main(argv: list[str] | None = None) -> int:
    """Run the command with these arguments (default: those of the process) -> exit code."""
    words = sys.argv[1:] if argv is None else argv
    if words[:1] == ["nodes"]:
        from uwgate.nodes.command import main as nodes

        return nodes(words[1:])
    if words[:1] in (["reload"], ["stop"], ["status"]):
        from uwgate.control import command as control

        return control.main(words)
    if words[:1] == ["announce"]:
        from uwgate.announce import command as announce

        return announce.main(words[1:])
    if _GUARDIAN not in os.environ:
        return _serve(words, None)
    # A reload has made this process of a master. What keeps the new one from serving, here or
    # later, must not be the end of the instance.
    from uwgate.master import guardian

    pledge = guardian.pledge(os.environ)
    code = 1
    try:
        code = _serve(words, pledge)
    finally:
        if pledge is not None and pledge.open:
            code = pledge.fail(code)
    return code


def _serve(words: list[str], pledge: Pledge | None) -> int:
    problems = Problems()
    command = parse_argv(words, problems)
    if command.has("help"):
        return _help(command, problems)
    if command.has("version"):
        _write(sys.stdout, f"uwgate {__version__}\n")
        return 0
    if orders := pidfiles.orders(command.items):
        _report(problems)
        return 1 if problems.errors else _signal(orders)
    try:
        program = os.path.join(os.getcwd(), sys.argv[0])
    except OSError as error:
        _write(sys.stderr, f"uwgate: error: the current directory is gone: {error.strerror}\n")
        return 1
    stdin: BinaryIO = sys.stdin.buffer if sys.stdin is not None else io.BytesIO()
    if _HANDOVER in os.environ:
        stdin = _ReadAlready()
    configuration = configure(command, os.environ, stdin, program, problems)
    if command.has("get"):
        return _get(command, configuration)
    _write(sys.stderr, "".join(f"{text}\n" for text in configuration.printed))
    _report(problems)
    if configuration.settings is None:
        if pledge is not None and problems.errors:
            pledge.reason = str(problems.errors[0])
        return 1
    if command.has("check"):
        _write(sys.stdout, "configuration ok\n")
        return 0
    if command.has("show-config"):
        _write(sys.stdout, show(configuration, configuration.settings))
        return 0
    return _run(configuration, pledge)
