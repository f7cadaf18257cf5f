"""What OpenSSL makes of the same ClientHello: names, protocols, sessions, and what it refuses."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.certificates import Authority, Pair

from uwgate.protocols.tls_hello import ClientHello, HelloError, parse_hello

OLD, NEW = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
PRE_SHARED_KEY = b"\x00\x29"
PROTOCOLS = ["h2", "http/1.1", "acme-tls/1", "spdy/3"]

labels = st.from_regex(r"\A[a-zA-Z0-9]([a-zA-Z0-9-]{0,20}[a-zA-Z0-9])?\Z")
# No addresses among them: those are not sent (RFC 6066 §3).
names = st.lists(labels, min_size=1, max_size=4).map(lambda each: ".".join([*each, "Example"]))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Authority(tmp_path_factory.mktemp("oracle")).issue("localhost")


@dataclass
class Server:
    """An OpenSSL server of this certificate; ``seen``: the names that it was asked for."""

    pair: Pair
    tickets: bool = True
    listens: bool = True  # Python complains of names that are not ASCII
    seen: list[str | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(self.pair.cert, self.pair.key)
        self.context.set_alpn_protocols(PROTOCOLS)
        if self.listens:
            self.context.sni_callback = self._name
        if not self.tickets:
            self.context.options |= ssl.OP_NO_TICKET

    def _name(self, sslobj: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        self.seen.append(name)

    def accepts(self, hello: bytes) -> bool:
        """Whether a hello is answered by a ServerHello (or a request for another hello)."""
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        engine = self.context.wrap_bio(incoming, outgoing, server_side=True)
        incoming.write(hello)
        try:
            engine.do_handshake()
        except ssl.SSLWantReadError:
            return outgoing.pending > 0
        except ssl.SSLError:
            return False
        raise AssertionError("no client, and yet it is done")


@dataclass
class Met:
    """A handshake in memory: what the client sent first, and both ends after it."""

    hello: bytes
    client: ssl.SSLObject
    server: ssl.SSLObject

    @property
    def parsed(self) -> ClientHello:
        hello = parse_hello(self.hello)
        assert hello is not None
        return hello


def client_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def meet(
    server: Server,
    context: ssl.SSLContext,
    name: str | None = None,
    session: ssl.SSLSession | None = None,
) -> Met:
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(to_client, to_server, server_hostname=name, session=session)
    engine = server.context.wrap_bio(to_server, to_client, server_side=True)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    hello = to_server.read()
    to_server.write(hello)
    ends = [engine, client]
    while ends:
        for end in list(ends):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            ends.remove(end)
    engine.write(b"x")
    assert client.read(1) == b"x"  # and with it, in TLS 1.3, the tickets
    return Met(hello, client, engine)


@given(
    st.one_of(st.none(), names),
    st.lists(st.sampled_from(PROTOCOLS), unique=True),
    st.sampled_from([(OLD, OLD), (OLD, NEW), (NEW, NEW)]),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_the_same_is_asked_for(
    pair: Pair,
    name: str | None,
    protocols: list[str],
    versions: tuple[ssl.TLSVersion, ssl.TLSVersion],
    ticket: bool,
) -> None:
    server, context = Server(pair), client_context()
    context.minimum_version, context.maximum_version = versions
    if protocols:
        context.set_alpn_protocols(protocols)
    if not ticket:
        context.options |= ssl.OP_NO_TICKET
    met = meet(server, context, name)
    hello = met.parsed
    asked = server.seen[0] or ""
    assert hello.server_name == asked.lower() == (name or "").lower()
    assert hello.alpn == tuple(each.encode() for each in protocols)
    assert met.server.selected_alpn_protocol() in (protocols or [None])
    assert {int(each) for each in versions} <= set(hello.versions)
    assert max(hello.versions) == versions[1]
    assert hello.ticket == (b"" if ticket else None)
    assert hello.psk_identities == ()
    if versions[1] == OLD:
        assert hello.session_id == b""


def test_a_ticket(pair: Pair) -> None:
    server, context = Server(pair), client_context()
    context.maximum_version = OLD
    first = meet(server, context)
    assert first.parsed.ticket == b""
    again = meet(server, context, session=first.client.session)
    assert again.server.session_reused
    assert again.parsed.ticket
    # RFC 5077 §3.4: a client makes an id up, to see from its echo that the ticket was taken.
    assert again.parsed.session_id != b""


def test_a_session_id(pair: Pair) -> None:
    server, context = Server(pair, tickets=False), client_context()
    context.maximum_version = OLD
    first = meet(server, context)
    session = first.client.session
    assert session is not None
    assert first.parsed.session_id == b""
    again = meet(server, context, session=session)
    assert again.server.session_reused
    assert again.parsed.session_id == session.id
    assert not again.parsed.ticket


@pytest.mark.parametrize("tickets", [True, False])
def test_a_key_shared_before(pair: Pair, tickets: bool) -> None:
    """With tickets disabled the identity is (of OpenSSL) short: it holds the session's id."""
    server, context = Server(pair, tickets), client_context()
    context.minimum_version = NEW
    first = meet(server, context)
    again = meet(server, context, session=first.client.session)
    assert again.server.session_reused
    (identity,) = again.parsed.psk_identities
    assert identity in again.hello
    assert (len(identity) > 100) == tickets


@pytest.fixture(scope="module")
def server(pair: Pair) -> Server:
    return Server(pair, listens=False)


@pytest.fixture(scope="module")
def hellos(server: Server) -> list[bytes]:
    """Of both versions, with all that is read."""
    made = []
    for version in (OLD, NEW):
        context = client_context()
        context.minimum_version = context.maximum_version = version
        context.set_alpn_protocols(["h2", "http/1.1"])
        session = meet(server, context, "www.example.com").client.session
        made += [meet(server, context, "www.example.com", each).hello for each in (None, session)]
    return made


@given(
    st.integers(0, 3),
    st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=4),
)
@settings(max_examples=120, deadline=None)
def test_what_openssl_takes_is_taken(
    server: Server, hellos: list[bytes], which: int, changes: list[tuple[int, int]]
) -> None:
    """What OpenSSL refuses need not be refused here: it is asked next. One extension it passes over
    where it has no use for it, however broken, and that is refused here."""
    changed = bytearray(hellos[which])
    for position, value in changes:
        changed[position % len(changed)] = value
    if server.accepts(bytes(changed)):
        assert PRE_SHARED_KEY in changed or parse_hello(bytes(changed)) is not None


def test_a_beginning_that_says_it_is_whole(server: Server, hellos: list[bytes]) -> None:
    """One of them is: that without any extensions. OpenSSL takes no other either."""
    for whole in hellos:
        taken = []
        for end in range(9, len(whole)):
            message = b"\x01" + (end - 9).to_bytes(3, "big") + whole[9:end]
            hello = b"\x16\x03\x01" + len(message).to_bytes(2, "big") + message
            try:
                parse_hello(hello)
            except HelloError:
                assert not server.accepts(hello)
            else:
                taken.append(end)
        (end,) = taken
        assert int.from_bytes(whole[end : end + 2], "big") == len(whole) - end - 2
