"""Frozen settings of TLS: listeners, names, client certificates, sessions, tickets, caches.

File names are absolute. A certificate, key or CA may also be inline PEM text (it begins with
``-----BEGIN ``), which only ``ssl-tmp-dir`` allows. Times are seconds, sizes bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class PairSettings:
    """Certificate chain, key and what belongs to them: one context.

    ``ciphers``: OpenSSL list for TLS 1.2 and older, "" = the default. ``client_ca``: CA file that
    client certificates are verified against, "" = none is asked for; ``client_required``: the
    leading ``!``. Never shown: the key may be the text itself.
    """

    cert: str = field(repr=False)
    key: str = field(repr=False)
    ciphers: str = ""
    client_ca: str = field(default="", repr=False)
    client_required: bool = False


@dataclass(frozen=True, slots=True)
class ListenerTls:
    """TLS of one listener (``https``, ``https2``).

    ``context``: ``https-session-context``, else ``http-<address>``; listeners that share it resume
    each other's sessions. ``spdy``: offer SPDY/3.1, too.
    """

    pair: PairSettings
    context: str
    spdy: bool = False


@dataclass(frozen=True, slots=True)
class Redirect:
    """A listener that answers only redirects (``http-to-https``); ``port``: 0 = none is named."""

    port: int = 0


@dataclass(frozen=True, slots=True)
class SniSettings:
    """One ``sni`` or ``sni-regexp``.

    ``name`` in lower case: exact (``www.example.com``), one label more (``*.example.com``), any
    number of labels more (``.example.com``); or the text of a regular expression (of ``re``),
    searched in the name.
    """

    name: str
    pair: PairSettings


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """Where sessions are kept (``ssl-sessions-use-cache``).

    ``cache``: name of a cache, "" = none. ``url``: ``redis://``, ``rediss://`` or ``unix://``
    address of the distributed store, "" = none. At most one of them is set. ``timeout``: life of
    a session. ``deadline``: how long a handshake waits for the distributed store.
    """

    cache: str = ""
    url: str = field(default="", repr=False)  # may hold a password
    timeout: int = 300
    deadline: float = 0.05


@dataclass(frozen=True, slots=True)
class TicketSettings:
    """Session tickets. ``rotate``: seconds between new keys. ``source``: "" = keys of our own,
    else a file of keys or the address of the distributed store."""

    enabled: bool = True
    rotate: float = 3600.0
    source: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """What the TLS listeners of a gateway share (options ``ssl-*``, ``sni*``, ``https-*``)."""

    sni: tuple[SniSettings, ...] = ()
    sni_regexps: tuple[SniSettings, ...] = ()
    sni_dirs: tuple[str, ...] = ()
    sni_dir_ciphers: str = ""
    sni_strict: bool = False  # refuse names without a certificate
    sni_max_contexts: int = 1000  # contexts of sni-dir and subscriptions alive in a worker
    dotsplit: bool = False  # subscription-dotsplit
    enable_sslv3: bool = False
    enable_tlsv1: bool = False
    enable_tlsv11: bool = False
    options: int = 0  # OpenSSL's, OR-ed
    verify_depth: int = 1
    tmp_dir: str = ""
    verbose: bool = False
    alpn: tuple[str, ...] = ("h2", "http/1.1")
    sessions: SessionSettings = SessionSettings()
    tickets: TicketSettings = TicketSettings()


@dataclass(frozen=True, slots=True)
class CacheSettings:
    """One cache (``cache``, ``cache2``). ``udp``: addresses ``host:port`` where updates of other
    machines arrive, ``nodes``: where ours are sent; ``secret``: key of sealed updates."""

    name: str = "default"
    items: int = 0  # slots, the reserved one included (uWSGI)
    keysize: int = 2048
    blocksize: int = 65536
    blocks: int = 0  # 0 = items
    hash: str = "djb33x"
    hashsize: int = 65536
    udp: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()
    secret: str = field(default="", repr=False)
    multicast_loop: int = 1
    multicast_ttl: int = 1
