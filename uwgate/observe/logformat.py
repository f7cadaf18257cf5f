"""Formats of the request log: a format string becomes one function from facts to a line.

``default``, one line a request, ends with what tells where its time went and why it ended::

    CLIENT:PORT [21/Nov/2026:03:18:00 +0000] HOST "METHOD TARGET PROTOCOL" STATUS NODE ATTEMPTS \
CONNECT/FIRST/TOTAL IN/HEAD/BODY REASON

Times are milliseconds since the request began (connected, first response byte, end; ``-1``: never
happened), bytes are request body, response head and response body, REASON is ``ok`` or a word of
``router/errors.py``. ``-`` stands for what there is none of.

``json`` has the same facts as one object a line. Anything else is a template in the manner of
uWSGI's ``log-format`` (see ``logvars``). Unlike uWSGI's, every value that a client may have chosen
is escaped (see ``escape``).
"""

from __future__ import annotations

import re
from collections.abc import Callable

from uwgate.observe.escape import escape, escape_json, escape_word
from uwgate.observe.logvars import (
    Environment,
    address,
    forwarded_for,
    millis,
    node_name,
    timestamp,
    variable,
)
from uwgate.router.facts import RequestFacts

Formatter = Callable[[RequestFacts], str]
"""From the facts of a request to its line with line feed; ASCII, but for a template's own text."""

_VARIABLE = re.compile(r"%\(([^()]*)\)")


def compile_format(text: str, environment: Environment) -> Formatter:
    """``default``, ``json`` or a template; unknown variables give ``-``, nothing is an error."""
    if text == "default":
        return _default(environment)
    if text == "json":
        return _json(environment)
    return _template(text, environment)


def _template(text: str, environment: Environment) -> Formatter:
    literals: list[str] = []
    values: list[Callable[[RequestFacts], str]] = []
    end = 0
    for found in _VARIABLE.finditer(text):
        literals.append(text[end : found.start()].replace("%", "%%"))
        values.append(variable(found[1], environment))
        end = found.end()
    pattern = "%s".join([*literals, text[end:].replace("%", "%%")]) + "\n"
    return lambda facts: pattern % tuple([value(facts) for value in values])


def _client(facts: RequestFacts) -> str:
    client = escape_word(facts.client)
    if client == "-":
        return client
    return f"[{client}]:{facts.client_port}" if ":" in client else f"{client}:{facts.client_port}"


def _forwarded_client(facts: RequestFacts) -> str:
    value = forwarded_for(facts)
    return escape_word(value) if value else _client(facts)


def _default(environment: Environment) -> Formatter:
    stamp = timestamp("%d/%b/%Y:%H:%M:%S %z")
    client = _forwarded_client if environment.x_forwarded_for else _client

    def line(facts: RequestFacts) -> str:
        request = escape(b"%b %b %b" % (facts.method, facts.target, facts.protocol))
        failure = facts.failure
        return (
            f"{client(facts)} [{stamp(facts)}] {escape_word(facts.host)}"
            f' "{request}" {facts.status}'
            f" {node_name(facts.node)} {facts.attempts}"
            f" {millis(facts.connect_micros)}/{millis(facts.first_byte_micros)}"
            f"/{millis(facts.total_micros)}"
            f" {facts.request_body}/{facts.response_head}/{facts.response_body}"
            f" {'ok' if failure is None else failure.word}\n"
        )

    return line


def _json(environment: Environment) -> Formatter:
    stamp = timestamp("%Y-%m-%dT%H:%M:%S", utc=True)
    client = address(environment.x_forwarded_for)

    def line(facts: RequestFacts) -> str:
        failure = facts.failure
        return (
            f'{{"time":"{stamp(facts)}.{int(facts.started * 1000) % 1000:03d}Z",'
            f'"client":{escape_json(client(facts))},'
            f'"client_port":{facts.client_port},'
            f'"host":{escape_json(facts.host)},'
            f'"method":{escape_json(facts.method)},'
            f'"target":{escape_json(facts.target)},'
            f'"protocol":{escape_json(facts.protocol)},'
            f'"status":{facts.status},'
            f'"node":{escape_json(facts.node.encode("utf-8", "surrogateescape"))},'
            f'"attempts":{facts.attempts},'
            f'"connect_us":{facts.connect_micros},'
            f'"first_byte_us":{facts.first_byte_micros},'
            f'"total_us":{facts.total_micros},'
            f'"request_body":{facts.request_body},'
            f'"response_head":{facts.response_head},'
            f'"response_body":{facts.response_body},'
            f'"keepalive":{"true" if facts.keepalive else "false"},'
            f'"reason":"{"ok" if failure is None else failure.word}"}}\n'
        )

    return line
