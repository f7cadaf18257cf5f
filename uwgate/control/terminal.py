"""Words for a terminal: nothing of what others said may steer it, and no encoding stops us."""

from __future__ import annotations

import os
import sys


def one_line(text: str) -> str:
    """Control characters as in a Python string literal."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def complain(problem: str) -> None:
    """One line on standard error."""
    if sys.stderr is not None:
        print(problem, file=sys.stderr, flush=True)


def write(text: str) -> None:
    """Print even what the terminal's encoding lacks. Raises BrokenPipeError."""
    if sys.stdout is not None:
        sys.stdout.flush()
        sys.stdout.buffer.write(text.encode("utf-8", "backslashreplace"))
        sys.stdout.flush()


def forget_reader() -> None:
    """The reader of standard output has left: the interpreter, which flushes once more at exit,
    must not find the closed pipe."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
