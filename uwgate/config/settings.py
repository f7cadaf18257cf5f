"""Frozen settings: the only part of ``config`` that the rest of the program sees.

Everything here is already validated: an instance never holds a value that the gateway would
have to check again. Times are seconds, sizes are bytes, counts are plain integers. ``0`` means
"off" or "no limit" only where a field says so.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from typing import Literal

from uwgate.config.settings_process import LifeSettings, MainLogSettings, ZergSettings
from uwgate.config.settings_static import StaticSettings
from uwgate.config.settings_tls import CacheSettings, ListenerTls, Redirect, TlsSettings

Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A socket address, to listen on or to connect to.

    ``text`` is what the operator wrote (it names the socket in logs and stats).

    ========  =====================================================================
    kind      fields
    ========  =====================================================================
    tcp       ``host`` (IPv4/IPv6 literal without brackets, name, or "" = any), ``port``
    unix      ``path``: file system path
    abstract  ``path``: name without the leading ``@``; on the wire NUL + name + NUL (uWSGI)
    fd        ``number``: inherited descriptor (``fd://N``); listening only
    shared    ``number``: index of a ``shared-socket`` (``=N``); listening only
    ========  =====================================================================
    """

    kind: Literal["tcp", "unix", "abstract", "fd", "shared"]
    text: str
    host: str = ""
    port: int = 0
    path: str = ""
    number: int = 0


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """One static node (``http-to``, ``http-fallback``), or the pattern of a mapped one.

    ``modifier1``/``modifier2`` are None where the node does not say; ``http-modifier1/2``
    then decide. ``weight`` >= 1. ``backup``: only the lowest level that has a living node is used.
    """

    endpoint: Endpoint
    protocol: Literal["uwsgi", "http"] = "uwsgi"
    modifier1: int | None = None
    modifier2: int | None = None
    weight: int = 1
    backup: int = 0


@dataclass(frozen=True, slots=True)
class MapperSettings:
    """How a routing key (the Host value) becomes a node; exactly one is active.

    ``static``: the ``nodes`` list. ``base``: ``value`` + key. ``pattern``: ``value`` with ``%s``
    replaced by the key. ``code``: ``function`` of Python file ``value`` is called with the key and
    returns ``"addr[,modifier1]"`` or None (plain or async), within ``code_timeout`` seconds.
    ``subscription``: the table of nodes that announced themselves.
    """

    kind: Literal["static", "base", "pattern", "code", "subscription"] = "static"
    value: str = ""
    function: str = ""
    modifier1: int = 0
    code_timeout: float = 1.0


Algo = Literal["wrr", "wrr-uwsgi", "lrc", "wlrc", "iphash", "p2c", "hash"]
"""How one of several nodes is picked; see ``subscriptions.algorithms``."""


@dataclass(frozen=True, slots=True)
class HashBy:
    """What ``hash`` looks at: ``kind`` of a request, and the ``name`` of the field or cookie.

    The name of a field is in lower case.
    """

    kind: Literal["path", "uri", "header", "cookie", "client"] = "path"
    name: str = ""

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}" if self.name else self.kind


@dataclass(frozen=True, slots=True)
class SubscriptionSettings:
    """Who may announce nodes and how they are used (options ``subscription-*``), for all gateways.

    ``sign_digest``/``sign_directory``: ``subscriptions-sign-check``, both empty where signatures
    are not checked. ``credentials``: the prefixes of ``subscriptions-credentials-check``.
    """

    algo: Algo = "wrr"
    tolerance: float = 17.0  # seconds without an announcement after which a node is dropped
    dotsplit: bool = False
    mountpoints: int = 0  # segments of the path that belong to the key; 0 = none
    slow_start: float = 0.0  # seconds over which a new node comes to its full weight
    state: str = ""  # file that keeps the table over a restart
    sign_digest: str = ""
    sign_directory: str = ""
    sign_tolerance: float = 86400.0
    sign_skip_uids: frozenset[int] = frozenset()
    use_credentials: bool = False
    credentials: tuple[str, ...] = ()
    max_keys: int = 1_000_000
    max_nodes: int = 10_000  # of one key
    max_rate: int = 20_000  # packets a second of one sender; 0 = no limit
    max_sender_nodes: int = 100_000  # nodes that one sender may have announced; 0 = no limit


@dataclass(frozen=True, slots=True)
class RouterSubscriptions:
    """The subscriptions of one gateway (``http-subscription-server`` and its relatives).

    ``servers``, ``resubscribe``: datagram addresses, kind ``tcp`` meaning UDP, or ``unix``.
    """

    common: SubscriptionSettings
    servers: tuple[Endpoint, ...]
    fallback_key: str = ""
    resubscribe: tuple[Endpoint, ...] = ()
    resubscribe_bind: Endpoint | None = None


@dataclass(frozen=True, slots=True)
class SubscribeSettings:
    """One ``subscribe-to`` or ``subscribe2``: what to announce, and to whom.

    ``server``: datagram address (``tcp`` meaning UDP, or ``unix``). ``key_file``: the file of
    ``@FILE``, read at every announcement; ``key`` is empty then. ``address``: "" for the first
    listening address, ``=N`` for that of shared-socket N, ``*:PORT`` and ``[*]:PORT`` for the
    address that this machine has on the way to the server. ``check``: no packet is sent while this
    file exists (uWSGI).
    """

    server: Endpoint
    key: str = ""
    key_file: str = ""
    address: str = ""
    modifier1: int = 0
    modifier2: int = 0
    weight: int = 0
    backup: int = 0
    algo: str = ""
    protocol: Literal["uwsgi", "http"] = "uwsgi"
    sign_digest: str = ""
    sign_key: str = ""
    check: str = ""
    sni_key: str = ""
    sni_crt: str = ""
    sni_ca: str = ""
    vassal: str = ""
    clearable: bool = False  # subscribe2: subscription-clear-on-shutdown concerns it


@dataclass(frozen=True, slots=True)
class AnnounceSettings:
    """The subscription client of this instance."""

    entries: tuple[SubscribeSettings, ...] = ()
    frequency: float = 10.0  # subscribe-freq, seconds
    modifier1: int | None = None  # subscribe-with-modifier1
    weight: int = 0
    start_unsubscribed: bool = False
    unsubscribe_on_reload: bool = False
    notify_socket: str = ""
    announced_notify_socket: str = ""  # subscription-notify-socket, else notify_socket
    use_credentials: bool = False
    clear_on_shutdown: bool = False


@dataclass(frozen=True, slots=True)
class ListenerSettings:
    """One ``http``, ``https``, ``https2`` or ``http-to-https``: where to listen, and for what.

    ``tls``: None for clear text. ``redirect``: not None for ``http-to-https``.
    """

    endpoint: Endpoint
    tls: ListenerTls | None = None
    redirect: Redirect | None = None


@dataclass(frozen=True, slots=True)
class ErrorPage:
    """``error-page-NNN = FILE``: the file's bytes, read at start-up, and its media type."""

    body: bytes
    content_type: str


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """What all gateways have in common."""

    listeners: tuple[ListenerSettings, ...]
    nodes: tuple[NodeSettings, ...] = ()
    fallback: tuple[NodeSettings, ...] = ()
    mapper: MapperSettings = MapperSettings()
    algo: Algo = "wrr"
    hash_by: HashBy = HashBy()
    subscriptions: RouterSubscriptions | None = None
    cheap: bool = False  # accept only while there is a node
    processes: int = 1
    modifier1: int = 0
    modifier2: int = 0
    variables: tuple[tuple[bytes, bytes], ...] = ()  # http-var, in option order

    # Time limits, seconds.
    timeout: float = 60.0  # inactivity
    connect_timeout: float = 60.0
    node_keepalive_timeout: float = 60.0  # idle connection to an HTTP node
    node_keepalive: int = 256  # idle connections kept per HTTP node; 0 = none
    gracetime: float = 30.0  # how long a failed node is skipped
    max_retries: int = 3
    resolve_interval: float = 30.0  # host names of nodes are looked up again this often
    drain_timeout: float = 60.0  # in-flight requests get this long after SIGTERM

    # Limits, bytes.
    max_body: int = 0  # http-max-body; 0 = no limit
    body_buffer: int = 1 << 16  # bodies taken in whole: this much in memory, then a file
    max_spool: int = 1 << 30  # and never more than this

    # Behaviour.
    manage_expect: int = 0  # 0 off, 1 answer 100, >1 also the largest Content-Length allowed
    raw_body: bool = False
    chunked_input: bool = False  # uwsgi nodes get chunked bodies still chunked
    x_forwarded: bool = True  # set X-Forwarded-For/-Proto/-Host towards HTTP nodes
    forwarded: bool = False  # set RFC 7239 Forwarded towards nodes
    uid: int | None = None
    gid: int | None = None
    quiet: bool = False  # do not log connect failures


@dataclass(frozen=True, slots=True)
class Http2Settings:
    """HTTP/2 of the HTTP router's clients (options ``http2``, ``http2-*``)."""

    enabled: bool = True  # by ALPN, on listeners with TLS
    cleartext: bool = True  # by prior knowledge, on the others
    max_streams: int = 100  # SETTINGS_MAX_CONCURRENT_STREAMS
    node_requests: int = 32  # of a connection that wait for nodes at a time; 0: no bound
    window: int = 65536  # bytes of a request body that a client may send ahead
    connection_window: int = 1 << 20  # the same of all requests of a connection
    max_header_list: int = 32768  # bytes as RFC 9113 §6.5.2 counts them
    max_queued: int = 1 << 20  # bytes of responses that wait for a client's windows
    max_resets: int = 300  # streams that are given up at once, and within 15 s
    max_frames: int = 4000  # frames of no use, at once, and within 40 s


@dataclass(frozen=True, slots=True)
class HttpSettings(GatewaySettings):
    """The HTTP router (options ``http-*``)."""

    headers_timeout: float = 60.0  # absolute: a request head, first byte to last
    keepalive: bool = True
    keepalive_timeout: float = 60.0  # idle client between requests
    body_min_rate: int = 500  # bytes/s a request body must sustain after 20 s; 0 = off
    max_head: int = 65536  # bytes of request line and fields
    max_headers: int = 128  # number of fields
    auto_chunked: bool = True
    auto_gzip: bool = False
    manage_source: bool = False
    manage_rtsp: bool = False
    server_name_as_http_host: bool = False
    sticky: str = ""  # name of the cookie that keeps a client at its node; "" = none
    proxy_protocol: bool = False
    stud_prefix: tuple[str, ...] = ()  # addresses of TLS off-loaders
    trusted_proxies: tuple[Network, ...] = ()  # http-trusted-proxy: whose X-Forwarded-* is kept
    trust_unix: bool = False  # http-trusted-proxy = unix: peers of unix listeners are trusted
    via: str = "uwgate"  # pseudonym in Via towards HTTP nodes; "" = no Via
    allow_underscores: bool = False  # uwsgi nodes: keep header names with "_"
    error_pages: dict[int, ErrorPage] = field(default_factory=dict)
    tls: TlsSettings | None = None  # not None where a listener has TLS
    export_cert: bool = False  # https-export-cert: HTTPS_CC towards uwsgi nodes
    client_headers: bool = False  # https-client-headers: X-SSL-Client-* towards HTTP nodes
    hsts: str = ""  # value of Strict-Transport-Security on responses over TLS; "" = none
    static: StaticSettings | None = None  # not None where files are served
    http2: Http2Settings = Http2Settings()


@dataclass(frozen=True, slots=True)
class FastSettings(GatewaySettings):
    """The fastrouter (options ``fastrouter-*``)."""

    fallback_on_no_key: bool = False
    post_buffering: int = 0  # bytes of a body held in memory before it is sent on; 0 = off
    post_buffering_dir: str = ""  # where larger ones go; "" = the system's temporary directory


@dataclass(frozen=True, slots=True)
class RequestLogSettings:
    """The request log; None of it is active unless ``enabled``.

    ``format``: "default" (HAProxy-style facts), "json", or a uWSGI ``log-format`` template.
    ``path``: file, or "" for the main log (standard output).
    """

    enabled: bool = False
    format: str = "default"
    path: str = ""
    x_forwarded_for: bool = False  # log-x-forwarded-for


@dataclass(frozen=True, slots=True)
class ProcessSettings:
    """The master and what it binds."""

    listen: int = 1024  # backlog
    shared_sockets: tuple[Endpoint, ...] = ()
    undeferred: tuple[bool, ...] = ()  # same length: True = no TCP_DEFER_ACCEPT on that one
    reuse_port: bool = False
    freebind: bool = False
    defer_accept: int = 4  # seconds; 0 = off
    chmod_socket: int | None = None  # mode of unix sockets
    chown_socket: tuple[int, int] | None = None  # user and group of unix sockets; -1 = unchanged
    keepalive_probes: bool = False  # so-keepalive: probes on idle connections of clients
    send_buffer: int = 0  # socket-sndbuf; 0 = the kernel's choice
    receive_buffer: int = 0  # socket-rcvbuf
    fast_open: int = 0  # tcp-fast-open: queue of TCP_FASTOPEN; 0 = off
    umask: int | None = None
    uid: int | None = None
    gid: int | None = None
    add_gids: tuple[int, ...] = ()  # supplementary groups on top
    chroot: str = ""  # root directory of the workers
    capabilities: tuple[str, ...] = ()  # cap: kept over the change of user, lower case, no "cap_"
    pidfile: str = ""
    pidfile2: str = ""  # written after privileges are dropped
    safe_pidfile: str = ""  # written when everything is up
    safe_pidfile2: str = ""
    daemonize: str = ""  # log file; into the background before anything is bound
    daemonize2: str = ""  # log file; into the background when everything is up
    chdir: str = ""
    stats: Endpoint | None = None  # http-stats
    stats_minified: bool = False
    stats_http: bool = False
    log_file: str = ""  # logto; "" = standard error
    vacuum: bool = False
    respawn_delay: float = 1.0
    procname: str = "uwgate"


@dataclass(frozen=True, slots=True)
class Settings:
    """The whole configuration of one instance."""

    process: ProcessSettings = ProcessSettings()
    http: HttpSettings | None = None
    request_log: RequestLogSettings = RequestLogSettings()
    announce: AnnounceSettings = AnnounceSettings()
    subscriptions: SubscriptionSettings = SubscriptionSettings()
    fastrouter: FastSettings | None = None
    caches: tuple[CacheSettings, ...] = ()
    life: LifeSettings = field(default_factory=LifeSettings)
    main_log: MainLogSettings = field(default_factory=MainLogSettings)
    zerg: ZergSettings = field(default_factory=ZergSettings)
