"""Options that do nothing because another one is missing: most likely a slip of the pen."""

from __future__ import annotations

from uwgate.config.compose_master import ATTACH
from uwgate.config.compose_nodes import ALL_LISTENERS, GATEWAYS, serves
from uwgate.config.compose_static import PLACES, has_places, is_serving, names_paths
from uwgate.config.found import Found
from uwgate.config.model import Problems

_SERVERS = tuple(f"{router}-subscription-server" for router in GATEWAYS)
_ANNOUNCED = ("subscribe-to", "subscribe2")
_HTTPS = ("https", "https2")
_ZERGS = tuple(ATTACH)

# (options, at least one of which they need)
_NEEDS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    *(
        (
            (f"{router}-resubscribe", f"{router}-subscription-fallback-key", f"{router}-cheap"),
            (f"{router}-subscription-server",),
        )
        for router in GATEWAYS
    ),
    (("fastrouter-resubscribe-bind",), ("fastrouter-resubscribe",)),
    (("fastrouter-post-buffering-dir",), ("fastrouter-post-buffering",)),
    (("fastrouter-fallback-on-no-key",), ("fastrouter-fallback",)),
    (("http-sticky",), ("http-to", "http-subscription-server")),
    (
        (
            "subscription-algo",
            "subscription-tolerance",
            "subscription-dotsplit",
            "subscription-mountpoints",
            "subscription-slow-start",
            "subscription-state",
            "subscriptions-sign-check",
            "subscriptions-credentials-check",
            "subscription-max-keys",
            "subscription-max-nodes",
            "subscription-max-sender-nodes",
            "subscription-max-rate",
        ),
        _SERVERS,
    ),
    (("subscriptions-sign-check-tolerance",), ("subscriptions-sign-check",)),
    (
        (
            "subscribe-freq",
            "start-unsubscribed",
            "unsubscribe-on-graceful-reload",
            "subscription-clear-on-shutdown",
        ),
        _ANNOUNCED,
    ),
    (
        (
            "https-session-context",
            "https-export-cert",
            "https-client-headers",
            "https-hsts",
            "ssl-verify-depth",
            "ssl-option",
            "ssl-tmp-dir",
            "ssl-verbose",
            "ssl-enable-sslv3",
            "ssl-enable-tlsv1",
            "ssl-enable-tlsv11",
            "ssl-sessions-use-cache",
            "ssl-sessions-timeout",
            "ssl-sessions-deadline",
            "ssl-tickets",
            "ssl-ticket-rotate",
            "ssl-ticket-keys",
            "sni",
            "sni-regexp",
            "sni-dir",
            "sni-dir-ciphers",
            "sni-strict",
            "sni-max-contexts",
        ),
        _HTTPS,
    ),
    (
        ("cache-blocksize", "cache-udp-server", "cache-udp-node", "cache-secret", "cache-sync"),
        ("cache",),
    ),
    (("die-on-idle",), ("idle",)),
    (("zerg-fallback",), _ZERGS),
    (("zerg-server",), (*ALL_LISTENERS, *_ZERGS)),
    (
        (
            "log-maxsize",
            "log-backupname",
            "log-reopen",
            "log-truncate",
            "logfile-chmod",
            "logfile-chown",
            "touch-logrotate",
        ),
        ("logto", "daemonize", "daemonize2"),
    ),
    (("multicast-ttl", "multicast-loop"), ("cache-udp-server", "cache-udp-node", "cache2")),
)

# Options of static files, where no file is served.
_STATIC = (
    "static-index", "static-skip-ext", "static-safe", "static-dotfiles", "static-autoindex",
    "static-cache-paths", "static-expires", "static-expires-mtime", "static-expires-path-info",
    "static-expires-path-info-mtime", "static-expires-uri", "static-expires-uri-mtime",
    "static-expires-type", "static-expires-type-mtime", "mimefile", "static-charset",
    "static-gzip-all", "static-gzip", "static-gzip-dir", "static-gzip-ext", "honour-range",
)  # fmt: skip
_OF_PLACES = ("static-index", "static-skip-ext", "static-dotfiles", "static-autoindex")


def check_effects(found: Found, problems: Problems) -> None:
    """Warn of them; of those of a gateway that does not listen somebody else does."""
    for names, needed in _NEEDS:
        if any(found.all(each) or each in found.refused for each in needed):
            continue
        for name in names:
            each = found.last(name)
            router = name.partition("-")[0]
            if each is None or not each.value or (router in GATEWAYS and not serves(found, router)):
                continue
            message = f"has no effect without {' or '.join(needed)}"
            problems.warn(each.item.origin, each.item.key, message)
    _check_static(found, problems)


def _check_static(found: Found, problems: Problems) -> None:
    """Options of files that are not served, or that nodes cannot name in this way."""
    useless: list[tuple[str, str]] = []
    if not serves(found, "http"):
        if serves(found, "fastrouter"):
            useless += [(name, "http") for name in (*PLACES, "http-sendfile", "file-serve-mode")]
    elif not is_serving(found):
        needed = f"{', '.join(PLACES)} or http-sendfile"
        useless += [(name, needed) for name in _STATIC]
    elif not has_places(found):  # nodes name files by their exact names
        useless += [(name, " or ".join(PLACES)) for name in _OF_PLACES]
    if serves(found, "http") and not names_paths(found):
        useless.append(("static-accel", "http-sendfile or file-serve-mode = x-accel-redirect"))
    for name, needed in useless:
        each = found.last(name)
        if each is not None and each.value not in (False, 0):
            problems.warn(each.item.origin, each.item.key, f"has no effect without {needed}")
