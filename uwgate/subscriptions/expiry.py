"""Which members have been silent for too long: a wheel of seconds, like the router's clock.

A refresh only stores a number on the member. The wheel looks at a member when the second comes in
which it would expire had it not been heard since, and puts it where it belongs now. Who left stays
on it until then, unless these become more than the others.
"""

from __future__ import annotations

from collections.abc import Iterator

from uwgate.subscriptions.table import Member

_GONE = 10_000  # members that left, from which on it is worth looking for them


class Expiry:
    """``tolerance``: whole seconds of silence that are still all right (uWSGI: strictly more)."""

    __slots__ = ("_buckets", "_gone", "_late", "_tolerance", "_watched")

    def __init__(self, tolerance: int) -> None:
        self._tolerance = tolerance
        self._buckets: dict[int, list[Member]] = {}
        self._late: list[Member] = []  # whose second has come, not looked at yet
        self._watched = 0  # entries of all buckets and of ``_late``
        self._gone = 0  # of these: members that left

    @property
    def pending(self) -> bool:
        """Whether ``due`` has more to look at right now."""
        return bool(self._late)

    def watch(self, member: Member) -> None:
        """Keep an eye on a member."""
        self._put(member, member.seen + self._tolerance + 1)

    def forget(self, member: Member) -> None:
        """The member left; ``seen`` becomes -1."""
        member.seen = -1
        self._gone += 1
        if self._gone > _GONE and self._gone * 2 > self._watched:
            self._clean()

    def _clean(self) -> None:
        self._late = [member for member in self._late if member.seen >= 0]
        for second, bucket in list(self._buckets.items()):
            left = [member for member in bucket if member.seen >= 0]
            if left:
                self._buckets[second] = left
            else:
                del self._buckets[second]
        self._watched = len(self._late) + sum(map(len, self._buckets.values()))
        self._gone = 0

    def _put(self, member: Member, second: int) -> None:
        self._watched += 1
        bucket = self._buckets.get(second)
        if bucket is None:
            self._buckets[second] = [member]
        else:
            bucket.append(member)

    def due(self, now: int, most: int) -> Iterator[Member]:
        """Members silent for longer than tolerated at ``now``; looks at ``most`` of them at the
        most. The caller removes each, and calls ``forget``."""
        for second in sorted(second for second in self._buckets if second <= now):
            self._late += self._buckets.pop(second)
        late = self._late[-most:]
        del self._late[-most:]
        self._watched -= len(late)
        there = [member for member in late if member.seen >= 0]
        self._gone -= len(late) - len(there)
        for member in there:
            second = member.seen + self._tolerance + 1
            if second <= now:
                self._gone -= 1  # what ``forget`` is about to add: it is not on the wheel
                yield member
            else:
                self._put(member, second)
