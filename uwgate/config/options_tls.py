"""Rows of TLS: listeners, names, sessions, and the caches that hold them."""

from __future__ import annotations

from uwgate.config import addresses, tls_values, values
from uwgate.config.model import Kind, Option

_TLS = "tls"
_NAMES = "sni"
_SESSIONS = "sessions"
_CACHES = "caches"

_LISTEN = (
    Option(
        "https", Kind.STRING, _TLS,
        "Address on which HTTPS is served, certificate, key, ciphers, CA of clients (!: required).",
        parse=tls_values.https, unit="address,cert,key[,ciphers[,[!]ca]]", repeatable=True,
    ),
    Option(
        "https2", Kind.STRING, _TLS,
        "The same by names: addr, cert, key, ciphers, clientca, spdy.",
        parse=tls_values.https2, unit="name=value,…", repeatable=True,
    ),
    Option(
        "http-to-https", Kind.STRING, _TLS,
        "Address on which every request is redirected to HTTPS, and the port to name there.",
        parse=tls_values.to_https, unit="address[,port]", repeatable=True,
    ),
    Option(
        "https-session-context", Kind.STRING, _TLS,
        "Listeners with the same context resume each other's sessions.",
        unit="name", default="http- and the address", repeatable=True,
    ),
    Option(
        "https-export-cert", Kind.FLAG, _TLS,
        "uwsgi nodes get the client's certificate as HTTPS_CC (PEM) too.",
        field="http.export_cert", parse=values.boolean,
    ),
    Option(
        "https-client-headers", Kind.BOOL, _TLS,
        "Nodes get X-SSL-Client-… fields; those that clients send are removed.",
        field="http.client_headers", parse=values.boolean, uwsgi=False,
    ),
    Option(
        "https-hsts", Kind.STRING, _TLS,
        "Strict-Transport-Security on all responses over TLS.",
        field="http.hsts", parse=tls_values.hsts, unit="value, or seconds", uwsgi=False,
    ),
)  # fmt: skip

_CONTEXT = (
    Option(
        "ssl-verify-depth", Kind.OPTIONAL_INT, _TLS,
        "Longest chain between a client's certificate and the CA.",
        parse=lambda text: values.integer(0, 100)(text or "1"), default="1",
    ),
    Option(
        "ssl-option", Kind.INT, _TLS,
        "OpenSSL options (numbers of SSL_OP_…) to set on all contexts.",
        parse=values.integer(0, (1 << 63) - 1), repeatable=True,
    ),
    Option(
        "ssl-tmp-dir", Kind.STRING, _TLS,
        "Where PEM text that stands for a file name is written to (mode 0400).",
        parse=values.filename, unit="directory",
    ),
    Option(
        "ssl-verbose", Kind.FLAG, _TLS, "Log why handshakes fail.", parse=values.boolean,
    ),
    Option(
        "ssl-enable-sslv3", Kind.FLAG, _TLS,
        "Insecure. SSL 3.0 as far as OpenSSL can, and TLS 1.0, 1.1.",
        aliases=("ssl-enable3",), parse=values.boolean,
    ),
    Option(
        "ssl-enable-tlsv1", Kind.FLAG, _TLS, "Insecure. TLS 1.0 and 1.1.", parse=values.boolean,
    ),
    Option(
        "ssl-enable-tlsv11", Kind.BOOL, _TLS, "Insecure. TLS 1.1.",
        parse=values.boolean, uwsgi=False,
    ),
)  # fmt: skip

_SNI = (
    Option(
        "sni", Kind.STRING, _NAMES,
        "Certificate of a server name, *.name (one label more) or .name (any).",
        parse=tls_values.sni, unit="name cert,key[,ciphers[,[!]ca]]", repeatable=True,
    ),
    Option(
        "sni-regexp", Kind.STRING, _NAMES,
        "Certificate of the server names that a regular expression is found in.",
        parse=tls_values.sni_regexp, unit="regexp cert,key[,ciphers[,[!]ca]]", repeatable=True,
    ),
    Option(
        "sni-dir", Kind.STRING, _NAMES,
        "Directory of NAME.crt and NAME.key (and NAME.ca), read when the name is asked for.",
        parse=values.filename, unit="directory", repeatable=True,
    ),
    Option(
        "sni-dir-ciphers", Kind.STRING, _NAMES,
        "Ciphers for certificates of directories and of subscriptions.", unit="ciphers",
    ),
    Option(
        "sni-strict", Kind.BOOL, _NAMES,
        "Refuse names that there is no certificate for, instead of showing the listener's.",
        parse=values.boolean, uwsgi=False,
    ),
    Option(
        "sni-max-contexts", Kind.INT, _NAMES,
        "Certificates of directories and subscriptions that a worker keeps ready.",
        parse=values.integer(1, 1_000_000), default="1000", uwsgi=False,
    ),
)  # fmt: skip

_SESSION = (
    Option(
        "ssl-sessions-use-cache", Kind.OPTIONAL_STRING, _SESSIONS,
        "Keep sessions in this cache (alone: the first), or in Redis.",
        aliases=("ssl-session-use-cache",), parse=tls_values.store, unit="cache or redis://…",
    ),
    Option(
        "ssl-sessions-timeout", Kind.INT, _SESSIONS, "Life of a session.",
        aliases=("ssl-session-timeout",), parse=values.integer(1, 604_800), unit="seconds",
        default="300",
    ),
    Option(
        "ssl-sessions-deadline", Kind.INT, _SESSIONS,
        "Longest time that a handshake waits for Redis.",
        parse=values.seconds(0.001, 10.0), unit="seconds", default="0.05", uwsgi=False,
    ),
    Option(
        "ssl-tickets", Kind.BOOL, _SESSIONS, "Session tickets.",
        parse=values.boolean, default="true without ssl-sessions-use-cache", uwsgi=False,
    ),
    Option(
        "ssl-ticket-rotate", Kind.INT, _SESSIONS, "How often tickets get a new key.",
        parse=values.seconds(1.0), unit="seconds", default="3600", uwsgi=False,
    ),
    Option(
        "ssl-ticket-keys", Kind.STRING, _SESSIONS,
        "Keys that several machines share: a file (80 or 48 bytes each), or Redis.",
        aliases=("ssl-ticket-key-file",), parse=tls_values.keys, unit="file or redis://…",
        uwsgi=False,
    ),
)  # fmt: skip

_CACHE = (
    Option(
        "cache", Kind.INT, _CACHES, "A cache with room for so many items, named default.",
        parse=values.integer(1, 1 << 26), unit="items",
    ),
    Option(
        "cache-blocksize", Kind.INT, _CACHES, "Largest value in that cache.",
        parse=values.integer(64, 1 << 24), unit="bytes", default="65536",
    ),
    Option(
        "cache-udp-server", Kind.STRING, _CACHES,
        "Address at which it hears of changes on other machines (multicast joins the group).",
        parse=tls_values.datagram, unit="address", repeatable=True,
    ),
    Option(
        "cache-udp-node", Kind.STRING, _CACHES, "Address that its changes are sent to.",
        parse=tls_values.datagram, unit="address", repeatable=True,
    ),
    Option(
        "cache-secret", Kind.STRING, _CACHES,
        "Changes are sent sealed with this, and heard only so; uWSGI does not understand them.",
        unit="text", uwsgi=False,
    ),
    Option(
        "cache2", Kind.STRING, _CACHES,
        "A cache by names: name, items, blocksize, keysize, udp, node, secret.",
        parse=tls_values.cache2, unit="name=value,…", repeatable=True,
    ),
    Option(
        "multicast-ttl", Kind.INT, _CACHES, "Hops that multicast datagrams may take.",
        parse=values.integer(0, 255), default="1",
    ),
    Option(
        "multicast-loop", Kind.INT, _CACHES, "Whether this machine hears its own multicast.",
        parse=values.integer(0, 1), default="1",
    ),
)  # fmt: skip

_STATS = (
    Option(
        "stats", Kind.STRING, "stats",
        "The same as http-stats: an instance has one address for statistics.",
        aliases=("stats-server",), parse=addresses.bindable, unit="address",
    ),
)  # fmt: skip

TLS_OPTIONS: tuple[Option, ...] = _LISTEN + _CONTEXT + _SNI + _SESSION + _CACHE + _STATS
"""In the order of the documentation."""
