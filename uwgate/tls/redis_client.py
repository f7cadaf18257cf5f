"""Connections to Redis or Valkey: addresses, what can go wrong, and when to try again.

Nothing here waits for long: a server that accepts and never answers, or one that is stopped, counts
as away after ``PATIENCE``.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import redis.asyncio as redis
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import TimeoutError as RedisTimeoutError

from uwgate.tls.errors import TlsError

PATIENCE = 1.0
"""Seconds for a round trip, and for a connection to come about."""
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
"""Seconds before Redis is tried again: the first time, and at the most."""
OVERDUE = (TimeoutError, RedisTimeoutError)
"""There was no answer in time."""
_LONGEST_REASON = 200


def check_address(url: str, option: str) -> None:
    """Raise TlsError if ``url`` is no ``redis://``, ``rediss://`` or ``unix://`` address. Its text
    names ``option`` and not the address, which may hold a password."""
    try:
        parse_url(url)
    except ValueError:
        raise TlsError(f"{option}: not an address of Redis") from None


def connect(url: str) -> Any:
    """A client for an address; it connects when it is first used.

    The protocol is that of all versions (RESP2). Nothing is tried twice here: the caller knows
    better when.
    """
    return redis.Redis.from_url(
        url,
        socket_timeout=PATIENCE,
        socket_connect_timeout=PATIENCE,
        retry=Retry(NoBackoff(), 0),
        protocol=2,
    )


async def hang_up(client: Any) -> None:
    """Close the connections of ``client``, whatever state they are in; at most ``PATIENCE``."""
    with contextlib.suppress(Exception):
        async with asyncio.timeout(PATIENCE):
            await client.aclose()


def reason(error: Exception) -> str:
    """What went wrong, in one short line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _LONGEST_REASON else text[:_LONGEST_REASON] + "…"
