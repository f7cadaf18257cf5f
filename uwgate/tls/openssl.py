"""What OpenSSL can do and CPython's ``ssl`` does not offer, through ctypes.

An ``ssl.SSLContext`` is a C structure whose first field behind the object header is its
``SSL_CTX *``. That is no promise of CPython's, so ``load`` puts it to the test before anything
relies on it, in a child process first: were the layout another one, only the child would crash.
Without these hooks everything works, but sessions live in each worker process alone.
"""

from __future__ import annotations

import ctypes
import os
import signal
import ssl
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from ctypes import CFUNCTYPE, POINTER, byref, c_int, c_long, c_uint, c_uint64, c_void_p
from typing import Any

_CTRL_MODE = 33
_CTRL_SESS_CACHE_SIZE = 42
_CTRL_SESS_CACHE_MODE = 44
_CTRL_TICKET_KEYS = 59
_MODE_RELEASE_BUFFERS = 0x10
_CACHE_SERVER, _CACHE_NO_AUTO_CLEAR, _CACHE_NO_INTERNAL = 0x2, 0x80, 0x300
_MAX_SESSION = 65535
_PATIENCE = 5.0  # seconds for the test in the child

_NewCallback = CFUNCTYPE(c_int, c_void_p, c_void_p)
_GetCallback = CFUNCTYPE(c_void_p, c_void_p, POINTER(ctypes.c_ubyte), c_int, POINTER(c_int))
_RemoveCallback = CFUNCTYPE(None, c_void_p, c_void_p)
TicketCallback = CFUNCTYPE(c_int, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_int)
"""``(ssl, key name, iv, cipher context, MAC context, encrypt) -> int``."""


class Unavailable(Exception):
    """The hooks cannot be used here; the text says why."""


class OpenSsl:
    """The hooks; every method takes an ``ssl.SSLContext``. ``number``: OPENSSL_VERSION_NUMBER."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        self.number = ssl.OPENSSL_VERSION_INFO
        self._kept: weakref.WeakKeyDictionary[ssl.SSLContext, dict[str, Any]] = (
            weakref.WeakKeyDictionary()
        )
        self._declare()

    def _declare(self) -> None:
        for name, result, *arguments in (
            ("SSL_CTX_get_options", c_uint64, c_void_p),
            ("SSL_CTX_ctrl", c_long, c_void_p, c_int, c_long, c_void_p),
            ("SSL_CTX_set_session_id_context", c_int, c_void_p, ctypes.c_char_p, c_uint),
            ("SSL_CTX_set_timeout", c_long, c_void_p, c_long),
            ("SSL_CTX_get_timeout", c_long, c_void_p),
            ("SSL_CTX_set_verify_depth", None, c_void_p, c_int),
            ("SSL_load_client_CA_file", c_void_p, ctypes.c_char_p),
            ("SSL_CTX_set_client_CA_list", None, c_void_p, c_void_p),
            ("SSL_CTX_sess_set_new_cb", None, c_void_p, c_void_p),
            ("SSL_CTX_sess_set_get_cb", None, c_void_p, c_void_p),
            ("SSL_CTX_sess_set_remove_cb", None, c_void_p, c_void_p),
            ("SSL_SESSION_get_id", c_void_p, c_void_p, POINTER(c_uint)),
            ("i2d_SSL_SESSION", c_int, c_void_p, c_void_p),
            ("d2i_SSL_SESSION", c_void_p, c_void_p, POINTER(c_void_p), c_long),
        ):
            try:
                function = getattr(self.library, str(name))
            except AttributeError:
                raise Unavailable(f"{name} is missing") from None
            function.restype = result
            function.argtypes = arguments

    def pointer(self, context: ssl.SSLContext) -> int:
        """Its ``SSL_CTX *``."""
        found = c_void_p.from_address(id(context) + object.__basicsize__).value
        if not found:
            raise Unavailable("there is no pointer in the context")
        return found

    def keep(self, context: ssl.SSLContext, name: str, value: object) -> None:
        """Keep ``value`` (a callback that C knows) as long as the context."""
        self._kept.setdefault(context, {})[name] = value

    def set_session_context(self, context: ssl.SSLContext, sid: bytes) -> None:
        """Sessions and tickets are resumed only under the same ``sid``, at most 32 bytes."""
        if not self.library.SSL_CTX_set_session_id_context(self.pointer(context), sid, len(sid)):
            raise ValueError("a session id context has at most 32 bytes")

    def set_timeout(self, context: ssl.SSLContext, seconds: int) -> None:
        """Life of sessions, and the hint in tickets."""
        self.library.SSL_CTX_set_timeout(self.pointer(context), seconds)

    def set_verify_depth(self, context: ssl.SSLContext, depth: int) -> None:
        """Certificates between a client's and the CA's."""
        self.library.SSL_CTX_set_verify_depth(self.pointer(context), depth)

    def name_authorities(self, context: ssl.SSLContext, path: str) -> None:
        """Tell clients whose certificates are acceptable: the subjects in the CA file."""
        names = self.library.SSL_load_client_CA_file(os.fsencode(path))
        if names:
            self.library.SSL_CTX_set_client_CA_list(self.pointer(context), names)

    def save_memory(self, context: ssl.SSLContext) -> None:
        """Idle connections hold no buffers (SSL_MODE_RELEASE_BUFFERS): 34 KB less each."""
        self._control(context, _CTRL_MODE, _MODE_RELEASE_BUFFERS)

    def _control(self, context: ssl.SSLContext, command: int, number: int) -> None:
        self.library.SSL_CTX_ctrl(self.pointer(context), command, number, None)

    def set_ticket_keys(self, context: ssl.SSLContext, keys: bytes) -> None:
        """16 bytes name, 32 bytes HMAC-SHA-256 key, 32 bytes AES-256 key."""
        pointer = self.pointer(context)
        buffer = ctypes.create_string_buffer(keys, len(keys))
        done = self.library.SSL_CTX_ctrl(pointer, _CTRL_TICKET_KEYS, len(keys), buffer)
        ctypes.memset(buffer, 0, len(keys))
        if not done:
            raise ValueError("ticket keys have 80 bytes")

    def external_sessions(
        self,
        context: ssl.SSLContext,
        new: Callable[[bytes, bytes], None],
        get: Callable[[bytes], bytes | None],
        remove: Callable[[bytes], None],
    ) -> None:
        """Keep sessions elsewhere: ``new`` is told a session id and its DER (with the master
        secret), ``get`` finds the DER again, ``remove`` forgets it. None of them may block; what
        they raise is swallowed, and the handshake goes on without the session."""
        library, pointer = self.library, self.pointer(context)

        def on_new(_: int, session: int) -> int:
            try:
                new(self._id(session), self._der(session))
            except Exception:  # C code is above us
                _swallow()
            return 0  # no reference is kept

        def on_get(_: int, data: Any, length: int, copy: Any) -> int | None:
            try:
                copy[0] = 0
                der = get(ctypes.string_at(data, length))
                if der is None:
                    return None
                buffer = ctypes.create_string_buffer(der, len(der))
                cursor = c_void_p(ctypes.addressof(buffer))
                return library.d2i_SSL_SESSION(None, byref(cursor), len(der))  # type: ignore[no-any-return]
            except Exception:
                _swallow()
                return None

        def on_remove(_: int, session: int) -> None:
            try:
                remove(self._id(session))
            except Exception:
                _swallow()

        callbacks = (_NewCallback(on_new), _GetCallback(on_get), _RemoveCallback(on_remove))
        self.keep(context, "sessions", callbacks)
        self._control(context, _CTRL_SESS_CACHE_MODE, _CACHE_SERVER | _CACHE_NO_INTERNAL)
        library.SSL_CTX_sess_set_new_cb(pointer, callbacks[0])
        library.SSL_CTX_sess_set_get_cb(pointer, callbacks[1])
        library.SSL_CTX_sess_set_remove_cb(pointer, callbacks[2])

    def _id(self, session: int) -> bytes:
        length = c_uint()
        data = self.library.SSL_SESSION_get_id(session, byref(length))
        return ctypes.string_at(data, length.value)

    def _der(self, session: int) -> bytes:
        size = self.library.i2d_SSL_SESSION(session, None)
        if not 0 < size <= _MAX_SESSION:
            raise ValueError("a session of that size is not kept")
        buffer = ctypes.create_string_buffer(size)
        cursor = c_void_p(ctypes.addressof(buffer))
        self.library.i2d_SSL_SESSION(session, byref(cursor))
        der = buffer.raw
        ctypes.memset(buffer, 0, size)
        return der


def _swallow() -> None:
    """Nothing may be raised into C; a session that is lost costs one full handshake."""


def load(log: Callable[[str], None]) -> OpenSsl | None:
    """The hooks, put to the test; None, and one warning line, where they cannot be used."""
    try:
        _check_interpreter()
        found = OpenSsl(_library())
        _check_in_child(found)
        _check(found)
    except (Unavailable, OSError) as error:
        log(
            f"warning: TLS sessions are not shared, each worker keeps its own: {error} "
            f"({ssl.OPENSSL_VERSION})"
        )
        return None
    return found


def _check_interpreter() -> None:
    if sys.implementation.name != "cpython":
        raise Unavailable(f"{sys.implementation.name} is not CPython")
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        raise Unavailable("this Python is free-threaded")
    if not ssl.OPENSSL_VERSION.startswith("OpenSSL ") or ssl.OPENSSL_VERSION_INFO < (1, 1, 1):
        raise Unavailable("the TLS library is not OpenSSL 1.1.1 or later")


def _candidates() -> Iterator[str]:
    """Files that may hold the libssl that this process uses; a static one is in the module, or in
    the interpreter itself (None to ctypes)."""
    import _ssl

    with open("/proc/self/maps") as maps:
        for line in maps:
            path = line.rstrip("\n").partition("/")[2]
            if path and "libssl" in path:
                yield "/" + path
                break
    path = getattr(_ssl, "__file__", "")
    if path:
        yield path
    yield ""


def _library() -> ctypes.CDLL:
    for path in _candidates():
        try:
            library = ctypes.CDLL(path or None)
        except OSError:
            continue
        if hasattr(library, "SSL_CTX_get_options"):
            return library
    raise Unavailable("the library that ssl uses was not found")


def _check(hooks: OpenSsl) -> None:
    """Whether what ctypes sees of contexts is what ``ssl`` says of them."""
    for option in (0, ssl.OP_NO_TICKET, ssl.OP_NO_TLSv1_3, ssl.OP_CIPHER_SERVER_PREFERENCE):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.options |= option
        seen = hooks.library.SSL_CTX_get_options(hooks.pointer(context))
        if seen & 0xFFFFFFFF != int(context.options) & 0xFFFFFFFF:
            raise Unavailable("contexts of this Python look different inside")
        hooks.set_timeout(context, 1234)
        if hooks.library.SSL_CTX_get_timeout(hooks.pointer(context)) != 1234:
            raise Unavailable("contexts of this Python look different inside")


def _check_in_child(hooks: OpenSsl) -> None:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGSEGV, signal.SIGBUS):
                signal.signal(number, signal.SIG_DFL)
            _check(hooks)
            code = 0
        finally:
            os._exit(code)
    limit = time.monotonic() + _PATIENCE
    pause = 0.001
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            break
        if time.monotonic() > limit:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise Unavailable("the test of the hooks did not end")
        time.sleep(pause)
        pause = min(0.05, pause * 2)
    if status:
        raise Unavailable("contexts of this Python look different inside")
