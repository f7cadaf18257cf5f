"""Field lines whose values change with every request, cut out so that the rest is remembered."""

from __future__ import annotations

from uwgate.protocols.http1 import VALUE, split_list
from uwgate.protocols.http1_request import BLOCK_LIMIT, STEERING, RequestPolicy
from uwgate.protocols.uwsgi import header_name, var

_MAX_VARYING = 8


class VaryingLines:
    """The field lines of one connection whose values change with every request (X-Request-Id,
    traceparent, a rolling Cookie), learned by comparing two blocks.

    Such a line defeats the memo; cut out, the rest is a block seen before. ``extra`` and
    ``extra_variables`` hold the lines cut from the last block, ready to forward.
    """

    __slots__ = ("_checked", "_names", "_policy", "attempts", "extra", "values")

    def __init__(self, policy: RequestPolicy) -> None:
        self._policy = policy
        self._names: tuple[tuple[bytes, bytes], ...] = ()  # (CRLF name colon, variable name)
        self._checked = b""  # a rest known to be free of the learned names
        self.attempts = 8  # learning is not free: a hostile client does not get it for ever
        self.extra = b""
        self.values: list[bytes] = []

    def cut(self, raw: bytes) -> bytes | None:
        """``raw`` without the learned lines, or None where they are not all there (and valid).

        Only of a whole block, ended by its blank line: of anything else a cut could make one.
        """
        if not self._names:
            return None
        extra: list[bytes] = []
        values: list[bytes] = []
        for needle, _name in self._names:
            start = raw.find(needle)
            if start < 0:
                return None
            end = raw.find(b"\r\n", start + 2)
            value = raw[start + len(needle) : end]
            if end < 0 or end - start > BLOCK_LIMIT or VALUE.fullmatch(value) is None:
                return None
            if raw[start - 2 : start] == b"\r\n":
                return None  # behind the blank line
            extra.append(raw[start:end])
            values.append(value)
            raw = raw[:start] + raw[end:]
        if raw != self._checked:
            end = raw.find(b"\r\n\r\n")
            if end < 0 or end + 4 != len(raw) or self._mentioned(raw):
                return None
            self._checked = raw
        self.extra = b"".join(extra)
        self.values = values
        return raw

    def _mentioned(self, rest: bytes) -> bool:
        """Whether a learned name comes again (lines of one name keep their order and become one
        variable) or is nominated by Connection: then only a full parse gives the right result."""
        lower = rest.lower().replace(b"_", b"-")
        for needle, _name in self._names:
            name = needle[2:-1].lower()
            if name not in lower:
                continue
            for line in lower.split(b"\r\n"):
                if line.startswith(name + b":"):
                    return True
                if line.startswith(b"connection:") and name in line:
                    return True
        return False

    def extra_variables(self) -> bytes:
        """The lines cut from the last block as uwsgi variables."""
        return b"".join(
            var(name, value.strip(b" \t"))
            for (_needle, name), value in zip(self._names, self.values, strict=True)
        )

    def learn(self, before: bytes, now: bytes) -> None:
        """Compare two blocks (without the lines known already): what differs only in value is
        learned, up to eight lines in all."""
        self.attempts -= 1
        old, new = before[2:-4].split(b"\r\n"), now[2:-4].split(b"\r\n")
        if len(old) != len(new):
            return
        changed = [i for i, line in enumerate(new) if line != old[i]]
        if not 0 < len(changed) <= _MAX_VARYING - len(self._names):
            return
        counts: dict[bytes, int] = {}
        for line in new:
            mapped = line.split(b":", 1)[0].lower().replace(b"_", b"-")
            counts[mapped] = counts.get(mapped, 0) + 1
        nominated = {
            token
            for line in new
            if line[:11].lower() == b"connection:"
            for token in split_list(line[11:])
        }
        names = []
        for i in changed:
            name = new[i].split(b":", 1)[0]
            lower = name.lower()
            if (
                name != old[i].split(b":", 1)[0]
                or b"_" in name
                or lower in STEERING
                or self._policy.drops(lower)
                or lower in nominated
                or counts[lower] != 1
            ):
                return
            names.append((b"\r\n" + name + b":", header_name(lower)))
        if any(name in self._names for name in names):
            self._names = ()  # the clients' habits have changed: the others come no more
        self._names += tuple(names)
        self._checked = b""
