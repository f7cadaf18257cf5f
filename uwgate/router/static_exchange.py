"""Requests that a file answers: found before a node is asked, or named by a node (X-Sendfile).

Only gateways that serve files have these exchanges. A file in memory costs less than a request to a
node: the answer to the same request again is remembered until the next second.
"""

from __future__ import annotations

import os
import time
from functools import partial
from typing import TYPE_CHECKING, cast
from urllib.parse import quote

from uwgate.files.entries import Answer, Entry, make_head
from uwgate.files.represent import Representations
from uwgate.files.site import UNKNOWN
from uwgate.protocols import ranges
from uwgate.protocols.conditional import Conditions, evaluate, find_conditions, range_applies
from uwgate.protocols.http1 import MOST_ENCODINGS
from uwgate.protocols.http1_request import RequestBlock, RequestLine
from uwgate.protocols.http1_response import ResponseHead
from uwgate.router.errors import Failure
from uwgate.router.file_sender import FileSender, Part, send_at_once
from uwgate.router.phases import IDLE, RELAYING
from uwgate.router.static_fields import (
    KIND,
    repeated_fields_of,
    with_fields_of,
    without_files,
)
from uwgate.router.static_lookup import StaticLookup

if TYPE_CHECKING:
    from uwgate.router.front import Front
    from uwgate.router.http import HttpGateway
    from uwgate.router.http1_front import Http1Front

_METHODS = (b"GET", b"HEAD")
class StaticExchange(StaticLookup):
    """An exchange that looks for a file first.

    ``quick``: the answer to the last request, if that may be given again without looking at it.
    ``missed``: the second of the site's clock in which the last target led to nothing.
    ``plain_block``: header fields that ask for nothing special.
    """

    __slots__ = (
        "_anew", "_asked", "_asked_block", "_head_of_node", "_missed", "_plain_block", "_quick",
        "_serving", "_waiting_head", "representations",
    )  # fmt: skip

    gateway: HttpGateway

    def __init__(self, gateway: HttpGateway, front: Front) -> None:
        super().__init__(gateway, front)
        self.representations = cast(Representations, gateway.representations)
        self._quick: Answer | None = None
        self._missed = -1
        self._asked: Conditions | None = None
        self._asked_block: RequestBlock | None = None
        self._plain_block: RequestBlock | None = None
        self._head_of_node: ResponseHead | None = None  # that has named the file
        self._anew = False  # the file is being looked at again
        self._serving = False  # the body of a file is being sent
        self._waiting_head: ResponseHead | None = None

    # --- from the front -----------------------------------------------------------------------

    def start(
        self, request: RequestLine, block: RequestBlock, ended: bool, raw: bool = False
    ) -> None:
        """Look for a file, then for a node."""
        site = self.site
        method = request.method
        if (
            block is self._plain_block  # nothing in its fields makes a difference
            and ended
            and not self.extra
            and request.plain
            and method == b"GET"
        ):
            entry = site.targets.get(request.target)
            if entry is not None and (entry.checked == site.tick or site.is_still(entry)):
                answer = entry.plain
                if answer is not None:
                    self.request, self.block, self.request_ended = request, block, True
                    self._missed = -1
                    self._quick = answer
                    self._send_known(answer)
                    return
        self._quick = None
        self._missed = -1
        found: Entry | None = None
        if method in _METHODS and not raw:
            known = site.known(request.target)
            if known is UNKNOWN:
                self.request, self.block, self.request_ended = request, block, ended
                self.node = None
                if self.offloads:
                    self.count_own()
                self.load(request.target, self._loaded)
                return
            found = cast("Entry | None", known)
            if found is not None:
                site.counters.hits += 1
                self._take(request, block, ended)
                self._serve(found)
                return
        self._go_on(request, block, ended, raw)

    def again(self) -> None:
        """The same request as the last one."""
        answer, site = self._quick, self.site
        if answer is not None:
            if answer.entry.checked == site.tick:
                self._send_known(answer)
                return
        elif self._missed == site.tick:
            super().again()
            return
        self.start(self.request, self.block, True)

    def _go_on(self, request: RequestLine, block: RequestBlock, ended: bool, raw: bool) -> None:
        """There is no file."""
        if not self.gateway.nodeless:
            self.source = ""
            self._missed = self.site.tick
            super().start(request, block, ended, raw)
            return
        self._take(request, block, ended)
        get = request.method in _METHODS
        self.fail_unsent(Failure.NOT_FOUND if get else Failure.STATIC_METHOD)

    def _loaded(self, found: Entry | None) -> None:
        request, block, ended = self.request, self.block, self.request_ended
        if self.offloads:  # it has been counted when the search began
            self.gateway.tally.requests -= 1
        if found is None:
            self._go_on(request, block, ended, raw=False)
        else:
            started = self.started_at
            self._take(request, block, ended)
            if self.offloads:
                self.started_at = started
            self._serve(found)

    def _take(self, request: RequestLine, block: RequestBlock, ended: bool) -> None:
        """A request that no node will see."""
        self.request = request
        self.block = block
        self.request_ended = ended
        self.raw = False
        self.count_own()
        if not ended:  # nobody reads the body: what follows it cannot be found
            cast("Http1Front", self.front).persist = False

    # --- the response -----------------------------------------------------------------------------

    def _conditions(self) -> Conditions | None:
        """The conditions of the request; those of the last header block are remembered."""
        block, extra = self.block, self.extra
        if extra:
            return find_conditions(b"%b%b\r\n\r\n" % (block.raw[:-4], extra))
        if block is not self._asked_block:
            self._asked_block = block
            self._asked = find_conditions(block.raw)
        return self._asked

    def _serve(self, entry: Entry, head_of_node: ResponseHead | None = None) -> None:
        """Answer with what the path leads to."""
        if self.pending or self.trailer:  # a body that has come while a thread was looking
            self.pending, self.pending_size, self.trailer = [], 0, b""
            self.resume_front()
        self._head_of_node = head_of_node
        if entry.kind == "redirect":
            self._send(self._redirection(entry))
            return
        conditions, site, request = self._conditions(), self.site, self.request
        encodings = self.front.field(b"accept-encoding") if entry.variants else b""
        if len(encodings) > MOST_ENCODINGS:
            encodings = b""
        accept = self.front.field(b"accept") if entry.kind == "listing" else b""
        answer = self.representations.choose(entry, encodings, accept, request.target, site.now)
        plain = conditions is None and head_of_node is None
        if plain and request.plain and self.block.simple and self.request_ended:
            if not self.extra:
                self._quick = answer
                self._plain_block = self.block
            self._send_whole(answer)
            return
        lines = answer.lines + self.representations.expires(answer, site.now)
        if head_of_node is not None:
            lines = with_fields_of(head_of_node, lines)
        if conditions is not None and request.method in _METHODS and entry.kind == "file":
            status = self._conditional(answer, conditions, lines)
            if status:
                return
        site.counters.requests += 1
        self._send(make_head(200, b"OK", lines, answer.file.size), answer, [(0, answer.file.size)])

    def _send_known(self, answer: Answer) -> None:
        """The whole of a file that was sent before, to a plain request: the usual case."""
        site, gateway = self.site, self.gateway
        site.counters.hits += 1
        data = answer.file.data
        if gateway.timed or data is None or answer.expiry is not None:
            self.count_own()
            self._send_whole(answer)
            return
        gateway.tally.requests += 1
        self.node = None
        counters = site.counters
        counters.requests += 1
        counters.sent += len(data)
        self.front.whole(answer.head, data, 0)

    def _send_whole(self, answer: Answer) -> None:
        """The whole of a file, to a plain request."""
        site, data = self.site, answer.file.data
        counters = site.counters
        counters.requests += 1
        head = self.representations.head(answer, site.now)
        if data is not None:
            counters.sent += len(data)
            self.front.whole(head, data, 0)
        else:
            self._begin_sending(head, answer, [(0, answer.file.size)])

    def _redirection(self, entry: Entry) -> ResponseHead:
        """To the name of a directory (a path of ours: never ``//host``)."""
        query = self.request.target.partition(b"?")
        location = quote(entry.path).encode("ascii") + b"/" + query[1] + query[2]
        return make_head(301, b"Moved Permanently", b"Location: %b\r\n" % location, 0)

    def _conditional(self, answer: Answer, conditions: Conditions, lines: bytes) -> bool:
        """RFC 9110 §13.2: whether the response is another one than the whole file."""
        site, file, modified = self.site, answer.file, answer.last_modified
        method, now = self.request.method, int(time.time())
        status = evaluate(method, conditions, answer.etag, modified, now)
        if status == 304:
            site.counters.not_modified += 1
            kept = answer.kept_lines + self.representations.expires(answer, site.now)
            if self._head_of_node is not None:
                kept = repeated_fields_of(self._head_of_node, kept)
            self._send(make_head(304, b"Not Modified", kept, None))
            return True
        if status == 412:
            self._send(make_head(412, b"Precondition Failed", b"", 0))
            return True
        if conditions.range is None or method != b"GET" or not site.settings.ranges:
            return False
        strong = modified if modified is not None and modified < now - 1 else None
        if not range_applies(conditions.if_range, answer.etag, strong, now):
            return False
        wanted = ranges.parse_range(conditions.range, file.size)
        if wanted is None:
            return False
        if not wanted:
            line = b"Content-Range: %b\r\n" % ranges.unsatisfied(file.size)
            self._send(make_head(416, b"Range Not Satisfiable", line, 0))
            return True
        site.counters.requests += 1
        if len(wanted) == 1:
            start, end = wanted[0]
            lines += b"Content-Range: %b\r\n" % ranges.content_range(start, end, file.size)
            head = make_head(206, b"Partial Content", lines, end - start)
            self._send(head, answer, [(start, end)])
        else:
            self._send_parts(answer, wanted, lines)
        return True

    def _send_parts(self, answer: Answer, wanted: list[tuple[int, int]], lines: bytes) -> None:
        """multipart/byteranges (RFC 9110 §14.6)."""
        file, boundary = answer.file, os.urandom(15).hex().encode("ascii")
        kind = KIND.match(lines)
        content_type = kind[1] if kind is not None else answer.content_type
        length = ranges.multipart_length(boundary, content_type, wanted, file.size)
        parts: list[Part] = []
        for start, end in wanted:
            parts.append(ranges.part_head(boundary, content_type, start, end, file.size))
            parts.append((start, end))
        parts.append(ranges.last_boundary(boundary))
        rest = lines[kind.end() + 2 :] if kind is not None else lines
        first = b"Content-Type: multipart/byteranges; boundary=%b\r\n" % boundary
        self._send(make_head(206, b"Partial Content", first + rest, length), answer, parts)

    def _send(
        self, head: ResponseHead, answer: Answer | None = None, parts: list[Part] | None = None
    ) -> None:
        """Send a head, and the parts of a file, if the method lets a response have them."""
        front = cast("Http1Front", self.front)
        data = b""
        if answer is not None and parts and self.request.method != b"HEAD":
            joined = _joined(answer.file.data, parts)
            if joined is None:
                self._begin_sending(head, answer, parts)
                return
            data = joined
            self.site.counters.sent += len(data)
        if self.request.plain and self.block.simple and self.request_ended:
            front.whole(head, data, 0)
        else:
            front.respond(head, data, True)
            front.end(b"")

    def _begin_sending(self, head: ResponseHead, answer: Answer, parts: list[Part]) -> None:
        front, gateway = cast("Http1Front", self.front), self.gateway
        try:
            changed = answer.file.changed()
        except OSError:
            changed = True
        if changed and self._serve_anew(answer.entry):
            return
        # Behind other requests, or an interim response, what was written before may still wait in
        # the loop (uvloop before 0.23), which writes at the end of a turn.
        at_once = bool(front.line) and self._head_of_node is None
        raw = front.raw_socket() if self.site.settings.sendfile else None
        if raw is None:
            self._waiting_head = head
        else:
            parts = [front.announce(head), *parts]
            if at_once and gateway.pool is None:
                sent = send_at_once(raw, answer.file, parts)
                if sent:
                    self.file_sent(sent)
                if not parts:
                    front.end(b"")
                    return
        self.phase = RELAYING
        self.responded = self._serving = True
        front.deadline = gateway.request_deadline
        sender = FileSender(self, answer.file, parts, raw)
        self.back = sender  # type: ignore[assignment]
        if raw is None or at_once:
            sender.go_on(looked=True)
        else:
            gateway.loop.call_soon(partial(gateway.loop.call_soon, sender.go_on))

    def _serve_anew(self, entry: Entry) -> bool:
        """The file is not what its head says any more, and nothing was sent: look again. False if
        that was done already, and somebody goes on writing."""
        if self._anew:
            return False
        self._anew, self._quick = True, None
        self.site.counters.requests -= 1
        try:
            fresh = self.site.anew(entry)
        except OSError as error:
            self.short_of(error)
        else:
            if fresh is None:
                self.fail_unsent(Failure.NOT_FOUND)
            else:
                self._serve(fresh, self._head_of_node)
        self._anew = False
        return True

    def stalled(self, stalled: bool) -> None:
        """Whether the client does not take what is sent past the front."""
        cast("Http1Front", self.front).blocked = stalled

    # --- from the sender --------------------------------------------------------------------------

    def file_sent(self, size: int) -> None:
        """The kernel has taken so many bytes of the response."""
        front, gateway = cast("Http1Front", self.front), self.gateway
        front.deadline = gateway.request_deadline
        before = front.sent_bytes  # negative until the head has been sent
        front.sent_bytes = after = before + size
        gateway.tally.tx += size
        self.site.counters.sent += max(0, after) - max(0, before)

    def piece(self, data: bytes) -> None:
        """Bytes of the body, to go through the front."""
        head = self._waiting_head
        self.site.counters.sent += len(data)
        if head is None:
            self.response_data(data)
        else:
            self._waiting_head = None
            self.front.respond(head, data, False)

    def _finish(self) -> None:
        if self._serving:
            self._serving = False
            self._waiting_head = None
            self.phase = IDLE  # no node has to be told
        super()._finish()

    def expired(self) -> None:
        """The deadline passed: the client is given more time if it only is slow."""
        sender = self.back
        if not (self._serving and isinstance(sender, FileSender)):
            super().expired()
        elif sender.progressed():
            self.front.deadline = self.gateway.request_deadline
        else:
            self.abort(Failure.CLIENT_TIMEOUT if sender.paused else Failure.FILE_CHANGED)

    def forget_heads(self) -> None:
        """Nothing of a long head is kept while the connection is idle."""
        super().forget_heads()
        self._asked = self._asked_block = self._plain_block = self._quick = None
        self._head_of_node = None

    # --- files that nodes name --------------------------------------------------------------------

    def whole(self, head: ResponseHead, data: bytes, end: int) -> None:
        """A complete response of a node."""
        if head.file is None:
            super().whole(head, data, end)
        else:
            self.back = None
            self._instead_of(head)

    def begin(self, head: ResponseHead, data: bytes, end: int) -> None:
        """The beginning of one."""
        if head.file is None:
            super().begin(head, data, end)
        else:
            self._instead_of(head)

    def response(self, head: ResponseHead, payload: bytes, ended: bool, trailer: bytes) -> None:
        """The final response of a node, in the general case."""
        if head.file is None:
            trailer = without_files(trailer, self.gateway.responses.policy.files)
            super().response(head, payload, ended, trailer)
        else:
            if ended:
                self.back = None
            self._instead_of(head)

    def response_end(self, trailer: bytes) -> None:
        """The response of a node is complete."""
        super().response_end(without_files(trailer, self.gateway.responses.policy.files))

    def _instead_of(self, head: ResponseHead) -> None:
        """Send the file that the node has named; its body is not wanted."""
        if self.gateway.timed:
            self._answered(head.status)
        self.drop_attempt()
        node = self.node
        self._finish()
        self.node = node  # for the log
        assert head.file is not None
        value, uri = head.file
        site = self.site
        key = site.named_key(value, uri=uri)
        known = site.known(key) if key is not None else None

        def found(entry: Entry | None) -> None:
            if entry is not None:
                self._serve(entry, head)
                return
            name = value.decode("utf-8", "backslashreplace")
            self.gateway.complain(f"the application named a file that cannot be sent: {name}")
            self.fail_unsent(Failure.NO_SUCH_FILE)

        if key is not None and known is UNKNOWN:
            self.load(key, found)
        else:
            found(cast("Entry | None", known))


def _joined(data: bytes | None, parts: list[Part]) -> bytes | None:
    """All parts as one, None if they are not in memory."""
    if data is None:
        if any(isinstance(part, tuple) and part[0] < part[1] for part in parts):
            return None
        data = b""
    return b"".join(
        part if isinstance(part, bytes) else data[part[0] : part[1]] for part in parts
    )
