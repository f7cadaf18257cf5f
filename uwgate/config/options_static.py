"""Rows of static files: where they lie, what is said of them, and files that nodes name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from uwgate.config import static_values, values
from uwgate.config.model import Kind, Option

_TOPIC = "static"

_PLACES = (
    Option(
        "check-static",
        Kind.STRING,
        _TOPIC,
        "Directory in which the path of a request is looked for before a node is asked.",
        aliases=("static-check",),
        parse=static_values.path,
        unit="directory",
        repeatable=True,
    ),
    Option(
        "check-static-docroot",
        Kind.FLAG,
        _TOPIC,
        "The same, last of all, with the directory of http-var = DOCUMENT_ROOT=DIRECTORY.",
        parse=values.boolean,
    ),
    Option(
        "static-map",
        Kind.STRING,
        _TOPIC,
        "Paths below the mount are looked for below the path, without the mount; the path may be"
        " a file. The first one that has the file counts.",
        parse=static_values.mapping(),
        unit="mount=path",
        repeatable=True,
    ),
    Option(
        "static-map2",
        Kind.STRING,
        _TOPIC,
        "The same with the mount: /img=/srv looks for /img/a.png at /srv/img/a.png. All of them"
        " come after static-map.",
        parse=static_values.mapping(whole=True),
        unit="mount=path",
        repeatable=True,
    ),
    Option(
        "static-index",
        Kind.STRING,
        _TOPIC,
        "Name of the file that is sent for a directory; without any, directories are not found.",
        parse=static_values.index,
        unit="name",
        repeatable=True,
    ),
    Option(
        "static-skip-ext",
        Kind.STRING,
        _TOPIC,
        "End of names that are left to the nodes, such as .php.",
        parse=static_values.suffix,
        unit="suffix",
        repeatable=True,
    ),
    Option(
        "static-safe",
        Kind.STRING,
        _TOPIC,
        "Directory that symbolic links may lead to, and that nodes may name files in.",
        parse=static_values.path,
        unit="directory",
        repeatable=True,
    ),
    Option(
        "static-dotfiles",
        Kind.BOOL,
        _TOPIC,
        "Serve what has a name that begins with a dot.",
        field="static.dotfiles",
        parse=values.boolean,
        uwsgi=False,
    ),
    Option(
        "static-autoindex",
        Kind.BOOL,
        _TOPIC,
        "List directories that have no index, as HTML or JSON.",
        field="static.autoindex",
        parse=values.boolean,
        uwsgi=False,
    ),
    Option(
        "static-cache-paths",
        Kind.INT,
        _TOPIC,
        "Time for which what was found is not looked for again. It needs no cache; steps of a"
        " second.",
        field="static.cache_paths",
        parse=values.seconds(0.0, 86400.0),
        unit="seconds",
    ),
    Option(
        "static-cache-paths-name",
        Kind.STRING,
        _TOPIC,
        "Without effect: paths are remembered without a cache.",
        unit="cache",
    ),
)


def _expires(
    by: Literal["file", "path-info", "uri", "type"], what: str
) -> tuple[Option, ...]:
    """A row and its ``-mtime`` relative."""
    rows = []
    name = "static-expires" if by == "file" else f"static-expires-{by}"
    parse: Callable[[str], object]
    for mtime in (False, True):
        since = "from the time the file was changed" if mtime else "from now"
        if by == "type":
            parse = static_values.expires_type(mtime=mtime)
        else:
            parse = static_values.expires(by, mtime=mtime)
        rows.append(
            Option(
                f"{name}-mtime" if mtime else name,
                Kind.STRING,
                _TOPIC,
                f"Expires and max-age, {since}, by {what}.",
                parse=parse,
                unit="type=seconds" if by == "type" else "regexp seconds",
                repeatable=True,
            )
        )
    return tuple(rows)


_EXPIRES = (
    *_expires("file", "an expression found in the absolute name of the file"),
    *_expires("path-info", "an expression found in the decoded path"),
    *_expires("uri", "an expression found in the target of the request, with its query"),
    *_expires("type", "the media type"),
)

_TYPES = (
    Option(
        "mimefile",
        Kind.STRING,
        _TOPIC,
        "File with a media type and its extensions on each line, in place of /etc/mime.types.",
        aliases=("mime-file",),
        parse=static_values.path,
        unit="file",
        repeatable=True,
    ),
    Option(
        "static-charset",
        Kind.STRING,
        _TOPIC,
        "Charset that text says of itself; off: none.",
        field="static.charset",
        parse=static_values.charset,
        unit="charset",
        uwsgi=False,
    ),
)

_COMPRESSED = (
    Option(
        "static-gzip-all",
        Kind.FLAG,
        _TOPIC,
        "Send FILE.br, FILE.zst or FILE.gz in place of FILE to clients that accept it.",
        parse=values.boolean,
    ),
    Option(
        "static-gzip",
        Kind.STRING,
        _TOPIC,
        "The same for files in whose absolute name an expression is found.",
        parse=static_values.regexp,
        unit="regexp",
        repeatable=True,
    ),
    Option(
        "static-gzip-dir",
        Kind.STRING,
        _TOPIC,
        "The same for files whose absolute name begins so.",
        aliases=("static-gzip-prefix",),
        parse=static_values.prefix,
        unit="directory",
        repeatable=True,
    ),
    Option(
        "static-gzip-ext",
        Kind.STRING,
        _TOPIC,
        "The same for files whose name ends so.",
        aliases=("static-gzip-suffix",),
        parse=static_values.suffix,
        unit="suffix",
        repeatable=True,
    ),
)

_SENDING = (
    Option(
        "honour-range",
        Kind.FLAG,
        _TOPIC,
        "Send parts of files to clients that ask for them; on unless this is false.",
        field="static.ranges",
        parse=values.boolean,
    ),
    Option(
        "offload-threads",
        Kind.INT,
        _TOPIC,
        "Threads of each worker that wait for disks in place of it.",
        aliases=("offload-thread",),
        field="static.offload_threads",
        parse=values.integer(0, 64),
    ),
    Option(
        "disable-sendfile",
        Kind.FLAG,
        _TOPIC,
        "Read and write files instead of having the kernel send them.",
        parse=values.boolean,
    ),
)

_NAMED = (
    Option(
        "http-sendfile",
        Kind.OPTIONAL_STRING,
        _TOPIC,
        "Send the file that a node names in X-Sendfile (absolute name, in static-safe or another"
        " directory that is served) or in X-Accel-Redirect (path, see static-accel); one of the"
        " names: only that.",
        parse=static_values.sendfile,
        unit="boolean or field",
        repeatable=True,
        uwsgi=False,
    ),
    Option(
        "file-serve-mode",
        Kind.STRING,
        _TOPIC,
        "The same with one field: x-sendfile (xsendfile), or x-accel-redirect (xaccelredirect,"
        " nginx).",
        aliases=("fileserve-mode",),
        parse=static_values.serve_mode,
        unit="field",
    ),
    Option(
        "static-accel",
        Kind.STRING,
        _TOPIC,
        "Where files are that X-Accel-Redirect names: paths below the mount are looked for below"
        " the path.",
        parse=static_values.mapping(),
        unit="mount=path",
        repeatable=True,
        uwsgi=False,
    ),
    Option(
        "collect-header",
        Kind.STRING,
        _TOPIC,
        "With response-route-if-not, the field of nodes that names a file to send; else it belongs"
        " to the application server.",
        unit="field variable",
        repeatable=True,
    ),
    Option(
        "pull-header",
        Kind.STRING,
        _TOPIC,
        "The same.",
        unit="field variable",
        repeatable=True,
    ),
    Option(
        "response-route-if-not",
        Kind.STRING,
        _TOPIC,
        "empty:${VARIABLE} static:${VARIABLE} sends the file that the field named for the variable"
        " by collect-header or pull-header names; other routes belong to the application server.",
        unit="condition action",
        repeatable=True,
    ),
)

STATIC_OPTIONS: tuple[Option, ...] = (
    _PLACES + _EXPIRES + _TYPES + _COMPRESSED + _SENDING + _NAMED
)
"""Topic ``static``."""
