"""A terminator whose seconds pass when a test says so."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from openssl_tools import hooks
from support.certificates import Authority, Pair

from uwgate.config.settings_tls import ListenerTls, PairSettings, SniSettings, TlsSettings
from uwgate.tls.contexts import Context
from uwgate.tls.terminator import Terminator
from uwgate.tls.tickets import TicketKeys


def of(pair: Pair, *, ca: Path | str = "", required: bool = False) -> PairSettings:
    """Settings of a pair of files."""
    return PairSettings(str(pair.cert), str(pair.key), "", str(ca), required)


def sni(name: str, pair: Pair, *, ca: Path | str = "", required: bool = False) -> SniSettings:
    """One ``sni`` or ``sni-regexp``."""
    return SniSettings(name, of(pair, ca=ca, required=required))


def listener(pair: PairSettings, context: str = "http-:443") -> ListenerTls:
    """One ``https``."""
    return ListenerTls(pair, context)


class Worker:
    """A terminator as one worker has it, and the lines that it logged."""

    def __init__(
        self,
        settings: TlsSettings,
        listeners: Sequence[ListenerTls],
        tickets: TicketKeys | None = None,
    ) -> None:
        self.lines: list[str] = []
        self.listeners = listeners
        self.terminator = Terminator(
            settings, listeners, hooks=hooks(), tickets=tickets, log=self.lines.append
        )
        self._now = time.monotonic()

    def second(self) -> None:
        """One passes."""
        self._now += 1.01
        self.terminator.tick(self._now)

    def context(self, name: str = "", number: int = 0) -> Context:
        """What a connection to that listener gets for a name."""
        context = self.terminator.choose(self.listeners[number], name)
        assert context is not None
        return context

    def shown(self, name: str = "", number: int = 0) -> str:
        """The first name of the certificate, "" if the connection is refused."""
        context = self.terminator.choose(self.listeners[number], name)
        return "" if context is None else context.names[0]

    def domain(self, host: str, number: int = 0) -> str:
        """Of a Host value."""
        return self.terminator.domain_of(self.listeners[number], host)

    def said(self) -> list[str]:
        """The lines since the last time."""
        lines, self.lines[:] = list(self.lines), []
        return lines

    @property
    def alive(self) -> int:
        """How many contexts there are."""
        count = self.terminator.snapshot()["contexts"]
        assert isinstance(count, int)
        return count


class Directory:
    """One for ``sni-dir``."""

    def __init__(self, where: Path, authority: Authority) -> None:
        where.mkdir()
        self.path = where
        self.authority = authority
        self._made = 0

    def put(self, stem: str, name: str = "", *, parts: Sequence[str] = ("crt", "key")) -> Pair:
        """A new pair in files of that name; each comes whole, by renaming. ``name``: what it is
        for, if that is not the files' name; ``parts``: without what stays as it is."""
        self._made += 1
        pair = self.authority.issue(name or stem, file=f"{self.path.name}-{self._made}")
        self.copy(pair, stem, parts=parts)
        return pair

    def copy(self, pair: Pair, stem: str, *, parts: Sequence[str] = ("crt", "key")) -> None:
        """The files of a pair."""
        for part, source in (("crt", pair.cert), ("key", pair.key)):
            if part in parts:
                fresh = self.path / "fresh.tmp"
                shutil.copy(source, fresh)
                fresh.rename(self.path / f"{stem}.{part}")

    def remove(self, stem: str, *parts: str) -> None:
        """Both files, or those with such an end."""
        for part in parts or ("crt", "key"):
            (self.path / f"{stem}.{part}").unlink()
