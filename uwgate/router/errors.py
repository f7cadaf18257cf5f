"""Every way a request can fail, in one table: status, log word, what it means.

No connection is closed without one of these reasons. The log word appears in the request log and
as the ``reason`` label of ``uwgate_errors_total``; the status is what the client gets if nothing of
a response was sent yet. ``status`` 0: HTTP allows no answer any more (or none was asked for).
"""

from __future__ import annotations

from enum import Enum

from uwgate.protocols.http1 import Fault


class Failure(Enum):
    """Reason of an unsuccessful end: ``(status, word, text)``; text goes into the error body."""

    BAD_REQUEST = (400, "bad-request", "The request is malformed.")
    BAD_FRAMING = (400, "bad-framing", "The length of the request body is ambiguous.")
    BAD_CHUNK = (400, "bad-chunk", "The chunked request body is malformed.")
    BAD_HOST = (400, "bad-host", "The Host field is missing, repeated or malformed.")
    BAD_PROXY = (400, "bad-proxy-header", "The PROXY protocol header is malformed or not allowed.")
    PLAIN_HTTP = (400, "plain-http", "This port speaks HTTPS; the request came in clear text.")
    NOT_FOUND = (404, "not-found", "There is nothing of this name.")
    NO_SUCH_FILE = (404, "no-such-file", "The file that the application named cannot be sent.")
    STATIC_METHOD = (405, "static-method", "There are only files here: GET and HEAD.")
    METHOD_REFUSED = (405, "method-refused", "This method is not served here.")
    HEAD_TIMEOUT = (408, "head-timeout", "The request head did not arrive in time.")
    BODY_TIMEOUT = (408, "body-timeout", "The request body did not arrive in time.")
    LENGTH_REQUIRED = (411, "length-required", "A Content-Length is required.")
    BODY_TOO_LARGE = (413, "body-too-large", "The request body is larger than allowed.")
    URI_TOO_LONG = (414, "uri-too-long", "The request target is longer than allowed.")
    EXPECTATION = (417, "bad-expectation", "The expectation is not known.")
    MISDIRECTED = (421, "misdirected", "This name needs a TLS connection of its own.")
    HEAD_TOO_LARGE = (431, "head-too-large", "The request head is larger than allowed.")
    PACKET_TOO_LARGE = (431, "packet-too-large", "The request head does not fit a uwsgi packet.")
    INTERNAL = (500, "internal-error", "The gateway failed.")
    NOT_IMPLEMENTED = (501, "not-implemented", "The method or transfer coding is not supported.")
    NODE_CONNECT = (502, "node-connect-failed", "No connection to the application could be made.")
    NODE_EMPTY = (502, "node-empty", "The application closed the connection without an answer.")
    NODE_RESET = (502, "node-reset", "The connection to the application was lost.")
    NODE_BAD_RESPONSE = (502, "node-bad-response", "The application's answer is malformed.")
    NO_NODE = (503, "no-node", "No application serves this name.")
    NO_NODE_ALIVE = (503, "no-node-alive", "The application is not available.")
    RESOURCES = (503, "out-of-resources", "The gateway has no descriptor, memory or disk left.")
    DRAINING = (503, "draining", "The gateway is shutting down.")
    NODE_TIMEOUT = (504, "node-timeout", "The application did not answer in time.")
    CONNECT_TIMEOUT = (504, "connect-timeout", "The application did not accept in time.")
    RESOLVE_TIMEOUT = (504, "resolve-timeout", "The name of the application took too long to find.")
    VERSION = (505, "bad-version", "This HTTP version is not supported.")
    # Ends without an answer of ours.
    CLIENT_CLOSED = (0, "client-closed", "The client closed before the response was complete.")
    CLIENT_TIMEOUT = (0, "client-timeout", "The client stopped reading.")
    NODE_TRUNCATED = (0, "node-truncated", "The application's answer ended before its length.")
    NODE_STALLED = (0, "node-stalled", "The application stopped in the middle of its answer.")
    TUNNEL_TIMEOUT = (0, "tunnel-timeout", "A tunnelled connection was silent for too long.")
    FILE_CHANGED = (0, "file-changed", "A file was changed, or could not be read, in its transfer.")
    KILLED = (0, "killed", "The gateway was stopped before the response was complete.")
    # TLS connections that ended before (or instead of) a request.
    TLS_TIMEOUT = (0, "tls-timeout", "The TLS handshake took too long.")
    TLS_CLOSED = (0, "tls-closed", "The client left during the TLS handshake.")
    TLS_HELLO = (0, "tls-bad-hello", "What came is no TLS ClientHello, or too large a one.")
    TLS_NAME = (0, "tls-unknown-name", "There is no certificate for this name (sni-strict).")
    TLS_VERSION = (0, "tls-version", "Client and gateway have no TLS version or cipher in common.")
    TLS_CLIENT_CERT = (0, "tls-client-cert", "The client certificate is missing or not verifiable.")
    TLS_FAILED = (0, "tls-failed", "The TLS handshake failed.")
    TLS_BROKEN = (0, "tls-broken", "A TLS record after the handshake is not valid.")

    def __init__(self, status: int, word: str, text: str) -> None:
        self.status = status
        self.word = word
        self.text = text


FAILURES = {
    Fault.BAD_MESSAGE: Failure.BAD_REQUEST,
    Fault.BAD_FRAMING: Failure.BAD_FRAMING,
    Fault.BAD_HOST: Failure.BAD_HOST,
    Fault.TOO_MANY_FIELDS: Failure.HEAD_TOO_LARGE,
    Fault.BAD_VERSION: Failure.VERSION,
    Fault.UNKNOWN_CODING: Failure.NOT_IMPLEMENTED,
    Fault.BAD_EXPECTATION: Failure.EXPECTATION,
}
"""What a fault of a request's head is to its client."""

PHRASES: dict[int, str] = {
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    411: "Length Required",
    413: "Content Too Large",
    414: "URI Too Long",
    417: "Expectation Failed",
    421: "Misdirected Request",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    501: "Not Implemented",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
    505: "HTTP Version Not Supported",
}
