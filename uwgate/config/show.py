"""``--show-config``: the effective configuration as an INI text that gives the same settings."""

from __future__ import annotations

import re
from dataclasses import MISSING, fields
from typing import Any

from uwgate.config.build import Configuration
from uwgate.config.compose_master import ATTACH, TOUCHES
from uwgate.config.found import Value
from uwgate.config.masking import HIDDEN, masked
from uwgate.config.model import Kind, Option
from uwgate.config.options import OPTIONS
from uwgate.config.settings import (
    AnnounceSettings,
    Endpoint,
    FastSettings,
    Http2Settings,
    HttpSettings,
    ProcessSettings,
    RequestLogSettings,
    Settings,
    SubscriptionSettings,
)
from uwgate.config.settings_process import LifeSettings, MainLogSettings, ZergSettings
from uwgate.config.settings_static import StaticSettings
from uwgate.config.settings_tls import SessionSettings, TicketSettings, TlsSettings

_SECTIONS: dict[str, type[Any]] = {
    "announce": AnnounceSettings,
    "fastrouter": FastSettings,
    "http": HttpSettings,
    "http2": Http2Settings,
    "life": LifeSettings,
    "main_log": MainLogSettings,
    "process": ProcessSettings,
    "request_log": RequestLogSettings,
    "sessions": SessionSettings,
    "static": StaticSettings,
    "subscriptions": SubscriptionSettings,
    "tickets": TicketSettings,
    "tls": TlsSettings,
    "zerg": ZergSettings,
}


# Their order among each other means something.
_TOGETHER = (
    ("http", "https", "https2", "http-to-https", "https-session-context"),
    TOUCHES,
    tuple(ATTACH),
)
_GROUPS = {name: group for group in _TOGETHER for name in group}


def default_of(row: Option) -> object:
    """The default of the settings field behind a row; None where there is none."""
    section, _, name = row.field.partition(".")
    if section not in _SECTIONS:
        return None
    for field in fields(_SECTIONS[section]):
        if field.name == name and field.default is not MISSING:
            return field.default
    return None


def text_of(value: object) -> str:
    """A setting's value as one would write it; empty for "not set"."""
    if value is None or value == ():
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Endpoint):
        return value.text
    if isinstance(value, float):
        return f"{value:.15g}"
    return str(value)


def default_text(row: Option) -> str:
    """The default as shown in documentation and ``--show-config``; empty where there is none."""
    return row.default or text_of(default_of(row))


def _escape(value: str) -> str:
    """Percent signs are magic in files, except before a parenthesis; line ends cannot be kept."""
    return re.sub(r"%(?!\()", "%%", value).replace("\r", " ").replace("\n", " ")


def _line(each: Value) -> str:
    value = HIDDEN if each.row.secret else masked(each.item.value)
    if not value and each.row.kind is Kind.FLAG:
        value = "true"
    return f"{each.row.name} = {_escape(value)}".rstrip()


def _effective(settings: Settings, row: Option) -> object:
    """The value in force: it may follow from another option (as timeouts do)."""
    section, _, name = row.field.partition(".")
    part: object = settings
    if section in ("tls", "sessions", "tickets"):
        part = settings.http and settings.http.tls
    if section in ("static", "http2"):
        part = settings.http and getattr(settings.http, section)
    elif section != "tls":
        part = part and getattr(part, section)
    return getattr(part, name) if part is not None else None


def _default_line(settings: Settings, row: Option) -> str:
    value = text_of(_effective(settings, row)) if row.field else row.default
    return f"{row.name} = {_escape(value)}" if value else ""


def show(configuration: Configuration, settings: Settings) -> str:
    """One line a value, each after a comment that says where it comes from.

    Keys, passwords and secrets are masked: with them, the text gives other settings.
    """
    lines = ["[uwsgi]"]
    for row in OPTIONS:
        given = [each for each in configuration.found.accepted if _same(each.row, row)]
        group = _GROUPS.get(row.name)
        if group is not None and row.name != group[0]:
            continue
        if group is not None:
            given = configuration.found.all(*group)
        if given and not row.repeatable and row.name != "error-page-NNN":
            given = given[-1:]
        for each in given:
            lines += [f"; {each.item.origin}", _line(each)]
        default = "" if given else _default_line(settings, row)
        if default:
            lines += ["; default", default]
    return "\n".join(lines) + "\n"


def _same(row: Option, other: Option) -> bool:
    family = row.name.startswith("error-page-") and other.name.startswith("error-page-")
    return family or row.name == other.name
