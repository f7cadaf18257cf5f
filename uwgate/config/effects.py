"""Options that do nothing because another one is missing: most likely a slip of the pen."""

from __future__ import annotations

from uwgate.config.compose_nodes import GATEWAYS, serves
from uwgate.config.found import Found
from uwgate.config.model import Problems

_SERVERS = tuple(f"{router}-subscription-server" for router in GATEWAYS)
_ANNOUNCED = ("subscribe-to", "subscribe2")
_HTTPS = ("https", "https2")

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
    (("multicast-ttl", "multicast-loop"), ("cache-udp-server", "cache-udp-node", "cache2")),
)


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
