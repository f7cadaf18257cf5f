"""What OpenSSL can do and CPython's ``ssl`` does not offer, through ctypes.

An ``ssl.SSLContext`` is a C structure whose first field behind the object header is its
``SSL_CTX *``. CPython does not promise that, so ``load`` puts it to the test before anything
relies on it, in a child process: were the layout another one, only the child would crash.
Without these hooks TLS works, but ticket keys are not rotated and each worker keeps its own
sessions.

The functions that C calls are made once and never freed: OpenSSL may call one whenever it frees a
connection, however late that is. They find what a context wants by the address of its ``SSL_CTX``.
"""

from __future__ import annotations

import ctypes
import os
import resource
import select
import signal
import ssl
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from ctypes import CFUNCTYPE, POINTER, c_char_p, c_int, c_long, c_size_t, c_uint, c_void_p
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

if TYPE_CHECKING:
    from uwgate.tls.ticket_ring import TicketRing

TICKET_KEY = 80
"""Bytes of a ticket key: 16 name, 32 HMAC-SHA-256, 32 AES-256 (SSL_CTX_set_tlsext_ticket_keys)."""

# Commands of SSL_CTX_ctrl(3), which the headers of OpenSSL hide behind macros.
_SET_MODE = 33
_SET_READ_AHEAD = 41
_SET_CACHE_MODE = 44
_SET_TICKET_KEYS = 59
_SET_TICKET_CALLBACK = 72
_RELEASE_BUFFERS = 0x10
_CACHE_SERVER, _CACHE_NO_AUTO_CLEAR, _CACHE_NO_INTERNAL = 0x2, 0x80, 0x300
_TLS_1_3 = 0x304
_PATIENCE = 5.0  # seconds for the test in the child

_NewCallback = CFUNCTYPE(c_int, c_void_p, c_void_p)
_GetCallback = CFUNCTYPE(c_void_p, c_void_p, c_void_p, c_int, POINTER(c_int))
_RemoveCallback = CFUNCTYPE(None, c_void_p, c_void_p)

Declaration = tuple[str, Any, tuple[Any, ...]]
"""Name of a C function, type of its result, types of its arguments."""

_FUNCTIONS: tuple[Declaration, ...] = (
    ("SSL_CTX_get_options", ctypes.c_uint64, (c_void_p,)),
    ("SSL_CTX_ctrl", c_long, (c_void_p, c_int, c_long, c_void_p)),
    ("SSL_CTX_callback_ctrl", c_long, (c_void_p, c_int, c_void_p)),
    ("SSL_CTX_set_session_id_context", c_int, (c_void_p, c_char_p, c_uint)),
    ("SSL_CTX_set_timeout", c_long, (c_void_p, c_long)),
    ("SSL_CTX_get_timeout", c_long, (c_void_p,)),
    ("SSL_CTX_get_verify_mode", c_int, (c_void_p,)),
    ("SSL_CTX_set_verify_depth", None, (c_void_p, c_int)),
    ("SSL_CTX_get_verify_depth", c_int, (c_void_p,)),
    ("SSL_CTX_get_num_tickets", c_size_t, (c_void_p,)),
    ("SSL_load_client_CA_file", c_void_p, (c_char_p,)),
    ("SSL_CTX_set_client_CA_list", None, (c_void_p, c_void_p)),
    ("SSL_CTX_sess_set_new_cb", None, (c_void_p, c_void_p)),
    ("SSL_CTX_sess_set_get_cb", None, (c_void_p, c_void_p)),
    ("SSL_CTX_sess_set_remove_cb", None, (c_void_p, c_void_p)),
    ("SSL_get_SSL_CTX", c_void_p, (c_void_p,)),
    ("SSL_get_options", ctypes.c_uint64, (c_void_p,)),
    ("SSL_version", c_int, (c_void_p,)),
    ("SSL_SESSION_get_id", c_void_p, (c_void_p, POINTER(c_uint))),
    ("i2d_SSL_SESSION", c_int, (c_void_p, c_void_p)),
    ("d2i_SSL_SESSION", c_void_p, (c_void_p, POINTER(c_char_p), c_long)),
    ("ERR_set_mark", c_int, ()),
    ("ERR_pop_to_mark", c_int, ()),
)
_OF_3: tuple[Declaration, ...] = (
    ("SSL_CTX_set_tlsext_ticket_key_evp_cb", c_int, (c_void_p, c_void_p)),
)


class Unavailable(Exception):
    """The hooks cannot be used here; the text says why."""


class _Handlers(NamedTuple):
    """What a context does with its sessions. ``owner``: removes them when the context is gone."""

    owner: weakref.ref[ssl.SSLContext]
    new: Callable[[bytes, bytes], None]
    get: Callable[[bytes], bytes | None]
    remove: Callable[[bytes], None]


class OpenSsl:
    """The hooks. Each method takes an ``ssl.SSLContext`` that has not served yet, except for
    ticket keys, which may change at any time.

    ``library``: the libssl that ``ssl`` uses. ``log``: gets a line for each new kind of exception
    that a callback raised. ``failures``: how many there were. ``number``: version of OpenSSL,
    0xMNN00PP0 (OPENSSL_VERSION_NUMBER). Raises Unavailable if functions are missing.
    """

    def __init__(self, library: ctypes.PyDLL, log: Callable[[str], None]) -> None:
        self.library = library
        self.number: int = ssl.OPENSSL_VERSION_NUMBER
        self.failures = 0
        self._log = log
        self._seen: set[type[BaseException]] = set()
        self._handlers: dict[int, _Handlers] = {}
        declare(library, _FUNCTIONS)
        if self.number >= 0x30000000:
            declare(library, _OF_3)
        self._callbacks = (
            immortal(_NewCallback(self._on_new)),
            immortal(_GetCallback(self._on_get)),
            immortal(_RemoveCallback(self._on_remove)),
        )

    def pointer(self, context: ssl.SSLContext) -> int:
        """Its ``SSL_CTX *``."""
        if not isinstance(context, ssl.SSLContext):
            raise TypeError("not an ssl.SSLContext")
        found = c_void_p.from_address(id(context) + object.__basicsize__).value
        if not found:
            raise Unavailable("there is no pointer in a context")
        return found

    def set_session_context(self, context: ssl.SSLContext, sid: bytes) -> None:
        """Sessions and tickets are resumed only under the same ``sid``, 1 to 32 bytes.

        SSL_CTX_set_session_id_context(3). ValueError for another length.
        """
        if not 0 < len(sid) <= 32:
            raise ValueError("a session id context has 1 to 32 bytes")
        self.library.SSL_CTX_set_session_id_context(self.pointer(context), sid, len(sid))

    def set_timeout(self, context: ssl.SSLContext, seconds: int) -> None:
        """Life of sessions and tickets in seconds, also the hint to clients."""
        self.library.SSL_CTX_set_timeout(self.pointer(context), seconds)

    def set_verify_depth(self, context: ssl.SSLContext, depth: int) -> None:
        """How many CA certificates may stand between a client's and a trusted one."""
        self.library.SSL_CTX_set_verify_depth(self.pointer(context), depth)

    def name_authorities(self, context: ssl.SSLContext, path: str) -> None:
        """Tell clients whose certificates are acceptable: the subjects in the PEM file ``path``,
        which ``load_verify_locations`` does not do. A file without any changes nothing."""
        self.library.ERR_set_mark()
        names = self.library.SSL_load_client_CA_file(os.fsencode(path))
        self.library.ERR_pop_to_mark()
        if names:
            self.library.SSL_CTX_set_client_CA_list(self.pointer(context), names)

    def save_memory(self, context: ssl.SSLContext) -> None:
        """Connections give back their buffers while they are idle (SSL_MODE_RELEASE_BUFFERS).

        CPython's own default; without it an idle connection holds 17 KB more.
        """
        self._control(context, _SET_MODE, _RELEASE_BUFFERS)

    def read_ahead(self, context: ssl.SSLContext) -> None:
        """Read what the socket has with one system call instead of two a record.

        Read until ``SSLWantReadError`` then: whole records may wait inside, and no poll tells.
        """
        self._control(context, _SET_READ_AHEAD, 1)

    def no_sessions(self, context: ssl.SSLContext) -> None:
        """Keep no sessions: by itself OpenSSL holds 20,480 of those without ticket a context."""
        self._control(context, _SET_CACHE_MODE, 0)

    def _control(self, context: ssl.SSLContext, command: int, number: int) -> None:
        self.library.SSL_CTX_ctrl(self.pointer(context), command, number, None)

    def set_ticket_keys(self, context: ssl.SSLContext, keys: bytes | bytearray) -> None:
        """The key that encrypts and decrypts tickets, TICKET_KEY bytes, by OpenSSL's own code.

        ValueError for another length.
        """
        if len(keys) != TICKET_KEY:
            raise ValueError(f"a ticket key has {TICKET_KEY} bytes")
        buffer = (ctypes.c_char * TICKET_KEY).from_buffer_copy(keys)
        pointer = self.pointer(context)
        done = self.library.SSL_CTX_ctrl(pointer, _SET_TICKET_KEYS, TICKET_KEY, buffer)
        ctypes.memset(buffer, 0, TICKET_KEY)
        if not done:
            raise ValueError("OpenSSL refused the ticket key")

    def set_ticket_ring(self, context: ssl.SSLContext, ring: TicketRing | None) -> None:
        """Ask ``ring`` for ticket keys, in a callback; None: back to ``set_ticket_keys``."""
        function = None if ring is None else ring.function
        pointer = self.pointer(context)
        if ring is not None and ring.old:
            self.library.SSL_CTX_callback_ctrl(pointer, _SET_TICKET_CALLBACK, function)
        elif self.number >= 0x30000000:
            self.library.SSL_CTX_set_tlsext_ticket_key_evp_cb(pointer, function)
        if function is None:
            self.library.SSL_CTX_callback_ctrl(pointer, _SET_TICKET_CALLBACK, None)

    def external_sessions(
        self,
        context: ssl.SSLContext,
        new: Callable[[bytes, bytes], None],
        get: Callable[[bytes], bytes | None],
        remove: Callable[[bytes], None],
    ) -> None:
        """Keep sessions elsewhere, none in OpenSSL: SSL_CTX_sess_set_get_cb(3).

        ``new`` is told a session's id (1 to 32 bytes) and its DER, which holds the master secret;
        ``get`` finds the DER again, or None; ``remove`` is told that a session must not be used
        any more: its connection broke, or its time is over. None of them may block. What they
        raise is counted, logged and swallowed: a lost session costs one full handshake.
        Called for TLS 1.2 without ticket, and for TLS 1.3 under OP_NO_TICKET.
        """
        pointer = self.pointer(context)

        def gone(owner: weakref.ref[ssl.SSLContext]) -> None:
            known = self._handlers.get(pointer)
            if known is not None and known.owner is owner:
                del self._handlers[pointer]

        self._handlers[pointer] = _Handlers(weakref.ref(context, gone), new, get, remove)
        mode = _CACHE_SERVER | _CACHE_NO_INTERNAL | _CACHE_NO_AUTO_CLEAR
        self._control(context, _SET_CACHE_MODE, mode)
        on_new, on_get, on_remove = self._callbacks
        self.library.SSL_CTX_sess_set_new_cb(pointer, on_new)
        self.library.SSL_CTX_sess_set_get_cb(pointer, on_get)
        self.library.SSL_CTX_sess_set_remove_cb(pointer, on_remove)

    # --- called by C: nothing may be raised -------------------------------------------------------

    def _on_new(self, connection: int, session: int) -> int:
        try:
            library = self.library
            handlers = self._handlers.get(library.SSL_get_SSL_CTX(connection))
            if handlers is not None and (
                library.SSL_version(connection) != _TLS_1_3
                or library.SSL_get_options(connection) & ssl.OP_NO_TICKET
            ):  # else the whole session is in the ticket, and nobody will ask for it
                handlers.new(self._id(session), self._der(session))
        except BaseException as error:
            self._failed(error)
        return 0  # no reference is kept

    def _on_get(self, connection: int, data: int, length: int, copy: Any) -> int | None:
        try:
            copy[0] = 0  # the reference that is returned is OpenSSL's
            library = self.library
            handlers = self._handlers.get(library.SSL_get_SSL_CTX(connection))
            if handlers is None:
                return None
            der = handlers.get(ctypes.string_at(data, length))
            if der is None:
                return None
            # An error that stayed in OpenSSL's queue would be taken for the handshake's.
            library.ERR_set_mark()
            cursor = c_char_p(der)
            session: int | None = library.d2i_SSL_SESSION(None, ctypes.byref(cursor), len(der))
            library.ERR_pop_to_mark()
            return session
        except BaseException as error:
            self._failed(error)
            return None

    def _on_remove(self, context: int, session: int) -> None:
        try:
            handlers = self._handlers.get(context)
            if handlers is not None:
                handlers.remove(self._id(session))
        except BaseException as error:
            self._failed(error)

    def _failed(self, error: BaseException) -> None:
        self.failures += 1
        kind = type(error)
        if kind not in self._seen:
            self._seen.add(kind)
            try:
                self._log(f"TLS session callback failed: {kind.__name__}: {error}")
            except Exception:
                self.failures += 1

    def _id(self, session: int) -> bytes:
        length = c_uint()
        data = self.library.SSL_SESSION_get_id(session, ctypes.byref(length))
        return ctypes.string_at(data, length.value)

    def _der(self, session: int) -> bytes:
        size = self.library.i2d_SSL_SESSION(session, None)
        if size <= 0:
            raise ValueError("a session cannot be encoded")
        buffer = ctypes.create_string_buffer(size)
        cursor = c_void_p(ctypes.addressof(buffer))
        self.library.i2d_SSL_SESSION(session, ctypes.byref(cursor))
        der = buffer.raw
        ctypes.memset(buffer, 0, size)
        return der


def declare(library: ctypes.PyDLL, functions: Sequence[Declaration]) -> None:
    """Tell ctypes the types; Unavailable if a function is missing."""
    for name, result, arguments in functions:
        try:
            function = getattr(library, name)
        except AttributeError:
            raise Unavailable(f"{name} is missing") from None
        function.restype = result
        function.argtypes = arguments


def immortal(callback: Any) -> Any:
    """``callback``, with one reference more than anybody holds: C may call it for ever."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(callback))
    return callback


# --- finding the library, and the test ------------------------------------------------------------


def load(log: Callable[[str], None]) -> OpenSsl | None:
    """The hooks, put to the test; None, and one warning line, where they cannot be used.

    Forks: call it in a process of one thread.
    """
    try:
        return _find(log)
    except (Unavailable, OSError) as error:
        log(
            f"warning: {ssl.OPENSSL_VERSION} cannot be reached through Python ({error}): "
            "TLS ticket keys are not rotated, and each worker keeps its own sessions"
        )
        return None


def refusal(implementation: str, version: str, number: int, *, locked: bool = True) -> str:
    """Why the hooks are not even tried, "" if they may be. ``version``: of the TLS library, as
    ``ssl.OPENSSL_VERSION``; ``locked``: this Python has a global interpreter lock."""
    if implementation != "cpython":
        return f"{implementation} is not CPython"
    if not locked:
        return "this Python is free-threaded"
    # BoringSSL and AWS-LC call themselves "OpenSSL 1.1.1 (compatible; …)".
    if not version.startswith("OpenSSL ") or "compatible" in version:
        return "the TLS library is not OpenSSL"
    if number < 0x1010100F:
        return "OpenSSL is older than 1.1.1"
    return ""


def _find(log: Callable[[str], None]) -> OpenSsl:
    locked = getattr(sys, "_is_gil_enabled", lambda: True)()
    name, version = sys.implementation.name, ssl.OPENSSL_VERSION
    reason = refusal(name, version, ssl.OPENSSL_VERSION_NUMBER, locked=locked)
    if reason:
        raise Unavailable(reason)
    reason = "its library was not found"
    for path in _candidates():
        try:
            library = ctypes.PyDLL(path)
            declare(library, (("OpenSSL_version_num", ctypes.c_ulong, ()),))
            if library.OpenSSL_version_num() != ssl.OPENSSL_VERSION_NUMBER:
                continue  # somebody else's, of another version
            found = OpenSsl(library, log)
        except (OSError, Unavailable):
            continue
        if survives(lambda hooks=found: _check(hooks)):  # type: ignore[misc]
            return found
        reason = "contexts of this Python look different inside"
    raise Unavailable(reason)


def _candidates() -> Iterator[str | None]:
    """Files through which the libssl of this process may be reached: the module ``_ssl``, as
    symbols are looked up in what it is linked to as well; the interpreter, if it is built in; at
    last whatever looks like it in memory."""
    import _ssl

    module = getattr(_ssl, "__file__", None)
    if module:
        yield module
    yield None
    seen = set()
    with open("/proc/self/maps") as maps:
        for line in maps:
            path = "/" + line.rstrip("\n").partition("/")[2]
            if "libssl" in os.path.basename(path) and path not in seen:
                seen.add(path)
                yield path


def _check(hooks: OpenSsl) -> None:
    """Unavailable unless ctypes sees in contexts what ``ssl`` says of them, and the reverse."""
    library = hooks.library
    pointers = set()
    contexts = []
    both = ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION
    for option in (0, ssl.OP_NO_TICKET, ssl.OP_NO_RENEGOTIATION, both):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        contexts.append(context)
        context.options |= option
        context.verify_mode = ssl.CERT_REQUIRED if option else ssl.CERT_NONE
        context.num_tickets = 3 if option else 1
        pointer = hooks.pointer(context)
        pointers.add(pointer)
        expected = (int(context.options) & 0xFFFFFFFF, int(bool(option)) * 3, context.num_tickets)
        seen = (
            library.SSL_CTX_get_options(pointer) & 0xFFFFFFFF,
            library.SSL_CTX_get_verify_mode(pointer),
            library.SSL_CTX_get_num_tickets(pointer),
        )
        hooks.set_timeout(context, 1234)
        hooks.set_verify_depth(context, 7)
        if (
            seen != expected
            or library.SSL_CTX_get_timeout(pointer) != 1234
            or library.SSL_CTX_get_verify_depth(pointer) != 7
        ):
            raise Unavailable("contexts of this Python look different inside")
    if len(pointers) < len(contexts):
        raise Unavailable("contexts of this Python look different inside")


def survives(check: Callable[[], None], patience: float = _PATIENCE) -> bool:
    """Whether ``check()`` returns in a forked child, within ``patience`` seconds. A child that
    crashes, raises or hangs leaves no trace: no output, no core file."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        _be_the_child(check, writing)
    os.close(writing)
    try:
        waiting = select.poll()
        waiting.register(reading, select.POLLIN)
        ended = bool(waiting.poll(patience * 1000))
        good = ended and os.read(reading, 1) == b"+"
        if not ended:
            os.kill(pid, signal.SIGKILL)
    finally:
        os.close(reading)
    try:
        os.waitpid(pid, 0)
    except ChildProcessError:  # SIGCHLD is ignored here: the kernel has collected it
        pass
    return good


def _be_the_child(check: Callable[[], None], writing: int) -> NoReturn:
    try:
        for number in ("SEGV", "BUS", "ILL", "ABRT", "FPE", "TERM", "INT"):
            signal.signal(getattr(signal, f"SIG{number}"), signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        nowhere = os.open(os.devnull, os.O_RDWR)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        check()
        os.write(writing, b"+")
    finally:
        os._exit(0)
