"""Rows of the subscription client: how this instance announces itself to routers above it."""

from __future__ import annotations

from uwgate.config import subscribe, values
from uwgate.config.model import Kind, Option

_TOPIC = "announce"

CLIENT_OPTIONS: tuple[Option, ...] = (
    Option(
        "subscribe-to",
        Kind.LIST,
        _TOPIC,
        "Announce this instance: [ADDRESS=]SERVER:KEY[,MODIFIER1[,DIGEST:KEYFILE]] or"
        " [ADDRESS=]SERVER:@FILE; ADDRESS =N is a shared-socket.",
        aliases=("st", "subscribe"),
        parse=subscribe.subscribe_to,
        unit="[address=]server:key",
        repeatable=True,
    ),
    Option(
        "subscribe2",
        Kind.LIST,
        _TOPIC,
        "Announce this instance: server, key and optionally addr, socket, weight, modifier1,"
        " modifier2, backup, algo, proto, sign, check, sni_key, sni_crt, sni_ca, vassal.",
        parse=subscribe.subscribe2,
        unit="name=value,…",
        repeatable=True,
    ),
    Option(
        "subscribe-freq",
        Kind.INT,
        _TOPIC,
        "Time from one announcement to the next.",
        field="announce.frequency",
        parse=values.seconds(0.1, 86400.0),
        unit="seconds",
    ),
    Option(
        "subscribe-with-modifier1",
        Kind.STRING,
        _TOPIC,
        "The modifier1 of every announcement, whatever its option says.",
        field="announce.modifier1",
        parse=subscribe.modifier,
    ),
    Option(
        "weight",
        Kind.INT,
        _TOPIC,
        "The announced weight, where subscribe2 has none of its own; 0 counts as 1.",
        field="announce.weight",
        parse=subscribe.weight,
    ),
    Option(
        "start-unsubscribed",
        Kind.FLAG,
        _TOPIC,
        "Announce nothing until told to.",
        field="announce.start_unsubscribed",
        parse=values.boolean,
    ),
    Option(
        "unsubscribe-on-graceful-reload",
        Kind.FLAG,
        _TOPIC,
        "Withdraw the announcements before a graceful reload, too.",
        field="announce.unsubscribe_on_reload",
        parse=values.boolean,
    ),
    Option(
        "subscription-clear-on-shutdown",
        Kind.FLAG,
        _TOPIC,
        "Entries of subscribe2 say clear=1 at the end instead of withdrawing (uWSGI 2.1).",
        field="announce.clear_on_shutdown",
        parse=values.boolean,
        uwsgi=False,
    ),
    Option(
        "notify-socket",
        Kind.STRING,
        _TOPIC,
        "Unix datagram socket to bind; what arrives is logged, and servers send their"
        " acknowledgements there.",
        field="announce.notify_socket",
        parse=subscribe.notify_path,
        unit="path",
    ),
    Option(
        "subscription-notify-socket",
        Kind.STRING,
        _TOPIC,
        "The path that is announced for acknowledgements, instead of that of notify-socket.",
        field="announce.announced_notify_socket",
        parse=subscribe.notify_path,
        unit="path",
    ),
)
"""Rows of the subscription client."""
