"""The HTTP router's recipes as uWSGI's documentation has them, in every form of configuration.

The texts are what users have in their files. A test checks each one literally, and runs it with
nothing changed but the addresses (nobody's machine has 192.168.173.17 and a free port 80).
"""

from __future__ import annotations

import json
from dataclasses import dataclass

Pairs = list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Recipe:
    """``text`` is the INI file. ``closed``: the node is not in it (uWSGI would embed one)."""

    name: str
    text: str
    closed: bool = False

    @property
    def pairs(self) -> Pairs:
        """The options in order; a small reader of our own, for well-formed text only."""
        found = []
        for line in self.text.splitlines():
            if line and line[0] not in "[;#":
                key, _, value = line.partition("=")
                found.append((key.strip(), value.strip()))
        return found


RECIPES = [
    Recipe(
        "standalone",
        """[uwsgi]
master = true
http = 127.0.0.1:8080
http-to = /tmp/uwsgi.sock
""",
    ),
    Recipe(
        "several-addresses",
        """[uwsgi]
http = 0.0.0.0:8080
http = 192.168.173.17:8181
http = 127.0.0.1:9090
master = true
http-to = /tmp/uwsgi.sock
""",
    ),
    Recipe(
        "several-nodes",
        """[uwsgi]
http = 0.0.0.0:8080
http = 192.168.173.17:8181
http = 127.0.0.1:9090
master = true
http-to = /tmp/uwsgi.sock
http-to = 192.168.173.1:3031
http-to = 192.168.173.2:3031
http-to = 192.168.173.3:3031
""",
    ),
    Recipe(
        "farm",
        """[uwsgi]
; spawn the master process
master = true
; spawn an HTTP router
http = 192.168.173.17:8181
; spawn 8 processes for it
http-processes = 8
; add a bunch of uwsgi nodes to relay traffic to
http-to = 192.168.173.10:3031
http-to = 192.168.173.11:3031
http-to = 192.168.173.12:3031
; add stats
http-stats = 127.0.0.1:5001
""",
    ),
    Recipe(
        "privileged-port",
        """[uwsgi]
master = true
shared-socket = 0.0.0.0:80
uid = www-data
gid = www-data
http = =0
http-to = 192.168.173.1:3031
""",
    ),
    Recipe(
        "server-side-includes",
        """[uwsgi]
plugin = ssi
http = :9090
http-modifier1 = 19
http-var = DOCUMENT_ROOT=/var/www
""",
        closed=True,
    ),
    Recipe(
        "clojure",
        """[uwsgi]
http = :9090
http-modifier1 = 8
http-modifier2 = 1

jvm-classpath = plugins/jvm/uwsgi.jar
jvm-classpath = ../.lein/self-installs/leiningen-2.0.0-standalone.jar

clojure-load = myapp.clj
""",
        closed=True,
    ),
    Recipe(
        "full-stack-cgi",
        """[uwsgi]
workdir = /var
ipaddress = 0.0.0.0

; start an http router on port 8080
http = %(ipaddress):8080
; spawn 2 threads in 4 processes (concurrency level: 8)
processes = 4
threads = 2
; drop privileges
uid = nobody
gid = nogroup

; serve static files in /var/www
static-index = index.html
static-index = index.htm
check-static = %(workdir)/www

; skip serving static files ending with .lua
static-skip-ext = .lua

; route requests to the CGI plugin
http-modifier1 = 9
; map /cgi-bin requests to /var/cgi
cgi = /cgi-bin=%(workdir)/cgi
; only .lua script can be executed
cgi-allowed-ext = .lua
; .lua files are executed with the 'lua' command
cgi-helper = .lua=lua
; search for index.lua if a directory is requested
cgi-index = index.lua
""",
        closed=True,
    ),
    Recipe(
        "time-limits-and-keepalive",
        """[uwsgi]
master = true
http = 127.0.0.1:8080
http-to = /tmp/uwsgi.sock
http-timeout = 30
http-headers-timeout = 5
http-connect-timeout = 3
http-keepalive = 1
http-auto-chunked = true
http-auto-gzip = true
""",
    ),
    Recipe(
        "websockets",
        """[uwsgi]
http = :8080
http-websockets = true
wsgi-file = myapp.py
""",
        closed=True,
    ),
    Recipe(
        "chunked-input",
        """[uwsgi]
http = :8080
http-raw-body = true
wsgi-file = myapp.py
""",
        closed=True,
    ),
    Recipe(
        "behind-a-balancer",
        """[uwsgi]
http = :8080
http-enable-proxy-protocol = true
http-manage-source = true
http-to = 192.168.173.1:3031
http-fallback = 192.168.173.2:3031
http-gracetime = 10
""",
    ),
]

NODE = "192.168.173.1:3031"
"""Where the node of a ``closed`` recipe is."""

SERVER_ADDRESSES = (
    "0.0.0.0:80",
    "0.0.0.0:8080",
    "%(ipaddress):8080",
    "192.168.173.17:8181",
    "127.0.0.1:8080",
    "127.0.0.1:9090",
    "127.0.0.1:5001",
    ":8080",
    ":9090",
)
"""Values under which something listens, in any recipe."""


def as_ini(pairs: Pairs) -> str:
    return "[uwsgi]\n" + "".join(f"{key} = {value}\n" for key, value in pairs)


def gathered(pairs: Pairs) -> dict[str, list[str]]:
    lists: dict[str, list[str]] = {}
    for key, value in pairs:
        lists.setdefault(key, []).append(value)
    return lists


def as_yaml(pairs: Pairs) -> str:
    lines = ["uwsgi:"]
    for key, values in gathered(pairs).items():
        if len(values) == 1:
            lines.append(f"  {key}: {json.dumps(values[0])}")
        else:
            lines.append(f"  {key}:")
            lines += [f"    - {json.dumps(value)}" for value in values]
    return "\n".join(lines) + "\n"


def as_json(pairs: Pairs) -> str:
    lists = gathered(pairs)
    return json.dumps({"uwsgi": {k: v if len(v) > 1 else v[0] for k, v in lists.items()}})


def as_xml(pairs: Pairs) -> str:
    rows = "".join(f"  <{key}>{value}</{key}>\n" for key, value in pairs)
    return f"<uwsgi>\n{rows}</uwsgi>\n"


FLAGS = {"master", "http-auto-chunked", "http-auto-gzip", "http-websockets", "http-raw-body"}
FLAGS |= {"http-manage-source", "http-enable-proxy-protocol"}


def as_words(pairs: Pairs) -> list[str]:
    """The command line: flags bare, an optional value after ``=``, the others as the next word."""
    words = []
    for key, value in pairs:
        if key in FLAGS:
            words.append(f"--{key}")
        elif key == "http-keepalive":
            words.append(f"--{key}={value}")
        else:
            words += [f"--{key}", value]
    return words


FORMS = {"ini": as_ini, "yaml": as_yaml, "json": as_json, "xml": as_xml}
