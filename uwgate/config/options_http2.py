"""Rows of HTTP/2, which uWSGI has not."""

from __future__ import annotations

from uwgate.config import values
from uwgate.config.model import Kind, Option

_HTTP2 = "http2"
_LARGEST_WINDOW = (1 << 31) - 1

HTTP2_OPTIONS = (
    Option(
        "http2",
        Kind.BOOL,
        _HTTP2,
        "Offer HTTP/2 to clients of listeners with TLS (ALPN).",
        field="http2.enabled",
        parse=values.boolean,
        uwsgi=False,
    ),
    Option(
        "http2-cleartext",
        Kind.BOOL,
        _HTTP2,
        "Speak HTTP/2 with clients of other listeners that begin with it (prior knowledge).",
        field="http2.cleartext",
        parse=values.boolean,
        uwsgi=False,
    ),
    Option(
        "http2-max-streams",
        Kind.INT,
        _HTTP2,
        "Requests that a connection may have under way.",
        field="http2.max_streams",
        parse=values.integer(1, 10_000),
        uwsgi=False,
    ),
    Option(
        "http2-node-requests",
        Kind.INT,
        _HTTP2,
        "Requests of a connection that wait for nodes at a time; further ones wait for these."
        " 0: all that it may have.",
        field="http2.node_requests",
        parse=values.integer(0, 10_000),
        uwsgi=False,
    ),
    Option(
        "http2-window",
        Kind.INT,
        _HTTP2,
        "Bytes of a request body that a client may send before they are passed on.",
        field="http2.window",
        parse=values.size(1024, _LARGEST_WINDOW),
        unit="bytes",
        uwsgi=False,
    ),
    Option(
        "http2-connection-window",
        Kind.INT,
        _HTTP2,
        "The same of all requests of a connection together.",
        field="http2.connection_window",
        parse=values.size(65535, _LARGEST_WINDOW),
        unit="bytes",
        uwsgi=False,
    ),
    Option(
        "http2-max-header-list",
        Kind.INT,
        _HTTP2,
        "Longest header section of a request, with 32 bytes on top of each field (431).",
        field="http2.max_header_list",
        parse=values.size(1024, 1 << 20),
        unit="bytes",
        uwsgi=False,
    ),
    Option(
        "http2-max-queued",
        Kind.INT,
        _HTTP2,
        "Bytes of responses that may wait for a client: with more, nodes have to wait, and while"
        " its windows let nothing go, no further request is taken.",
        field="http2.max_queued",
        parse=values.size(65536, 1 << 30),
        unit="bytes",
        uwsgi=False,
    ),
    Option(
        "http2-max-resets",
        Kind.INT,
        _HTTP2,
        "Streams of a connection that may be given up before their end: so many at once, as many"
        " again within 15 seconds.",
        field="http2.max_resets",
        parse=values.integer(10, 1_000_000),
        uwsgi=False,
    ),
    Option(
        "http2-max-frames",
        Kind.INT,
        _HTTP2,
        "Frames of a connection that are of no use (PING, SETTINGS, empty DATA and such): so many"
        " at once, as many again within 40 seconds, and four for each frame of a response.",
        field="http2.max_frames",
        parse=values.integer(100, 10_000_000),
        uwsgi=False,
    ),
)
