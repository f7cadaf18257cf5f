"""What stands for something else in values: ``%x``, ``$(ENV)``, ``@(file)``, ``%(name)``.

The four passes of uWSGI, in its order. Magic characters belong to the text of a file and are
replaced before it is parsed; the other three are replaced in every value once all sources are read.
"""

from __future__ import annotations

import grp
import os
import pwd
import re
import socket
import time
from collections.abc import Callable, Mapping

_MAGIC = re.compile(r"%(.)", re.DOTALL)
_ENV = re.compile(r"\$\(([^)\s]*)\)")
_FILE = re.compile(r"@\(([^)]*)\)")
_NAME = re.compile(r"%\(([^()]*)\)")
_INTEGER = re.compile(r"-?[0-9]{1,18}")
_LEADING = re.compile(r"[ \t]*([+-]?[0-9]{1,18})")  # what C's atoi reads
_MAX_FILE = 1 << 20


class PlaceholderError(ValueError):
    """A placeholder cannot be replaced; the text says which and why."""


def djb33x(data: bytes) -> int:
    """The hash of uWSGI (32 bits): from 5381, times 33, xor each byte."""
    value = 5381
    for byte in data:
        value = (value * 33 ^ byte) & 0xFFFFFFFF
    return value


def _user_name(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def _group_name(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)


def _file_letters(path: str, section: str) -> dict[str, str]:
    """%p %s %d %e %n %c %0-%9 %i %j %x for a file."""
    folder, name = os.path.split(os.path.abspath(path))
    # The folder is resolved, the file itself may be a link and keeps its name.
    folder = os.path.realpath(folder)
    whole = os.path.join(folder, name)
    parts = [part for part in folder.split("/") if part]
    stem, dot, ending = name.rpartition(".")
    try:
        inode = str(os.lstat(path).st_ino)
    except OSError:
        inode = ""
    letters = {
        "p": whole,
        "s": name,
        "d": folder if folder.endswith("/") else folder + "/",
        "e": ending if dot else "",
        "n": stem if dot else name,
        "c": parts[-1] if parts else "",
        "i": inode,
        # uWSGI prints the four bytes as they lie in a little-endian memory.
        "j": djb33x(os.fsencode(whole)).to_bytes(4, "little").hex().upper(),
        "x": section,
    }
    letters |= {str(i): parts[i] if i < len(parts) else "" for i in range(10)}
    return letters


class Magic:
    """The ``%x`` letters, which change from file to file.

    Lower-case letters describe the file being read, their upper-case twins the first file.
    """

    def __init__(self, version: str, binary: str) -> None:
        now = time.time()
        self._fixed = {
            "v": os.getcwd(),
            "h": socket.gethostname(),
            "V": version,
            "k": str(os.cpu_count() or 1),
            "t": str(int(now)),
            "T": str(int(now * 1_000_000)),
            "u": str(os.getuid()),
            "U": _user_name(os.getuid()),
            "g": str(os.getgid()),
            "G": _group_name(os.getgid()),
            "b": binary,
            "[": "\x1b",
            "%": "%",
            "(": "%(",
        }
        self._current: dict[str, str] = {}
        self._first: dict[str, str] = {}

    def enter(self, reference: str, path: str | None, section: str) -> None:
        """From now on the letters describe this file; ``path`` None is standard input."""
        self._current = self._current | {"o": reference}
        if path is not None:
            self._current |= _file_letters(path, section)
        if not self._first:
            twins = ("o", "d", "s", "p", "c", "e", "n", "x", "i", "j")
            self._first = {letter.upper(): self._current.get(letter, "") for letter in twins}

    def save(self) -> dict[str, str]:
        """The letters of now, for ``restore`` after an included file."""
        return self._current

    def restore(self, letters: dict[str, str]) -> None:
        """Go back to the letters of ``save``."""
        self._current = letters

    def replace(self, text: str) -> str:
        """The text with every ``%x`` replaced; unknown letters vanish, as in uWSGI."""

        def letter(match: re.Match[str]) -> str:
            key = match[1]
            if key == "\n":  # a percent sign at the end of a line must not eat the line
                return "\n"
            found = self._fixed.get(key) or self._current.get(key) or self._first.get(key)
            return found or ""

        return _MAGIC.sub(letter, text)


def replace_environment(text: str, environ: Mapping[str, str]) -> str:
    """``$(NAME)`` -> the variable's value; stays as it is where the variable is not set."""
    return _ENV.sub(lambda match: environ.get(match[1], match[0]), text)


def left_over(text: str) -> str:
    """The first ``$(NAME)`` that is still in the text, or the empty string."""
    match = _ENV.search(text)
    return match[0] if match else ""


def read_text(path: str) -> str:
    """A file's content without its last line end. Raises PlaceholderError."""
    scheme = re.match(r"[a-z]+://", path)
    if scheme:
        raise PlaceholderError(f"@({path}): only plain files can be read, not {scheme[0]}")
    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_FILE + 1)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise PlaceholderError(f"@({path}): {why}") from None
    if len(data) > _MAX_FILE:
        raise PlaceholderError(f"@({path}): the file is larger than {_MAX_FILE} bytes")
    return data.decode("utf-8", "surrogateescape").removesuffix("\n")


def replace_files(text: str) -> str:
    """``@(path)`` -> the file's content. Raises PlaceholderError."""
    return _FILE.sub(lambda match: read_text(match[1]), text)


def _atoi(text: str) -> int:
    match = _LEADING.match(text)
    return int(match[1]) if match else 0


def _divide(left: int, right: int) -> int:
    if right == 0:
        raise PlaceholderError("division by zero")
    quotient = abs(left) // abs(right)  # towards zero, as in C
    return quotient if (left < 0) == (right < 0) else -quotient


_OPERATORS: dict[str, Callable[[int, int], int]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": _divide,
}


def evaluate(expression: str, look_up: Callable[[str], str | None]) -> str | None:
    """The inside of ``%(…)``: a name, or ``a + 3``, ``a b`` (joined), ``a ++``; left to right.

    ``look_up`` gives the value of a name or None. None is returned where nothing is known.
    """
    words = expression.split(" ")
    if len(words) == 1:
        return look_up(expression)
    result: str | None = None
    pending = ""
    for word in words:
        if not word:
            continue
        if word in ("++", "--"):
            result = str(_atoi(result or "0") + (1 if word == "++" else -1))
        elif word in _OPERATORS:
            pending = word
        else:
            value = word if _INTEGER.fullmatch(word) else look_up(word)
            if value is None:  # uWSGI leaves unknown names out of a calculation
                continue
            if pending:
                result = str(_OPERATORS[pending](_atoi(result or "0"), _atoi(value)))
                pending = ""
            else:
                result = (result or "") + value
    return result


def replace_names(text: str, look_up: Callable[[str], str | None]) -> str:
    """``%(name)`` -> its value; unknown names stay as they are. Raises PlaceholderError."""

    def name(match: re.Match[str]) -> str:
        try:
            value = evaluate(match[1], look_up)
        except PlaceholderError as error:
            raise PlaceholderError(f"{match[0]}: {error}") from None
        return match[0] if value is None else value

    return _NAME.sub(name, text)


def names_in(text: str) -> set[str]:
    """Every word that appears in a ``%(…)`` of the text."""
    return {word for match in _NAME.finditer(text) for word in match[1].split(" ")}
