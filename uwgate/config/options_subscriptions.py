"""Rows of the subscription servers: nodes that announce themselves, and how they are used."""

from __future__ import annotations

from typing import get_args

from uwgate.config import subscription_values, values
from uwgate.config.model import Kind, Option, State
from uwgate.config.settings import Algo

_TOPIC = "subscriptions"


def _router_rows(router: str, what: str) -> tuple[Option, ...]:
    """The rows that every kind of gateway has under its own prefix."""
    return (
        Option(
            f"{router}-subscription-server",
            Kind.ADDRESS,
            _TOPIC,
            f"Address (UDP or unix datagram) where nodes of {what} announce themselves.",
            parse=subscription_values.datagram,
            unit="address",
            repeatable=True,
        ),
        Option(
            f"{router}-subscription-fallback-key",
            Kind.STRING,
            _TOPIC,
            "Key to look up when there is no node for the key of a request.",
            parse=subscription_values.key,
            unit="key",
        ),
        Option(
            f"{router}-resubscribe",
            Kind.LIST,
            _TOPIC,
            "Another router's subscription server, which is told of every key that is served here.",
            parse=subscription_values.target,
            unit="address",
            repeatable=True,
        ),
        Option(
            f"{router}-cheap",
            Kind.FLAG,
            _TOPIC,
            "Accept connections only while there is a node.",
            field=f"{router}.cheap",
            parse=values.boolean,
        ),
    )


_ROUTERS = (
    *_router_rows("http", "the HTTP router"),
    *_router_rows("fastrouter", "the fastrouter"),
    Option(
        "fastrouter-resubscribe-bind",
        Kind.STRING,
        _TOPIC,
        "UDP address from which fastrouter-resubscribe sends.",
        parse=subscription_values.datagram,
        unit="address",
    ),
    Option(
        "fastrouter-subscription-slot",
        Kind.STRING,
        _TOPIC,
        "Without a meaning in uWSGI as well.",
        state=State.NOTHING,
    ),
)

_USE = (
    Option(
        "subscription-algo",
        Kind.STRING,
        _TOPIC,
        "How one of a key's nodes is picked, where their announcements do not say.",
        field="subscriptions.algo",
        parse=values.choice(*get_args(Algo)),
        unit=", ".join(get_args(Algo)),
    ),
    Option(
        "subscription-tolerance",
        Kind.INT,
        _TOPIC,
        "How long a node may be silent before it is dropped.",
        field="subscriptions.tolerance",
        parse=values.seconds(low=1.0),
        unit="seconds",
    ),
    Option(
        "subscription-dotsplit",
        Kind.FLAG,
        _TOPIC,
        "Look a key up from its next dots on as well: .example.com serves a.example.com.",
        field="subscriptions.dotsplit",
        parse=values.boolean,
    ),
    Option(
        "subscription-mountpoints",
        Kind.OPTIONAL_INT,
        _TOPIC,
        "Segments of the path that belong to the key: example.com/app is a key with 1.",
        aliases=("subscription-mountpoint",),
        field="subscriptions.mountpoints",
        parse=subscription_values.mountpoints,
        unit="0 to 16",
    ),
    Option(
        "subscription-slow-start",
        Kind.INT,
        _TOPIC,
        "Time over which a new node comes to its full weight; 0 is at once.",
        field="subscriptions.slow_start",
        parse=values.seconds(low=0.0),
        unit="seconds",
        uwsgi=False,
    ),
    Option(
        "subscription-state",
        Kind.STRING,
        _TOPIC,
        "File that keeps the nodes over a restart.",
        field="subscriptions.state",
        parse=values.filename,
        unit="file",
        uwsgi=False,
    ),
)

_RULES = (
    Option(
        "subscriptions-sign-check",
        Kind.STRING,
        _TOPIC,
        "Accept signed announcements only; DIR/<key>.pem is the public key of a key.",
        parse=subscription_values.sign_check,
        unit="DIGEST:DIR",
    ),
    Option(
        "subscriptions-sign-check-tolerance",
        Kind.INT,
        _TOPIC,
        "How old a signed announcement may be, or how far in the future.",
        field="subscriptions.sign_tolerance",
        parse=values.seconds(low=1.0),
        unit="seconds",
    ),
    Option(
        "subscriptions-sign-skip-uid",
        Kind.LIST,
        _TOPIC,
        "User (not root) on a unix server whose announcements need no signature.",
        aliases=("subscription-sign-skip-uid",),
        parse=values.user,
        unit="name or number",
        repeatable=True,
    ),
    Option(
        "subscriptions-use-credentials",
        Kind.FLAG,
        _TOPIC,
        "Ask the kernel who sends on unix servers, and send credentials as a client.",
        field="subscriptions.use_credentials",
        parse=values.boolean,
    ),
    Option(
        "subscriptions-credentials-check",
        Kind.LIST,
        _TOPIC,
        "Accept an announcement only if the file DIR/<key> belongs to its sender.",
        parse=values.filename,
        unit="directory",
        repeatable=True,
    ),
    Option(
        "subscription-max-keys",
        Kind.INT,
        _TOPIC,
        "Most keys of a gateway.",
        field="subscriptions.max_keys",
        parse=values.integer(1, 100_000_000),
        uwsgi=False,
    ),
    Option(
        "subscription-max-nodes",
        Kind.INT,
        _TOPIC,
        "Most nodes of a key.",
        field="subscriptions.max_nodes",
        parse=values.integer(1, 10_000_000),
        uwsgi=False,
    ),
    Option(
        "subscription-max-sender-nodes",
        Kind.INT,
        _TOPIC,
        "Most nodes that one sender (an IP address, or a user) may announce; 0 is no limit.",
        field="subscriptions.max_sender_nodes",
        parse=values.integer(0, 100_000_000),
        uwsgi=False,
    ),
    Option(
        "subscription-max-rate",
        Kind.INT,
        _TOPIC,
        "Most packets a second of one sender; what is more is dropped unread; 0 is no limit.",
        field="subscriptions.max_rate",
        parse=values.integer(0, 100_000_000),
        unit="packets/s",
        uwsgi=False,
    ),
)

SUBSCRIPTION_OPTIONS = _ROUTERS + _USE + _RULES
"""Topic ``subscriptions``, in the order of the documentation."""
