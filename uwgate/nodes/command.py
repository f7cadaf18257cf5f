"""``uwgate nodes [STATS-ADDRESS]``: prints the table, once or again and again.

Exit codes: 0 fine, 1 the address does not answer or nobody has the key, 2 not understood, or there
is no address and no control socket.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Sequence

from uwgate.control.client import NoInstance, candidates
from uwgate.control.command import add_control
from uwgate.control.terminal import complain, forget_reader, one_line, write
from uwgate.nodes.fetch import FetchError, Target, fetch, fetch_by_control, parse_target
from uwgate.nodes.rows import rows, select
from uwgate.nodes.table import render, summary

_SECONDS = re.compile(r"[0-9]{1,6}(?:\.[0-9]{1,3})?")
_USUAL = "2"  # seconds between two tables of --watch
_HOME, _TO_END_OF_LINE, _TO_END = "\x1b[H", "\x1b[K", "\x1b[J"


def main(words: Sequence[str]) -> int:
    """Run the command with the arguments behind ``nodes``; the exit code."""
    parser = _parser()
    arguments = parser.parse_args(_with_seconds(words))
    if arguments.address is not None and arguments.control:
        parser.error("either STATS-ADDRESS or --control")
    command = _Command(arguments)
    try:
        return command.watch(arguments.watch) if arguments.watch else command.once()
    except NoInstance as error:
        complain(f"uwgate nodes: error: no STATS-ADDRESS, and {one_line(str(error))}")
        return 2
    except KeyboardInterrupt:
        return 0
    except BrokenPipeError:
        forget_reader()
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="uwgate nodes",
        description="Print who serves which key: the subscribed and the static nodes of a"
        " running gateway.",
        epilog="Exit codes: 0 fine, 1 the address does not answer or nobody has the key,"
        " 2 no instance there.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "address",
        nargs="?",
        type=_target,
        metavar="STATS-ADDRESS",
        help="the address of http-stats: HOST:PORT, /PATH, @NAME or http://HOST:PORT/; without it"
        " the control socket is asked",
    )
    add_control(parser)
    parser.add_argument("--json", action="store_true", help="print that part of the document")
    parser.add_argument("--key", default="", help="only the nodes of this key (- for static ones)")
    parser.add_argument(
        "--watch",
        type=_seconds,
        metavar="SECONDS",
        help=f"print it again and again (every {_USUAL} seconds without a number)",
    )
    parser.add_argument(
        "--no-color", "--no-colour", action="store_true", help="no colours (as with NO_COLOR)"
    )
    return parser


def _with_seconds(words: Sequence[str]) -> list[str]:
    """``--watch ADDRESS`` -> ``--watch=2 ADDRESS``: the number may be missing."""
    found = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--watch":
            number = rest.pop(0) if rest and _SECONDS.fullmatch(rest[0]) else _USUAL
            word = f"--watch={number}"
        found.append(word)
    return found


def _seconds(text: str) -> float:
    if not _SECONDS.fullmatch(text) or float(text) < 0.1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return float(text)


def _target(text: str) -> Target:
    try:
        return parse_target(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


class _Command:
    def __init__(self, arguments: argparse.Namespace) -> None:
        self._target: Target | None = arguments.address
        self._paths = candidates(arguments.control, os.environ)
        several = len(self._paths) > 1
        self._source = "control socket" if several else self._paths[0]
        if self._target is not None:
            self._source = self._target.text
        self._json: bool = arguments.json
        self._key: str = arguments.key
        self._terminal = sys.stdout is not None and sys.stdout.isatty()
        wanted = not arguments.no_color and not os.environ.get("NO_COLOR")
        self._colour = self._terminal and wanted and os.environ.get("TERM") != "dumb"

    def once(self) -> int:
        """Print it once."""
        try:
            text = self._text(indent=2)
        except FetchError as error:
            return self._fail(error)
        write(text)
        return 0

    def watch(self, seconds: float) -> int:
        """Print it again and again; who does not answer later may come back."""
        text = ""
        while True:
            try:
                text = self._text(indent=None)
            except FetchError as error:
                if not text:
                    return self._fail(error)
                text = self._problem(error) + "\n"
            except NoInstance as error:
                if not text:
                    raise
                text = self._problem(error) + "\n"
            if self._terminal and not self._json:
                clock = time.strftime("%H:%M:%S")
                self._paint(f"{self._source}, every {seconds:g} s, {clock}\n\n{text}")
            else:
                write(text if self._json else f"{text}\n")
            time.sleep(seconds)

    def _paint(self, text: str) -> None:
        lines = text.splitlines()
        height = shutil.get_terminal_size().lines
        if len(lines) >= height:
            more = len(lines) - height + 2
            lines = [*lines[: height - 2], f"({more} more lines)"]
        ended = "".join(f"{line}{_TO_END_OF_LINE}\n" for line in lines)
        write(f"{_HOME}{ended}{_TO_END}")

    def _text(self, indent: int | None) -> str:
        target = self._target
        document = fetch(target) if target is not None else fetch_by_control(self._paths)
        part = select(document, self._key)
        found = rows(part)
        if self._key and not found:
            raise FetchError(f"no node has the key {self._key!r}")
        if self._json:
            return json.dumps(part, indent=indent) + "\n"
        width = shutil.get_terminal_size().columns if self._terminal else 0
        table = render(found, width, colour=self._colour) if found else "no nodes\n"
        return table + ("" if self._key else summary(part, width, colour=self._colour))

    def _problem(self, error: Exception) -> str:
        return f"uwgate nodes: {one_line(self._source)}: {one_line(str(error))}"

    def _fail(self, error: FetchError) -> int:
        complain(self._problem(error))
        return 1
