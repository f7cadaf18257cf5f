"""Representations of files (RFC 9110 §8): fields, validators, expiry, and ready-made heads."""

from __future__ import annotations

import time
from collections.abc import Sequence

from uwgate.config.settings_static import ExpiresRule, StaticSettings
from uwgate.files.entries import Answer, Entry, Expiry, File, make_head
from uwgate.files.mime import MimeTypes
from uwgate.protocols.codings import accepted
from uwgate.protocols.http1_response import ResponseHead
from uwgate.protocols.http_date import LATEST, format_date
from uwgate.protocols.paths import decoded_path

_NOSNIFF = b"X-Content-Type-Options: nosniff\r\n"
_LISTING_LINES = (
    b"Cache-Control: no-cache\r\nVary: Accept\r\n"
    b"Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'\r\n" + _NOSNIFF
)


class Representations:
    """Makes and remembers the answers of entries. ``now``: seconds since the epoch, of the second
    that has begun last."""

    __slots__ = ("_by_path", "_by_uri", "_mime", "_ranges", "_rules")

    def __init__(self, settings: StaticSettings) -> None:
        self._mime = MimeTypes(settings.mime, settings.charset)
        self._ranges = settings.ranges
        # uWSGI's order: by file, path, target, type; and of each those from now on first.
        order = ("file", "path-info", "uri", "type")
        self._rules: Sequence[ExpiresRule] = sorted(
            settings.expires, key=lambda rule: (order.index(rule.by), rule.mtime)
        )
        self._by_uri = any(rule.by == "uri" for rule in self._rules)
        self._by_path = any(rule.by == "path-info" for rule in self._rules)

    def choose(
        self, entry: Entry, encodings: bytes | None, accept: bytes, target: bytes, now: int
    ) -> Answer:
        """The answer for a client with these Accept-Encoding and Accept values."""
        coding = b""
        variants = entry.variants
        if variants:
            if entry.kind == "listing":
                coding = b"json" if _wants_json(accept) else b""
            else:
                coding = next(iter(accepted(encodings, tuple(variants))), b"")
        file = variants[coding] if variants and coding else entry.file
        assert file is not None
        # What an application names has the expiry of who asks: its path is not that of the entry.
        varies = self._by_uri or (self._by_path and entry.is_named)
        number = self._rule(entry, file, target) if varies else 0
        answer = entry.answers.get((coding, number))
        if answer is None:
            answer = entry.answers[coding, number] = Answer(entry, file)
            if entry.kind == "listing":
                self._describe_listing(answer, coding)
            else:
                if not varies:
                    number = self._rule(entry, file, target)
                self._describe(answer, coding, number, now)
                if variants is None and not varies:
                    entry.plain = answer
        return answer

    def _describe_listing(self, answer: Answer, coding: bytes) -> None:
        kind = b"application/json" if coding else b"text/html; charset=utf-8"
        answer.content_type = kind
        answer.lines = b"Content-Type: %b\r\n%b" % (kind, _LISTING_LINES)
        answer.head = make_head(200, b"OK", answer.lines, answer.file.size)

    def _describe(self, answer: Answer, coding: bytes, number: int, now: int) -> None:
        entry, file = answer.entry, answer.file
        assert entry.file is not None
        answer.content_type = kind = self._mime.of(entry.file.path)
        weak = b"W/" if file.young else b""
        suffix = b"-" + coding if coding else b""
        answer.etag = etag = b'%b"%x-%x%b"' % (weak, file.identity[3], file.size, suffix)
        validators = b"ETag: %b\r\n" % etag
        if 0 <= file.mtime <= min(time.time(), LATEST):  # RFC 9110 §8.8.2.1: never later than Date
            answer.last_modified = file.mtime
            validators = b"Last-Modified: %b\r\n%b" % (format_date(file.mtime), validators)
        vary = b"Vary: Accept-Encoding\r\n" if entry.variants is not None else b""
        answer.kept_lines = validators + vary
        answer.lines = b"".join(
            (
                b"Content-Type: %b\r\n" % kind,
                b"Content-Encoding: %b\r\n" % coding if coding else b"",
                validators,
                b"Accept-Ranges: bytes\r\n" if self._ranges else b"",
                vary,
                _NOSNIFF,
            )
        )
        if number:
            rule = self._rules[number - 1]
            fixed = max(0, file.mtime + rule.seconds) if rule.mtime else None
            answer.expiry = Expiry(rule.seconds, fixed)
        answer.head = make_head(200, b"OK", answer.lines + self.expires(answer, now), file.size)
        answer.dated_at = now

    def _rule(self, entry: Entry, file: File, target: bytes) -> int:
        """The number of the first rule that matches, from 1 on; 0 for none."""
        if not self._rules:
            return 0
        assert entry.file is not None
        texts = {
            "file": file.path,
            "path-info": decoded_path(target) or b"",
            "uri": target,
            "type": self._mime.of(entry.file.path).partition(b";")[0],
        }
        for number, rule in enumerate(self._rules, 1):
            match = rule.pattern.fullmatch if rule.by == "type" else rule.pattern.search
            if match(texts[rule.by]):
                return number
        return 0

    @staticmethod
    def expires(answer: Answer, now: int) -> bytes:
        """The lines that say how long the answer is good, from now on."""
        expiry = answer.expiry
        if expiry is None:
            return b""
        at = now + expiry.seconds if expiry.fixed is None else expiry.fixed
        age = max(0, at - now)
        return b"Expires: %b\r\nCache-Control: max-age=%d\r\n" % (
            format_date(min(at, LATEST)),
            age,
        )

    def head(self, answer: Answer, now: int) -> ResponseHead:
        """The head of a 200, with Expires of this second."""
        if answer.expiry is not None and answer.dated_at != now:
            lines = answer.lines + self.expires(answer, now)
            answer.head = make_head(200, b"OK", lines, answer.file.size)
            answer.dated_at = now
        return answer.head


def _wants_json(accept: bytes) -> bool:
    wanted = accept.lower()
    html, json = wanted.find(b"text/html"), wanted.find(b"application/json")
    return json >= 0 and (html < 0 or json < html)
