"""Which members have been silent for too long: a wheel of seconds, like the router's clock.

A refresh only stores a number on the member. The wheel looks at a member when the second comes in
which it would expire had it not been heard since, and puts it where it belongs now.
"""

from __future__ import annotations

from collections.abc import Iterator

from uwgate.subscriptions.table import Member


class Expiry:
    """``tolerance``: whole seconds of silence that are still all right (uWSGI: strictly more)."""

    __slots__ = ("_buckets", "_late", "_tolerance")

    def __init__(self, tolerance: int) -> None:
        self._tolerance = tolerance
        self._buckets: dict[int, list[Member]] = {}
        self._late: list[Member] = []  # whose second has come, not looked at yet

    @property
    def pending(self) -> bool:
        """Whether ``due`` has more to look at right now."""
        return bool(self._late)

    def watch(self, member: Member) -> None:
        """Keep an eye on a member, until it is gone (``seen`` is negative then)."""
        self._put(member, member.seen + self._tolerance + 1)

    def _put(self, member: Member, second: int) -> None:
        bucket = self._buckets.get(second)
        if bucket is None:
            self._buckets[second] = [member]
        else:
            bucket.append(member)

    def due(self, now: int, most: int) -> Iterator[Member]:
        """Members silent for longer than tolerated at ``now``; looks at ``most`` of them at the
        most. The caller removes each."""
        for second in sorted(second for second in self._buckets if second <= now):
            self._late += self._buckets.pop(second)
        late = self._late[-most:]
        del self._late[-most:]
        for member in late:
            if member.seen < 0:
                continue
            second = member.seen + self._tolerance + 1
            if second <= now:
                yield member
            else:
                self._put(member, second)
