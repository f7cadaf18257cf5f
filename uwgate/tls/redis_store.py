"""Sessions in Redis or Valkey, for many machines.

A handshake never waits for Redis inside of OpenSSL: sessions are looked up before it begins
(``prefetch``), for ``deadline`` seconds at the most, and written behind it. One task does all of
it, and what comes up while a round trip is under way goes into the next one. Without Redis nothing
waits, and handshakes are full ones.

A session is under ``uwgate:session:`` and its id, as OpenSSL writes it, until it ends. It holds the
master secret, in the clear: who can read that Redis can take over sessions, and read the traffic of
those without forward secrecy. Use ``rediss://``, a password, and a Redis that nobody else has.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import Any

from uwgate.config.settings_tls import SessionSettings
from uwgate.tls.redis_client import (
    FIRST_PAUSE,
    LONGEST_PAUSE,
    OVERDUE,
    PATIENCE,
    check_address,
    connect,
    hang_up,
    reason,
)
from uwgate.tls.redis_tickets import RedisTicketKeys

__all__ = ["RedisStore", "RedisTicketKeys"]

_PREFIX = b"uwgate:session:"
_NEAR = 4096  # sessions kept here
_NEAR_LIFE = 10.0  # seconds; as long a session that was deleted elsewhere may still be found here
_LARGEST = 65536  # bytes of a session
_WRITES = 4096  # that wait; then the oldest go
_LOOKUPS = 10_000  # that wait; then no more do
_AT_ONCE = 128  # lookups, and writes, of one round trip

_Write = tuple[bytes, bytes | None, int]
"""Key, value (None: delete), second of the epoch when it expires."""


class RedisStore:
    """A store of sessions (``sessions.Store``) in a Redis of all machines.

    Counters of this process: ``hits`` and ``misses`` (sessions asked for), ``timeouts`` (handshakes
    that went on without an answer), ``errors`` (round trips and commands that failed), ``dropped``
    (writes that were never made). Raises TlsError for an address that is none.
    """

    def __init__(self, settings: SessionSettings, log: Callable[[str], None]) -> None:
        check_address(settings.url, "ssl-sessions-use-cache")
        self._url = settings.url
        self._deadline = settings.deadline
        self._log = log
        self._near: OrderedDict[bytes, tuple[float, bytes]] = OrderedDict()
        self._writes: deque[_Write] = deque()
        self._unsent: deque[_Lookup] = deque()
        self._waiting: deque[_Lookup] = deque()  # in the order of their limits
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wanted: asyncio.Event | None = None
        self._task: asyncio.Task[None] | None = None
        self._works: bool | None = None  # None: not known yet, or not any more
        self._said: bool | None = None
        self._refused = False
        self.hits = self.misses = self.timeouts = self.errors = self.dropped = 0

    # --- Store ------------------------------------------------------------------------------------

    def get(self, key: bytes) -> bytes | None:
        """A session that was looked up, or made here, a moment ago."""
        found = self._near.get(key)
        return found[1] if found is not None and found[0] > time.monotonic() else None

    def set(self, key: bytes, value: bytes, expires: int) -> bool:
        """Write it behind. False if it is too large, or this process does not serve."""
        if not key or len(value) > _LARGEST or self._task is None:
            return False
        self._keep(key, value)
        self._write((key, value, expires))
        return True

    def delete(self, key: bytes) -> None:
        """Delete it behind."""
        self._near.pop(key, None)
        if self._task is not None:
            self._write((key, None, 0))

    def _keep(self, key: bytes, value: bytes) -> None:
        near, now = self._near, time.monotonic()
        near[key] = (now + _NEAR_LIFE, value)
        near.move_to_end(key)
        while len(near) > _NEAR or next(iter(near.values()))[0] < now:
            near.popitem(last=False)

    def _write(self, write: _Write) -> None:
        if len(self._writes) >= _WRITES:
            self._writes.popleft()
            self.dropped += 1
        self._writes.append(write)
        self._wake()

    def _wake(self) -> None:
        if self._wanted is not None:
            self._wanted.set()

    # --- lookups ----------------------------------------------------------------------------------

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """This process serves: connect, and stay connected."""
        self._loop = loop
        self._wanted = asyncio.Event()
        self._task = loop.create_task(self._run())

    def close(self) -> None:
        """No more lookups; those that wait are over, writes that wait are lost."""
        if self._task is not None:
            self._task.cancel()
            self._task = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.dropped += len(self._writes)
        self._writes.clear()
        self._give_up()

    def prefetch(self, ids: Sequence[bytes], done: Callable[[], None]) -> None:
        """Look sessions up, for ``get``. ``done`` is called once: when they are here, or when the
        deadline has passed; at once, from here, if they are here already or Redis is away."""
        missing = [each for each in ids if self.get(each) is None]
        loop = self._loop
        self.hits += len(ids) - len(missing)
        if not missing:
            done()
            return
        full = len(self._waiting) >= _LOOKUPS
        if loop is None or self._task is None or self._works is False or full:
            self.misses += len(missing)
            done()
            return
        lookup = _Lookup(missing, done, loop.time() + self._deadline)
        self._waiting.append(lookup)
        self._unsent.append(lookup)
        if self._timer is None:
            self._timer = loop.call_at(lookup.limit, self._pass_limits)
        self._wake()

    def _pass_limits(self) -> None:
        """One timer for all: those who have waited long enough go on."""
        self._timer = None
        assert self._loop is not None
        now = self._loop.time()
        waiting = self._waiting
        while waiting:
            lookup = waiting[0]
            if not lookup.over and lookup.limit > now:
                self._timer = self._loop.call_at(lookup.limit, self._pass_limits)
                return
            waiting.popleft()
            if not lookup.over:
                self.timeouts += 1
                self._finish(lookup)

    def _finish(self, lookup: _Lookup) -> None:
        """Whoever waits goes on; what it does is its own affair, also if it fails."""
        if lookup.over or self._loop is None:
            return
        lookup.over = True
        self._loop.call_soon(lookup.done)

    def _give_up(self) -> None:
        for lookup in self._waiting:
            if not lookup.over:
                self.misses += len(lookup.ids)
                self._finish(lookup)
        self._waiting.clear()
        self._unsent.clear()

    # --- the one task -----------------------------------------------------------------------------

    async def _run(self) -> None:
        pause = FIRST_PAUSE
        while self._task is not None:  # the library may swallow that the task is cancelled
            client = connect(self._url)
            began = time.monotonic()
            try:
                await self._serve(client)
                return
            except Exception as error:  # whatever the library makes of what it is sent
                self.errors += 1
                # A connection that was good may end for no bad reason: nobody gives up before the
                # next one has failed as well, or an answer is overdue.
                again = self._works and not isinstance(error, OVERDUE)
                if again and time.monotonic() - began > FIRST_PAUSE:
                    self._works = None
                    continue
                self._went(error)
            finally:
                await hang_up(client)
            if time.monotonic() - began > LONGEST_PAUSE:
                pause = FIRST_PAUSE
            await asyncio.sleep(pause)
            pause = min(LONGEST_PAUSE, pause * 2)

    def _came(self) -> None:
        self._works = True
        self._say(True, "TLS sessions: Redis is there")

    def _went(self, error: Exception) -> None:
        self._works = False
        self._say(False, f"TLS sessions: Redis is away, handshakes are full ones: {reason(error)}")
        self._give_up()

    def _say(self, works: bool, line: str) -> None:
        """Only what is new."""
        if self._said is not works:
            self._said = works
            self._log(line)

    async def _serve(self, client: Any) -> None:
        """Round trips, until one fails or the store is closed."""
        assert self._wanted is not None
        async with asyncio.timeout(PATIENCE):
            await client.ping()
        self._came()
        while self._task is not None:
            if not self._unsent and not self._writes:
                self._wanted.clear()
                await self._wanted.wait()
            lookups, writes = self._next_lookups(), self._next_writes()
            try:
                async with asyncio.timeout(PATIENCE):
                    await self._round(client, lookups, writes)
            except Exception:
                # Not in vain: they may still be in time for the next connection.
                self._unsent.extendleft(reversed(lookups))
                self._writes.extendleft(reversed(writes))
                raise

    def _next_lookups(self) -> list[_Lookup]:
        taken: list[_Lookup] = []
        while self._unsent and len(taken) < _AT_ONCE:
            lookup = self._unsent.popleft()
            if not lookup.over:
                taken.append(lookup)
        return taken

    def _next_writes(self) -> list[_Write]:
        return [self._writes.popleft() for _ in range(min(_AT_ONCE, len(self._writes)))]

    async def _round(self, client: Any, lookups: list[_Lookup], writes: list[_Write]) -> None:
        """Writes first: who looks up what was just made here shall find it."""
        ids = list(dict.fromkeys(each for lookup in lookups for each in lookup.ids))
        pipe = client.pipeline(transaction=False)
        now = int(time.time())
        for key, value, expires in writes:
            if value is None:
                pipe.delete(_PREFIX + key)
            elif expires > now:
                pipe.set(_PREFIX + key, value, ex=expires - now)
        if ids:
            pipe.mget([_PREFIX + each for each in ids])
        answers = await pipe.execute(raise_on_error=False)
        self._note_refusals([each for each in answers if isinstance(each, Exception)])
        if not ids:
            return
        found = answers[-1] if isinstance(answers[-1], list) else [None] * len(ids)
        values = dict(zip(ids, found, strict=True))
        for key, value in values.items():
            if isinstance(value, bytes) and len(value) <= _LARGEST:
                self._keep(key, value)
        for lookup in lookups:
            if not lookup.over:
                hits = sum(values[each] is not None for each in lookup.ids)
                self.hits += hits
                self.misses += len(lookup.ids) - hits
                self._finish(lookup)

    def _note_refusals(self, errors: list[Exception]) -> None:
        """Answers like OOM, READONLY or NOPERM: Redis is there, and does not do it."""
        self.errors += len(errors)
        if errors and not self._refused:
            self._log(f"TLS sessions: Redis refuses: {reason(errors[0])}")
        elif self._refused and not errors:
            self._log("TLS sessions: Redis refuses no more")
        self._refused = bool(errors)

    def snapshot(self) -> dict[str, object]:
        """``{"connected": 0 | 1, "hits", "misses", "timeouts", "errors", "dropped": int}``"""
        return {
            "connected": int(self._works is True),
            "hits": self.hits,
            "misses": self.misses,
            "timeouts": self.timeouts,
            "errors": self.errors,
            "dropped": self.dropped,
        }


class _Lookup:
    """A handshake that waits: ``limit`` in the loop's time; ``over``: it does not wait any more."""

    __slots__ = ("done", "ids", "limit", "over")

    def __init__(self, ids: Sequence[bytes], done: Callable[[], None], limit: float) -> None:
        self.ids = ids
        self.done = done
        self.limit = limit
        self.over = False
