"""Who a packet is from, and whether that is good enough.

Signatures (``subscriptions-sign-check DIGEST:DIR``): the public key of a routing key is the file
``DIR/<key>.pem``. Credentials: what the kernel says of the sender of a unix datagram.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import time
from typing import TYPE_CHECKING

from uwgate.config.settings import SubscriptionSettings
from uwgate.subscriptions.packet import Announcement, AnnouncementError

if TYPE_CHECKING:
    from uwgate.subscriptions.signing import Verifier

# A key that becomes part of a path: no slash, no leading dot, no "..".
_FILE_KEY = re.compile(r"(?!\.)(?!.*\.\.)[A-Za-z0-9._:\[\]~-]{1,255}")
_ANY_HOST = re.compile(r"(?:0\.0\.0\.0|\[::\])?(:[0-9]+)")
_ANY_HOST_BEGINS = ":0["  # cheaper to look at than the whole
_MAX_KEY_FILE = 1 << 16
_MAX_KEPT = 1024  # key files


class Refused(AnnouncementError):
    """The announcement is well-formed but not accepted.

    ``word``: ``unsigned``, ``no-key-file``, ``bad-signature``, ``stale``, ``repeated``,
    ``bad-credentials``, ``too-many-keys``, ``too-many-nodes``, ``too-many-from-sender``, ``self``,
    ``loop``.
    """


Stamp = tuple[int, int, int]
"""Inode, time of change and size: what tells one version of a file from the next."""


def stamp_of(status: os.stat_result) -> Stamp:
    """The version of the file that was asked about."""
    return (status.st_ino, status.st_mtime_ns, status.st_size)


class PublicKey:
    """A key file as it was read: ``path``, and the version that was there."""

    __slots__ = ("_path", "_verifier", "stamp")

    def __init__(self, path: str, stamp: Stamp, verifier: Verifier) -> None:
        self._path = path
        self.stamp = stamp
        self._verifier = verifier

    def current(self) -> bool:
        """Whether the file is still the one that was read."""
        try:
            return stamp_of(os.stat(self._path)) == self.stamp
        except OSError:
            return False

    def fits(self, announcement: Announcement) -> bool:
        """Whether the signature is one of this key."""
        return self._verifier.verify(announcement.signed, announcement.signature)


class Identity:
    """The checks that the settings ask for. ``signs``: packets must be signed."""

    def __init__(self, settings: SubscriptionSettings) -> None:
        self._settings = settings
        self.signs = bool(settings.sign_digest)
        self._files: dict[str, PublicKey] = {}

    def exempt(self, credentials: tuple[int, int, int] | None) -> bool:
        """Whether the sender needs no signature (``subscriptions-sign-skip-uid``; never root)."""
        if credentials is None:
            return False
        uid = credentials[1]
        return uid != 0 and uid in self._settings.sign_skip_uids

    def verify(self, announcement: Announcement, public: PublicKey | None) -> PublicKey | None:
        """Check the signature, with the slot's public key if it has one; the key that fitted.

        The key file counts as it is now: a key that was replaced or taken away is of no use any
        more (uWSGI keeps the old one as long as there is a node). Raises Refused.
        """
        if not self.signs:
            return None
        if public is None or not public.current():
            public = self._load(announcement.key)
        if not public.fits(announcement):
            raise Refused("bad-signature", f"{announcement.key}: the signature does not fit")
        return public

    def _load(self, key: str) -> PublicKey:
        """The key file as it is now. What was read is kept: a flood of bad signatures must not
        cost more than the checking of them."""
        # Only who checks signatures needs the library.
        from uwgate.subscriptions.signing import SigningError, Verifier, key_file

        path = key_file(self._settings.sign_directory, key)
        try:
            # A FIFO in its place must not stop the master.
            with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
                status = os.fstat(file.fileno())
                stamp = stamp_of(status)
                known = self._files.get(path)
                if known is not None and known.stamp == stamp:
                    return known
                if not stat.S_ISREG(status.st_mode):
                    raise OSError(errno.EINVAL, "not a regular file")
                pem = file.read(_MAX_KEY_FILE)
            public = PublicKey(path, stamp, Verifier(pem, self._settings.sign_digest))
        except OSError as error:
            raise Refused("no-key-file", f"{key}: {path}: {error.strerror}") from None
        except SigningError as error:
            raise Refused("no-key-file", f"{key}: {path}: {error}") from None
        if len(self._files) >= _MAX_KEPT:
            self._files.clear()
        self._files[path] = public
        return public

    def check_time(self, announcement: Announcement, newest: int) -> None:
        """Whether there is a signature and its time may count, which costs less to see than whether
        it is good; ``newest``: time of the member so far. Raises Refused."""
        if not announcement.signature:
            raise Refused("unsigned", f"{announcement.key}: the packet is not signed")
        unix = announcement.unix
        if newest and unix == newest:
            raise Refused("repeated", "a packet with this time was seen already")
        if unix < newest:
            raise Refused("stale", f"the packet is {newest - unix} s older than the last one")
        age = time.time() - unix
        if abs(age) > self._settings.sign_tolerance:
            where = f"{age:.0f} s old" if age > 0 else f"{-age:.0f} s in the future"
            raise Refused("stale", f"the packet is {where}")

    def check_credentials(self, key: str, credentials: tuple[int, int, int] | None) -> None:
        """``subscriptions-credentials-check``: a file named after the key must belong to the
        sender's uid and gid. Raises Refused; nobody knows who sent a UDP packet."""
        prefixes = self._settings.credentials
        if not prefixes:
            return
        if credentials is None:
            raise Refused("bad-credentials", f"{key}: the sender is not known")
        name = key.partition("/")[0]
        if _FILE_KEY.fullmatch(name) is None:
            raise Refused("bad-credentials", f"{key} cannot be the name of a file")
        for prefix in prefixes:
            path = os.path.join(prefix, name) if os.path.isdir(prefix) else prefix + name
            try:
                found = os.stat(path)
            except OSError:
                continue
            if (found.st_uid, found.st_gid) == credentials[1:]:
                return
        raise Refused("bad-credentials", f"{key}: no file of uid {credentials[1]} allows that")


def with_host(address: str, sender: str) -> str:
    """The address with the sender's host where it names none (``:3031``, ``0.0.0.0:3031``).

    uWSGI announces what its ``socket`` option says, and takes ``:3031`` for a port of the router's
    own machine, which it is only if both are on one.
    """
    match = _ANY_HOST.fullmatch(address) if address[:1] in _ANY_HOST_BEGINS else None
    if match is None:
        return address
    if ":" in sender:
        return f"[{sender}]{match[1]}"
    return f"{sender if sender[:1].isdigit() else '127.0.0.1'}{match[1]}"
