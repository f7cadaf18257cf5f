"""Text -> value, for the options of static files.

::

    static-map     = MOUNT=PATH            (static-map2 and static-accel alike)
    static-expires = REGEXP SECONDS        (-uri, -path-info; -mtime of each)
    static-expires-type = TYPE=SECONDS
    collect-header = FIELD VARIABLE        (pull-header alike)
    response-route-if-not = empty:${VARIABLE} static:${VARIABLE}

The syntax is uWSGI's: the first ``=`` and the first space cut, without any quoting. File names
become absolute. Mounts are not percent-decoded: they are compared with decoded paths.

Every function raises ``ValueError`` with one sentence that says what is wrong and what is expected,
but for ``collected`` and ``routed``, which give None, and ``mime_types``, which takes anything.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable
from typing import Literal

from uwgate.config import values
from uwgate.config.settings_static import ExpiresRule, SendfileField, StaticMap

_MAX_REGEXP = 1000  # characters
_MAX_SECONDS = 999_999_999.0
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_WORD = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"  # RFC 9110 section 5.6.2
_MEDIA_TYPE = re.compile(r"[A-Za-z0-9!#$&^_.+\-]+/[A-Za-z0-9!#$&^_.+\-]+")  # RFC 6838 section 4.2
_MIME_LINE = re.compile(rb"[A-Za-z0-9][A-Za-z0-9!#$&^_.+\-]*/[A-Za-z0-9!#$&^_.+\-]+")
_CHARSET = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:+\-]{0,63}")
_NO_CHARSET = ("", "none", "off", "false", "no", "0")
_COLLECT = re.compile(rf"({_WORD})[ \t]+([A-Za-z0-9_.\-]+)")
_ROUTE = re.compile(r"empty:\$\{([A-Za-z0-9_.\-]+)\}[ \t]+static:\$\{([A-Za-z0-9_.\-]+)\}")

X_SENDFILE = SendfileField(b"x-sendfile")
X_ACCEL_REDIRECT = SendfileField(b"x-accel-redirect", uri=True)
_MODES = {
    "x-sendfile": X_SENDFILE,
    "xsendfile": X_SENDFILE,
    "x-accel-redirect": X_ACCEL_REDIRECT,
    "xaccelredirect": X_ACCEL_REDIRECT,
    "nginx": X_ACCEL_REDIRECT,
}
_FIELDS = {"x-sendfile": X_SENDFILE, "x-accel-redirect": X_ACCEL_REDIRECT}


def _raw(text: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise ValueError(f"{text!r} cannot be written as bytes; expected UTF-8") from None


def path(text: str) -> str:
    """A file or directory -> its absolute name, without a slash at the end."""
    values.filename(text)
    if _CONTROL.search(text):
        raise ValueError(f"{text!r} has control characters in it; expected a file name")
    _raw(text)
    found = os.path.abspath(text)
    return found[1:] if found.startswith("//") else found  # POSIX leaves two slashes alone


# --- Mounts ----------------------------------------------------------------------------------


def _mount(text: str, whole: str) -> bytes:
    """``/a/b/`` -> ``/a/b``; ``/`` -> nothing, which is a prefix of everything."""
    if not text:
        raise ValueError(f"{whole!r} names no mount; expected mount=path, as in /img=/srv/img")
    if not text.startswith("/"):
        raise ValueError(f"the mount {text!r} does not begin with '/'; no path is below it")
    mount = text.rstrip("/")
    segments = mount.split("/")[1:]
    if any(each in ("", ".", "..") for each in segments) or _CONTROL.search(mount):
        raise ValueError(
            f"the mount {text!r} cannot match: paths are compared without empty and dot segments"
        )
    return _raw(mount)


def mapping(*, whole: bool = False) -> Callable[[str], StaticMap]:
    """A converter for ``mount=path``; ``whole``: paths are looked for with their mount."""

    def convert(text: str) -> StaticMap:
        mount, equals, target = text.partition("=")
        if not equals:
            raise ValueError(f"{text!r} has no '='; expected mount=path, as in /img=/srv/img")
        prefix = _mount(mount.strip(), text)
        if not target.strip():
            raise ValueError(f"{text!r} names no path; expected mount=path")
        return StaticMap(prefix, path(target.strip()), whole)

    return convert


# --- Names and suffixes ----------------------------------------------------------------------


def index(text: str) -> bytes:
    """The name of a file in a directory."""
    values.filename(text)
    if "/" in text or text in (".", "..") or _CONTROL.search(text):
        raise ValueError(f"{text!r} is not the name of a file; expected e.g. index.html")
    return _raw(text)


def suffix(text: str) -> bytes:
    """What a name ends with; not empty, as every name ends with that."""
    if not text:
        raise ValueError("a suffix is missing; expected e.g. .php")
    if "/" in text or _CONTROL.search(text):
        raise ValueError(f"{text!r} is not the end of a name; expected e.g. .php")
    return _raw(text)


def prefix(text: str) -> bytes:
    """What absolute names begin with; a slash at the end stays."""
    found = path(text)
    return _raw(found + "/" if text.endswith("/") and found != "/" else found)


def charset(text: str) -> str:
    """The name of a charset (RFC 2978 section 2.3, without the odd marks); off -> nothing."""
    if text.lower() in _NO_CHARSET:
        return ""
    if not _CHARSET.fullmatch(text):
        raise ValueError(f"{text!r} is not a charset; expected e.g. utf-8, or off")
    return text


# --- Regular expressions and times -----------------------------------------------------------


def regexp(text: str) -> re.Pattern[bytes]:
    """A regular expression (Python's) that is searched for in bytes."""
    if not text:
        raise ValueError("a regular expression is missing")
    if len(text) > _MAX_REGEXP:
        raise ValueError(f"the regular expression is longer than {_MAX_REGEXP} characters")
    raw = _raw(text)
    try:
        with warnings.catch_warnings():  # of syntax that may change its meaning some day
            warnings.simplefilter("ignore")
            return re.compile(raw)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"{text!r} is not a regular expression: {error}") from None


def _seconds(text: str) -> int:
    return int(values.seconds(0.0, _MAX_SECONDS)(text))


def expires(
    by: Literal["file", "path-info", "uri"], *, mtime: bool = False
) -> Callable[[str], ExpiresRule]:
    """A converter for ``REGEXP SECONDS``, cut at the first space."""

    def convert(text: str) -> ExpiresRule:
        pattern, space, rest = text.strip(" ").partition(" ")
        if not space:
            raise ValueError(
                f"{text!r} is not complete; expected REGEXP SECONDS (no space in the expression)"
            )
        return ExpiresRule(by, regexp(pattern), _seconds(rest.strip(" ")), mtime)

    return convert


def expires_type(*, mtime: bool = False) -> Callable[[str], ExpiresRule]:
    """A converter for ``TYPE=SECONDS``."""

    def convert(text: str) -> ExpiresRule:
        kind, equals, rest = text.partition("=")
        if not equals:
            raise ValueError(f"{text!r} has no '='; expected type=seconds, as in text/css=3600")
        kind = kind.strip(" ")
        if not _MEDIA_TYPE.fullmatch(kind):
            raise ValueError(f"{kind!r} is not a media type; expected e.g. text/css")
        # Letter case means nothing in media types (RFC 9110 section 8.3.1).
        pattern = re.compile(re.escape(kind.encode("ascii")), re.IGNORECASE)
        return ExpiresRule("type", pattern, _seconds(rest.strip(" ")), mtime)

    return convert


# --- Media types -----------------------------------------------------------------------------


def mime_types(data: bytes) -> dict[bytes, bytes]:
    """Lines of a type and its extensions -> extension (lower case, no dot) -> type.

    The first definition of an extension counts. ``#`` begins a comment. Lines that do not begin
    with a type are passed over, as in uWSGI.
    """
    found: dict[bytes, bytes] = {}
    for line in data.splitlines():
        kind, *extensions = line.partition(b"#")[0].split() or [b""]
        if not line[:1].isalnum() or not _MIME_LINE.fullmatch(kind):
            continue
        for extension in extensions:
            name = extension.lower().removeprefix(b".")
            if name:
                found.setdefault(name, kind)
    return found


# --- Fields of nodes -------------------------------------------------------------------------


def serve_mode(text: str) -> SendfileField:
    """``file-serve-mode``, in any case."""
    field = _MODES.get(text.lower())
    if field is None:
        raise ValueError(f"{text!r} is not known; expected one of {', '.join(_MODES)}")
    return field


def sendfile(text: str) -> tuple[SendfileField, ...]:
    """``http-sendfile``: a boolean (both fields or none), or the name of one field."""
    field = _FIELDS.get(text.lower())
    if field is not None:
        return (field,)
    if values.odd_boolean(text):
        raise ValueError(
            f"{text!r} is not known; expected true, false, {' or '.join(_FIELDS)}"
            " (others are named with collect-header)"
        )
    return tuple(_FIELDS.values()) if values.boolean(text) else ()


def collected(text: str) -> tuple[bytes, str] | None:
    """``FIELD VARIABLE`` -> the field's name in lower case, and the variable."""
    match = _COLLECT.fullmatch(text.strip())
    return (match[1].lower().encode("ascii"), match[2]) if match is not None else None


def routed(text: str) -> str | None:
    """``empty:${VARIABLE} static:${VARIABLE}`` -> the variable; None for every other route."""
    match = _ROUTE.fullmatch(text.strip())
    return match[1] if match is not None and match[1] == match[2] else None
