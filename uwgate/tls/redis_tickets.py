"""Keys of session tickets that all machines share, in Redis or Valkey.

Time is divided into epochs of ``ssl-ticket-rotate`` seconds, and each has a key:
``uwgate:ticket-key:<seconds of an epoch>:<number of the epoch>``, 80 random bytes. Who comes first
makes it (SET NX), and that of the next epoch as well, so that

- a machine whose clock is ahead has its tickets accepted by the others, and one that is behind too:
  they know the keys of the next epoch and of those whose tickets can still be valid;
- without Redis, the keys that are there last for the rest of this epoch and the next.

Only after that each machine makes the key of a new epoch from the last one it has, by a one-way
function, so that they still understand each other; a stolen key then opens the later tickets too,
until Redis is back and keys are random again.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import math
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from uwgate.config.settings_tls import TicketSettings
from uwgate.tls.redis_client import (
    FIRST_PAUSE,
    LONGEST_PAUSE,
    PATIENCE,
    check_address,
    connect,
    hang_up,
    reason,
)

KEY_SIZE = 80
_PREFIX = "uwgate:ticket-key:"
_MOST = 512  # keys that a process knows
_MOST_OLD = 500  # epochs back, with epochs that are shorter than sessions
_LOOK = 30.0  # seconds after which Redis is asked again, in case that it has lost what it had
_LONGEST_CHAIN = 1000


class Keys(Protocol):
    """Who uses the keys (``TicketKeys``)."""

    def adopt(self, keys: Sequence[bytes]) -> None:
        """Encrypt with the first, decrypt with all."""
        ...


class RedisTicketKeys:
    """Keeps the ticket keys of this process those of all machines.

    ``timeout``: life of a session in seconds. ``clock``: seconds of the epoch. Raises TlsError for
    an address that is none.
    """

    def __init__(
        self,
        settings: TicketSettings,
        tickets: Keys,
        log: Callable[[str], None],
        *,
        timeout: int = 300,
        clock: Callable[[], float] = time.time,
    ) -> None:
        check_address(settings.source, "ssl-ticket-keys")
        self._url = settings.source
        self._rotate = settings.rotate
        self._tickets = tickets
        self._log = log
        self._timeout = timeout
        self._clock = clock
        self._old = min(_MOST_OLD, max(1, math.ceil(timeout / settings.rotate)))
        self._keys: dict[int, bytes] = {}  # by epoch
        self._lost: dict[bytes, float] = {}  # keys that others had another one for, and until when
        self._shared: set[int] = set()  # epochs whose key is that in Redis
        self._works: bool | None = None
        self._alone = False
        self._task: asyncio.Task[None] | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """This process serves: get the keys, and stay up to date."""
        self._task = loop.create_task(self._run())

    def close(self) -> None:
        """No more."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    def snapshot(self) -> dict[str, object]:
        """``{"connected": 0 | 1, "keys": int, "alone": 0 | 1 (the key in use is not in Redis)}``"""
        return {
            "connected": int(self._works is True),
            "keys": len(self._keys) + len(self._lost),
            "alone": int(self._epoch() not in self._shared),
        }

    def _epoch(self) -> int:
        return int(self._clock() // self._rotate)

    async def _run(self) -> None:
        pause = FIRST_PAUSE
        while self._task is not None:  # the library may swallow that the task is cancelled
            client = connect(self._url)
            try:
                while self._task is not None:
                    if self._epoch() in self._keys:
                        self._use()  # not only when Redis has answered
                    async with asyncio.timeout(PATIENCE):
                        await self._fetch(client)
                    self._came()
                    pause = FIRST_PAUSE
                    self._use()
                    await asyncio.sleep(self._until_next(min(_LOOK, self._rotate / 4)))
            except Exception as error:  # whatever the library makes of what it is sent
                self._went(error)
            finally:
                await hang_up(client)
            if self._task is None:
                return
            self._use()
            await asyncio.sleep(self._until_next(pause))
            pause = min(LONGEST_PAUSE, pause * 2)

    def _until_next(self, seconds: float) -> float:
        """Not longer than the epoch lasts: the next one has another key."""
        left = self._rotate - self._clock() % self._rotate
        return max(0.001, min(seconds, left))

    def _came(self) -> None:
        if self._works is not True:
            self._works = True
            self._alone = False
            self._log("TLS ticket keys are those in Redis")

    def _went(self, error: Exception) -> None:
        if self._works is not False:
            self._works = False
            self._log(f"TLS ticket keys: Redis is away, those we have stay: {reason(error)}")

    async def _fetch(self, client: Any) -> None:
        """Have Redis have keys for this epoch and the next, and take over what it has."""
        now = self._clock()
        epoch = int(now // self._rotate)
        made = (epoch, epoch + 1)
        old = (epoch - back for back in range(1, self._old + 1))
        wanted = [*made, *(each for each in old if each not in self._shared)]
        pipe = client.pipeline(transaction=False)
        for each in made:
            life = (each + 2) * self._rotate + self._timeout - now
            pipe.set(self._name(each), os.urandom(KEY_SIZE), nx=True, ex=math.ceil(life))
        pipe.mget([self._name(each) for each in wanted])
        found = (await pipe.execute())[-1]
        for each, key in zip(wanted, found, strict=True):
            if isinstance(key, bytes) and len(key) == KEY_SIZE:
                self._take(each, key, now)
        if epoch not in self._shared:
            raise ValueError(f"there is no key in {self._name(epoch)}")

    def _name(self, epoch: int) -> str:
        return f"{_PREFIX}{self._rotate:g}:{epoch}"

    def _take(self, epoch: int, key: bytes, now: float) -> None:
        before = self._keys.get(epoch)
        if before is not None and before != key:
            self._lost[before] = now + self._timeout  # there may be tickets of ours
        self._keys[epoch] = key
        self._shared.add(epoch)

    def _use(self) -> None:
        """Give out the keys: this epoch's, the next, those that were."""
        now = self._clock()
        epoch = int(now // self._rotate)
        if not self._keys:
            return  # nothing was ever heard: those that the master made go on
        if epoch not in self._keys:
            self._make(epoch)
        self._keys = {each: key for each, key in self._keys.items() if each >= epoch - self._old}
        self._shared &= self._keys.keys()
        self._lost = {key: end for key, end in self._lost.items() if end > now}
        others = sorted((each for each in self._keys if each != epoch), reverse=True)
        keys = [self._keys[epoch], *(self._keys[each] for each in others), *self._lost]
        self._tickets.adopt(tuple(dict.fromkeys(keys))[:_MOST])

    def _make(self, epoch: int) -> None:
        """The key of an epoch that Redis could not be asked about."""
        earlier = [each for each in self._keys if each < epoch]
        last = max(earlier) if earlier else epoch - _LONGEST_CHAIN - 1
        if epoch - last > _LONGEST_CHAIN:
            self._keys[epoch] = os.urandom(KEY_SIZE)
        else:
            key = self._keys[last]
            for _ in range(epoch - last):
                key = successor(key)
            self._keys[epoch] = key
        if not self._alone:
            self._alone = True
            self._log("TLS ticket keys: Redis is still away, new ones are made without it")


def successor(key: bytes) -> bytes:
    """The key after ``key``, 80 bytes; HKDF-Expand with SHA-256 (RFC 5869 §2.3)."""
    made = block = b""
    for number in range(1, 4):
        text = block + b"uwgate ticket key after" + bytes([number])
        block = hmac.new(key, text, hashlib.sha256).digest()
        made += block
    return made[:KEY_SIZE]
