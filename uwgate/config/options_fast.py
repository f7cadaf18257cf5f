"""Rows of the fastrouter: what uWSGI calls ``fastrouter-*``, and our extensions in the same style.

Its subscription servers are in ``options_subscriptions``, with those of the other gateways.
"""

from __future__ import annotations

from typing import get_args

from uwgate.config import addresses, values
from uwgate.config.model import Kind, Option, State
from uwgate.config.settings import Algo

_TOPIC = "fastrouter"
_MAX_SIZE = 1 << 50

_LISTEN = (
    Option(
        "fastrouter",
        Kind.ADDRESS,
        _TOPIC,
        "Address on which the uwsgi protocol is served: web servers connect here.",
        parse=addresses.listening,
        unit="address",
        repeatable=True,
    ),
    Option(
        "fastrouter-processes",
        Kind.INT,
        _TOPIC,
        "Number of worker processes of the fastrouter.",
        aliases=("fastrouter-workers",),
        field="fastrouter.processes",
        parse=values.integer(1, 64),
    ),
    Option(
        "fastrouter-uid",
        Kind.STRING,
        _TOPIC,
        "User that the fastrouter's workers run as.",
        field="fastrouter.uid",
        parse=values.user,
        unit="name or number",
    ),
    Option(
        "fastrouter-gid",
        Kind.STRING,
        _TOPIC,
        "Group that the fastrouter's workers run as.",
        field="fastrouter.gid",
        parse=values.group,
        unit="name or number",
    ),
    Option(
        "fastrouter-quiet",
        Kind.BOOL,
        _TOPIC,
        "Do not log failed connections to nodes.",
        field="fastrouter.quiet",
        parse=values.boolean,
    ),
    Option(
        "fastrouter-stats",
        Kind.STRING,
        _TOPIC,
        "Address of the statistics of the instance; the same as http-stats.",
        aliases=("fastrouter-stats-server", "fastrouter-ss"),
        parse=addresses.bindable,
        unit="address",
    ),
)

_NODE_ROWS = (
    Option(
        "fastrouter-to",
        Kind.LIST,
        _TOPIC,
        "Node to send requests to: ADDRESS or http://ADDRESS, with ,weight=N ,modifier1=N.",
        parse=addresses.node,
        unit="node",
        repeatable=True,
    ),
    Option(
        "fastrouter-fallback",
        Kind.LIST,
        _TOPIC,
        "Node to use when no other can serve a request; same form as fastrouter-to.",
        parse=addresses.node,
        unit="node",
        repeatable=True,
    ),
    Option(
        "fastrouter-fallback-on-no-key",
        Kind.FLAG,
        _TOPIC,
        "Let the fallback nodes serve requests that have no routing key, too.",
        field="fastrouter.fallback_on_no_key",
        parse=values.boolean,
    ),
    Option(
        "fastrouter-algo",
        Kind.STRING,
        _TOPIC,
        "How one of several nodes is picked; docs/http-router.md has a table.",
        field="fastrouter.algo",
        parse=values.choice(*get_args(Algo)),
        unit=", ".join(get_args(Algo)),
        uwsgi=False,
    ),
    Option(
        "fastrouter-hash-by",
        Kind.STRING,
        _TOPIC,
        "What fastrouter-algo = hash looks at.",
        field="fastrouter.hash_by",
        parse=values.hash_by,
        unit="path, uri, header:NAME, cookie:NAME, client",
        uwsgi=False,
    ),
    Option(
        "fastrouter-use-base",
        Kind.STRING,
        _TOPIC,
        "Node address is this text followed by the routing key.",
        parse=values.filename,
        unit="address prefix",
    ),
    Option(
        "fastrouter-use-pattern",
        Kind.STRING,
        _TOPIC,
        "Node address is this text with %s replaced by the routing key.",
        parse=values.filename,
        unit="address pattern",
    ),
    Option(
        "fastrouter-use-code-string",
        Kind.STRING,
        _TOPIC,
        "Ask a Python function (plain or async) for the node of a routing key.",
        parse=values.filename,
        unit="MODIFIER1:FILE:FUNCTION",
    ),
    Option(
        "fastrouter-code-timeout",
        Kind.INT,
        _TOPIC,
        "Time that the function of fastrouter-use-code-string may take.",
        parse=values.seconds(),
        unit="seconds",
        default="1",
        uwsgi=False,
    ),
    Option(
        "fastrouter-use-socket",
        Kind.OPTIONAL_INT,
        _TOPIC,
        "Send requests to the address of the N-th socket option (from 0).",
        parse=values.socket_number,
        unit="number",
    ),
    Option(
        "fastrouter-gracetime",
        Kind.INT,
        _TOPIC,
        "How long a node that failed is left out.",
        field="fastrouter.gracetime",
        parse=values.seconds(low=0.0),
        unit="seconds",
    ),
    Option(
        "fastrouter-max-retries",
        Kind.INT,
        _TOPIC,
        "Further attempts after a node could not be reached.",
        field="fastrouter.max_retries",
        parse=values.integer(0, 100),
    ),
    Option(
        "fastrouter-resolve-interval",
        Kind.INT,
        _TOPIC,
        "How often host names of nodes are looked up again.",
        field="fastrouter.resolve_interval",
        parse=values.seconds(low=0.1),
        unit="seconds",
        uwsgi=False,
    ),
    Option(
        "fastrouter-node-keepalive",
        Kind.INT,
        _TOPIC,
        "Idle connections kept per HTTP node and worker; 0 keeps none.",
        field="fastrouter.node_keepalive",
        parse=values.integer(0, 100_000),
        uwsgi=False,
    ),
)

_TIMES = (
    Option(
        "fastrouter-timeout",
        Kind.INT,
        _TOPIC,
        "Longest silence of a client or node; also the time for a whole packet.",
        field="fastrouter.timeout",
        parse=values.seconds(),
        unit="seconds",
    ),
    Option(
        "fastrouter-connect-timeout",
        Kind.INT,
        _TOPIC,
        "Time for one attempt to connect to a node.",
        field="fastrouter.connect_timeout",
        parse=values.seconds(),
        unit="seconds",
        default="fastrouter-timeout",
        uwsgi=False,
    ),
    Option(
        "fastrouter-drain-timeout",
        Kind.INT,
        _TOPIC,
        "Time that requests in flight get to finish when the fastrouter stops.",
        field="fastrouter.drain_timeout",
        parse=values.seconds(low=0.0),
        unit="seconds",
        uwsgi=False,
    ),
)

_BODIES = (
    Option(
        "fastrouter-post-buffering",
        Kind.INT,
        _TOPIC,
        "Take in whole bodies before a node is connected to: up to so many bytes in memory, more"
        " in a temporary file; 0 is off.",
        field="fastrouter.post_buffering",
        parse=values.size(0, 1 << 32),
        unit="bytes",
    ),
    Option(
        "fastrouter-post-buffering-dir",
        Kind.STRING,
        _TOPIC,
        "Directory of those temporary files, if not the system's (uWSGI ignores it).",
        parse=values.filename,
        unit="directory",
    ),
    Option(
        "fastrouter-max-spool",
        Kind.INT,
        _TOPIC,
        "Largest body that is taken in whole.",
        field="fastrouter.max_spool",
        parse=values.size(0, _MAX_SIZE),
        unit="bytes",
        uwsgi=False,
    ),
    Option(
        "fastrouter-max-body",
        Kind.INT,
        _TOPIC,
        "Largest request body; 0 is no limit.",
        field="fastrouter.max_body",
        parse=values.size(0, _MAX_SIZE),
        unit="bytes",
        uwsgi=False,
    ),
    Option(
        "fastrouter-events",
        Kind.INT,
        _TOPIC,
        "Size of uWSGI's event batches; the event loop here needs no such number.",
        state=State.NOTHING,
    ),
    Option(
        "fastrouter-buffer-size",
        Kind.INT,
        _TOPIC,
        "Size of uWSGI's buffers; buffers here grow by themselves.",
        state=State.NOTHING,
    ),
)

FAST_OPTIONS = _LISTEN + _NODE_ROWS + _TIMES + _BODIES
"""Topic ``fastrouter``, in the order of the documentation."""
