"""Rows of TLS: listeners, server names, sessions, and the caches that hold them."""

from __future__ import annotations

from uwgate.config import addresses, cache_values, tls_values, values
from uwgate.config.model import Kind, Option

_TLS = "tls"
_NAMES = "sni"
_SESSIONS = "sessions"
_CACHES = "caches"

_LISTENERS = (
    Option(
        "https",
        Kind.STRING,
        _TLS,
        "Address on which HTTPS is served, certificate chain and key (PEM files); then ciphers of"
        " TLS 1.2, and the CA of client certificates (with ! in front they are required).",
        parse=tls_values.https,
        unit="address,cert,key[,ciphers[,[!]ca]]",
        repeatable=True,
    ),
    Option(
        "https2",
        Kind.LIST,
        _TLS,
        "The same by names: addr, cert (crt), key, ciphers, clientca (client_ca), spdy.",
        parse=tls_values.https2,
        unit="name=value,…",
        repeatable=True,
    ),
    Option(
        "http-to-https",
        Kind.STRING,
        _TLS,
        "Address on which every request is redirected to HTTPS, and the port to name there.",
        parse=tls_values.to_https,
        unit="address[,port]",
        repeatable=True,
    ),
    Option(
        "https-session-context",
        Kind.STRING,
        _TLS,
        "Name of the sessions of the https options behind it (of all, if it is behind them):"
        " listeners and machines with the same name resume each other's. Otherwise http-ADDRESS.",
        parse=tls_values.session_context,
        unit="name",
        repeatable=True,
    ),
    Option(
        "https-export-cert",
        Kind.FLAG,
        _TLS,
        "uwsgi nodes get the client's certificate as PEM, too (HTTPS_CC).",
        field="http.export_cert",
        parse=values.boolean,
    ),
    Option(
        "https-client-headers",
        Kind.BOOL,
        _TLS,
        "HTTP nodes get X-SSL-Client-… fields; those that clients send are removed.",
        field="http.client_headers",
        parse=values.boolean,
        uwsgi=False,
    ),
    Option(
        "https-hsts",
        Kind.STRING,
        _TLS,
        "Value of Strict-Transport-Security in responses over TLS; a number is its max-age.",
        field="http.hsts",
        parse=tls_values.hsts,
        unit="value or seconds",
        uwsgi=False,
    ),
)

_CONTEXTS = (
    Option(
        "ssl-verify-depth",
        Kind.OPTIONAL_INT,
        _TLS,
        "Number of certificates allowed between a client's and the CA.",
        field="tls.verify_depth",
        parse=tls_values.verify_depth,
    ),
    Option(
        "ssl-option",
        Kind.INT,
        _TLS,
        "OpenSSL's option (number of an SSL_OP_… constant) to set on everything; 16384 is no"
        " tickets, 536870912 no TLS 1.3.",
        parse=values.integer(0, (1 << 59) - 1),
        unit="number",
        repeatable=True,
    ),
    Option(
        "ssl-tmp-dir",
        Kind.STRING,
        _TLS,
        "Directory where PEM texts that stand in place of a file name are written to (mode 0400).",
        field="tls.tmp_dir",
        parse=values.filename,
        unit="directory",
    ),
    Option(
        "ssl-verbose",
        Kind.FLAG,
        _TLS,
        "Log why handshakes fail.",
        field="tls.verbose",
        parse=values.boolean,
    ),
    Option(
        "ssl-enable-sslv3",
        Kind.FLAG,
        _TLS,
        "Insecure: allow SSL 3.0, which OpenSSL does not have any more, and TLS 1.0 and 1.1.",
        aliases=("ssl-enable3",),
        field="tls.enable_sslv3",
        parse=values.boolean,
    ),
    Option(
        "ssl-enable-tlsv1",
        Kind.FLAG,
        _TLS,
        "Insecure: allow TLS 1.0 and 1.1.",
        field="tls.enable_tlsv1",
        parse=values.boolean,
    ),
    Option(
        "ssl-enable-tlsv11",
        Kind.BOOL,
        _TLS,
        "Insecure: allow TLS 1.1.",
        field="tls.enable_tlsv11",
        parse=values.boolean,
        uwsgi=False,
    ),
)

_SERVER_NAMES = (
    Option(
        "sni",
        Kind.LIST,
        _NAMES,
        "Certificate of one server name, of *.NAME (one label more) or .NAME (any number more).",
        parse=tls_values.sni,
        unit="name cert,key[,ciphers[,[!]ca]]",
        repeatable=True,
    ),
    Option(
        "sni-regexp",
        Kind.LIST,
        _NAMES,
        "Certificate of the server names in which a regular expression (Python's) is found.",
        parse=tls_values.sni_regexp,
        unit="regexp cert,key[,ciphers[,[!]ca]]",
        repeatable=True,
    ),
    Option(
        "sni-dir",
        Kind.LIST,
        _NAMES,
        "Directory with NAME.crt, NAME.key and perhaps NAME.ca, read when a client asks for NAME.",
        parse=values.filename,
        unit="directory",
        repeatable=True,
    ),
    Option(
        "sni-dir-ciphers",
        Kind.STRING,
        _NAMES,
        "Ciphers of TLS 1.2 with certificates of sni-dir and of subscriptions.",
        field="tls.sni_dir_ciphers",
        unit="ciphers",
    ),
    Option(
        "sni-strict",
        Kind.BOOL,
        _NAMES,
        "Refuse names that there is no certificate for, instead of showing the listener's.",
        field="tls.sni_strict",
        parse=values.boolean,
        uwsgi=False,
    ),
    Option(
        "sni-max-contexts",
        Kind.INT,
        _NAMES,
        "Certificates of sni-dir and of subscriptions that a worker keeps loaded.",
        field="tls.sni_max_contexts",
        parse=values.integer(1, 1_000_000),
        uwsgi=False,
    ),
)

_KEPT = (
    Option(
        "ssl-sessions-use-cache",
        Kind.OPTIONAL_STRING,
        _SESSIONS,
        "Keep sessions in this cache (without a name: in the first one), or in Redis or Valkey:"
        " redis://, rediss://, unix://.",
        aliases=("ssl-session-use-cache",),
        parse=tls_values.sessions,
        unit="cache or redis://…",
    ),
    Option(
        "ssl-sessions-timeout",
        Kind.INT,
        _SESSIONS,
        "Life of a session and of a ticket.",
        aliases=("ssl-session-timeout",),
        field="sessions.timeout",
        parse=lambda text: int(values.seconds(1.0)(text)),
        unit="seconds",
    ),
    Option(
        "ssl-sessions-deadline",
        Kind.INT,
        _SESSIONS,
        "Longest time that a handshake waits for Redis.",
        field="sessions.deadline",
        parse=values.seconds(0.001, 10.0),
        unit="seconds",
        uwsgi=False,
    ),
    Option(
        "ssl-tickets",
        Kind.BOOL,
        _SESSIONS,
        "Session tickets. With ssl-sessions-use-cache they are off (as in uWSGI) unless this, or"
        " ssl-ticket-keys, is given.",
        field="tickets.enabled",
        parse=values.boolean,
        uwsgi=False,
    ),
    Option(
        "ssl-ticket-rotate",
        Kind.INT,
        _SESSIONS,
        "Time after which new tickets have another key; old keys are accepted until their tickets"
        " are too old.",
        field="tickets.rotate",
        parse=values.seconds(1.0),
        unit="seconds",
        uwsgi=False,
    ),
    Option(
        "ssl-ticket-keys",
        Kind.STRING,
        _SESSIONS,
        "Keys of tickets that several machines share: a file (keys of 80 or 48 bytes; the first"
        " one encrypts), read again when it changes, or Redis.",
        aliases=("ssl-ticket-key-file",),
        parse=tls_values.ticket_keys,
        unit="file or redis://…",
        uwsgi=False,
    ),
)

_CACHE = (
    Option(
        "cache",
        Kind.INT,
        _CACHES,
        "Make the cache named default with this number of slots (one of them is reserved).",
        parse=cache_values.items,
        unit="items",
    ),
    Option(
        "cache-blocksize",
        Kind.INT,
        _CACHES,
        "Size of the largest value in it (65536).",
        parse=cache_values.blocksize,
        unit="bytes",
    ),
    Option(
        "cache-udp-server",
        Kind.LIST,
        _CACHES,
        "UDP address where changes of other machines arrive; that of a group is joined.",
        parse=cache_values.receiver,
        unit="address",
        repeatable=True,
    ),
    Option(
        "cache-udp-node",
        Kind.LIST,
        _CACHES,
        "UDP address of another machine, or of a group, that changes are sent to.",
        parse=cache_values.target,
        unit="address",
        repeatable=True,
    ),
    Option(
        "cache-secret",
        Kind.STRING,
        _CACHES,
        "Changes are encrypted with this secret, and accepted only so; uWSGI cannot take part.",
        parse=cache_values.secret,
        unit="text",
        uwsgi=False,
        secret=True,
    ),
    Option(
        "cache-sync",
        Kind.LIST,
        _CACHES,
        "Without effect: there is no full copy from another machine at start.",
        unit="address",
        repeatable=True,
    ),
    Option(
        "cache2",
        Kind.LIST,
        _CACHES,
        "Make a cache by names: name, items, blocksize, keysize, blocks, hash, hashsize, and udp,"
        " node (addresses with ; between them), secret.",
        parse=cache_values.cache2,
        unit="name=value,…",
        repeatable=True,
    ),
    Option(
        "multicast-ttl",
        Kind.INT,
        _CACHES,
        "Number of routers that changes sent to a group may pass (1).",
        parse=values.integer(0, 255),
    ),
    Option(
        "multicast-loop",
        Kind.INT,
        _CACHES,
        "Whether changes sent to a group arrive on this machine, too: 0 or 1 (1).",
        parse=values.integer(0, 1),
    ),
)

_STATS = (
    Option(
        "stats",
        Kind.STRING,
        "stats",
        "The same as http-stats: an instance has its statistics at one address.",
        aliases=("stats-server",),
        parse=addresses.bindable,
        unit="address",
    ),
)

TLS_OPTIONS: tuple[Option, ...] = (
    _LISTENERS + _CONTEXTS + _SERVER_NAMES + _KEPT + _CACHE + _STATS
)
"""Topics ``tls``, ``sni``, ``sessions`` and ``caches``, and an alias of ``stats``."""
