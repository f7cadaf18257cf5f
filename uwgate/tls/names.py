"""Which certificate a server name gets: exact, wildcard, regular expression, directory, announced.

One lookup over all of them, without a context being made: a certificate costs nothing until
somebody asks for it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from uwgate.config.settings_tls import PairSettings, TlsSettings

_LONGEST = 253  # characters of a host name
_TRIES = 5  # of subscription-dotsplit, the whole name included
_FILE_NAME = re.compile(r"(?:[a-z0-9_](?:[a-z0-9_-]*)\.)*[a-z0-9_][a-z0-9_-]*")


@dataclass(frozen=True, slots=True)
class Entry:
    """A pair and where it comes from: ``source`` is listener, sni, sni-regexp, sni-dir or
    subscription, ``name`` what it is for. ``lazy``: made when asked for."""

    source: str
    name: str
    pair: PairSettings
    lazy: bool = False

    @property
    def identity(self) -> str:
        """What sessions belong to; the same on all machines with the same configuration."""
        return f"{'listener' if self.source == 'listener' else 'name'} {self.name}"


def host_name(host: str) -> str:
    """A Host value as a server name: lower case, no port, no dot at the end, "" for addresses."""
    if host.startswith("["):
        return ""
    return host.partition(":")[0].rstrip(".").lower()


class Names:
    """All names of a gateway."""

    def __init__(self, settings: TlsSettings) -> None:
        self._settings = settings
        self._exact: dict[str, Entry] = {}
        for each in settings.sni:  # the first counts
            self._exact.setdefault(each.name, Entry("sni", each.name, each.pair))
        self._dotted = any(name[:1] in ".*" for name in self._exact)
        self._regexps = [
            (re.compile(each.name, re.IGNORECASE), Entry("sni-regexp", each.name, each.pair))
            for each in settings.sni_regexps
        ]
        # By name, then by who brought it: key ("a.example:443") and address of the node.
        self._announced: dict[str, dict[tuple[str, str], Entry]] = {}

    def static(self) -> Iterator[Entry]:
        """Entries of ``sni`` and ``sni-regexp``."""
        yield from self._exact.values()
        yield from (entry for _, entry in self._regexps)

    def drop(self, entry: Entry) -> None:
        """Forget a static entry, which is of no use."""
        self._exact = {name: each for name, each in self._exact.items() if each is not entry}
        self._regexps = [pair for pair in self._regexps if pair[1] is not entry]

    def announce(self, key: str, address: str, crt: str, key_file: str, authority: str) -> bool:
        """The certificate that the node ``address`` of ``key`` brings; False if that is known
        already. An ``authority`` with a ``!`` in front is required."""
        name = host_name(key)
        pair = PairSettings(
            crt,
            key_file,
            self._settings.sni_dir_ciphers,
            authority.removeprefix("!"),
            authority.startswith("!"),
        )
        entry = Entry("subscription", name, pair, lazy=True)
        if not name:
            return False
        keys = self._announced.setdefault(name, {})
        if keys.get((key, address)) == entry:
            return False
        keys.pop((key, address), None)
        keys[key, address] = entry
        return True

    def withdraw(self, key: str, address: str) -> bool:
        """The node ``address`` of ``key`` is gone; whether it had brought a certificate."""
        name = host_name(key)
        keys = self._announced.get(name, {})
        if keys.pop((key, address), None) is None:
            return False
        if not keys:
            del self._announced[name]
        return True

    def announced(self, name: str) -> Entry | None:
        """What subscriptions say of a name: the newest, and before that of a key with a port, or
        spelt otherwise, that of the name itself. Who may announce the one need not the other."""
        keys = self._announced.get(name)
        if not keys:
            return None
        own = [entry for (key, _), entry in keys.items() if key == name]
        return own[-1] if own else next(reversed(keys.values()))

    def asks_clients(self) -> bool:
        """Whether any name wants client certificates. Those of a directory may at any time."""
        return (
            bool(self._settings.sni_dirs)
            or any(entry.pair.client_ca for entry in self.static())
            or any(
                entry.pair.client_ca for keys in self._announced.values() for entry in keys.values()
            )
        )

    def find(self, name: str) -> Entry | None:
        """The entry for a server name in lower case. Directories are looked at, nothing is read."""
        if not name:
            return None
        found = self._exact.get(name) or self.announced(name)
        if found is not None:
            return found
        if self._settings.dotsplit:
            # As in uWSGI, nothing else is tried then.
            return self._split(name) or self._wildcard(name)
        found = self._wildcard(name)
        if found is not None:
            return found
        for pattern, entry in self._regexps:
            if pattern.search(name):
                return entry
        parent = name.partition(".")[2]
        found = self.in_directory(name)
        return self.in_directory("*." + parent) if found is None and parent else found

    def _split(self, name: str) -> Entry | None:
        rest = name
        for _ in range(_TRIES - 1):
            cut = rest.find(".", 1)
            if cut < 0:
                return None
            rest = rest[cut:]
            found = self._exact.get(rest) or self.announced(rest)
            if found is not None:
                return found
        return None

    def _wildcard(self, name: str) -> Entry | None:
        if not self._dotted:
            return None
        parent = name.partition(".")[2]
        found = self._exact.get("*." + parent)
        while found is None and parent:
            found = self._exact.get("." + parent)
            parent = parent.partition(".")[2]
        return found

    def in_directory(self, stem: str) -> Entry | None:
        """The pair of that name in one of the directories; nothing that could be a path."""
        if not self._settings.sni_dirs or len(stem) > _LONGEST:
            return None
        if not _FILE_NAME.fullmatch(stem.removeprefix("*.")):
            return None
        for directory in self._settings.sni_dirs:
            base = os.path.join(directory, stem)
            if os.path.isfile(base + ".crt") and os.path.exists(base + ".key"):
                pair = PairSettings(base + ".crt", base + ".key", self._settings.sni_dir_ciphers)
                if os.path.exists(base + ".ca"):
                    pair = replace(pair, client_ca=base + ".ca")
                return Entry("sni-dir", stem, pair, lazy=True)
        return None
