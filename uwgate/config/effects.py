"""Options that do nothing because another one is missing: most likely a slip of the pen."""

from __future__ import annotations

from uwgate.config.compose_nodes import GATEWAYS
from uwgate.config.found import Found
from uwgate.config.model import Problems

_SERVERS = tuple(f"{router}-subscription-server" for router in GATEWAYS)
_ANNOUNCED = ("subscribe-to", "subscribe2")

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
)


def check_effects(found: Found, problems: Problems) -> None:
    """Warn of them; of those of a gateway that does not listen somebody else does."""
    for names, needed in _NEEDS:
        if any(found.all(each) or each in found.refused for each in needed):
            continue
        for name in names:
            each = found.last(name)
            router = name.partition("-")[0]
            if each is None or not each.value or (router in GATEWAYS and not found.all(router)):
                continue
            message = f"has no effect without {' or '.join(needed)}"
            problems.warn(each.item.origin, each.item.key, message)
