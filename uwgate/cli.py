"""The command ``uwgate``: read the configuration, then check, show, or run it.

Exit codes: 0 fine, 1 something is wrong with the configuration, otherwise what the master returns.
Problems go to standard error, one line each.
"""

from __future__ import annotations

import io
import os
import sys
from typing import TextIO

from uwgate import __version__
from uwgate.config import options
from uwgate.config.argv import CommandLine, parse_argv
from uwgate.config.build import Configuration, configure
from uwgate.config.help import help_overview, help_topic
from uwgate.config.model import Problems
from uwgate.config.show import show


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


def _run(configuration: Configuration) -> int:
    # Only here: --check and --help need neither the event loop nor the master.
    from uwgate.master import supervisor

    assert configuration.settings is not None
    return supervisor.run(configuration.settings)


def main(argv: list[str] | None = None) -> int:
    """Run the command with these arguments (default: those of the process) -> exit code."""
    words = sys.argv[1:] if argv is None else argv
    if words[:1] == ["nodes"]:
        from uwgate.nodes.command import main as nodes

        return nodes(words[1:])
    if words[:1] == ["announce"]:
        from uwgate.announce import command as announce

        return announce.main(words[1:])
    problems = Problems()
    command = parse_argv(words, problems)
    if command.has("help"):
        return _help(command, problems)
    if command.has("version"):
        _write(sys.stdout, f"uwgate {__version__}\n")
        return 0
    try:
        program = os.path.join(os.getcwd(), sys.argv[0])
    except OSError as error:
        _write(sys.stderr, f"uwgate: error: the current directory is gone: {error.strerror}\n")
        return 1
    stdin = sys.stdin.buffer if sys.stdin is not None else io.BytesIO()
    configuration = configure(command, os.environ, stdin, program, problems)
    if command.has("get"):
        return _get(command, configuration)
    _write(sys.stderr, "".join(f"{text}\n" for text in configuration.printed))
    _report(problems)
    if configuration.settings is None:
        return 1
    if command.has("check"):
        _write(sys.stdout, "configuration ok\n")
        return 0
    if command.has("show-config"):
        _write(sys.stdout, show(configuration, configuration.settings))
        return 0
    return _run(configuration)
