"""What contexts offer and ask for, in handshakes in memory."""

from __future__ import annotations

import ssl
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from openssl_tools import TLS_1_2, TLS_1_3, VERSIONS, connect, hooks, visit
from support.certificates import Authority, Pair

from uwgate.config.settings_tls import PairSettings, SessionSettings, TicketSettings, TlsSettings
from uwgate.tls.contexts import Context, Maker, domain_of
from uwgate.tls.errors import TlsError
from uwgate.tls.sessions import Sessions
from uwgate.tls.tickets import TicketKeys

DEFAULTS = TlsSettings()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def files(authority: Authority) -> Pair:
    return authority.issue("localhost")


class Dictionary(dict[bytes, bytes]):
    """A store of sessions."""

    def set(self, key: bytes, value: bytes, expires: int) -> bool:
        self[key] = value
        return True

    def delete(self, key: bytes) -> None:
        self.pop(key, None)


def made(
    pair: PairSettings,
    settings: TlsSettings = DEFAULTS,
    identity: str = "listener http-:443",
    *,
    keys: TicketKeys | None = None,
    sessions: Sessions | None = None,
    reach: bool = True,
    spdy: bool = False,
) -> Context:
    """A context; ``reach``: OpenSSL's own functions can be called."""
    maker = Maker(
        settings,
        hooks=hooks() if reach else None,
        tickets=keys,
        sessions=sessions,
        log=print,
    )
    return maker.make(pair, identity, spdy=spdy)


def of(
    files: Pair, *, ciphers: str = "", ca: Path | str = "", required: bool = False
) -> PairSettings:
    return PairSettings(str(files.cert), str(files.key), ciphers, str(ca), required)


def client_of(
    authority: Authority, version: ssl.TLSVersion = TLS_1_3, shown: Sequence[Path] = ()
) -> ssl.SSLContext:
    """A client that speaks ``version`` and shows a certificate (and its key)."""
    context = ssl.create_default_context(cafile=str(authority.file))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = context.maximum_version = version
    if version < TLS_1_2:
        context.set_ciphers("DEFAULT:@SECLEVEL=0")
    if shown:
        context.load_cert_chain(*shown)
    return context


# --- versions and ciphers -------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_both_versions(authority: Authority, files: Pair, version: ssl.TLSVersion) -> None:
    ends = connect(made(of(files)).ssl, client_of(authority, version))
    assert ends.server.version() == {TLS_1_2: "TLSv1.2", TLS_1_3: "TLSv1.3"}[version]


OLD = {ssl.TLSVersion.TLSv1: "TLSv1", ssl.TLSVersion.TLSv1_1: "TLSv1.1"}


@pytest.mark.parametrize(
    ("settings", "accepted"),
    [
        ({}, set()),
        ({"enable_sslv3": True}, set()),  # this OpenSSL has none, and gives nothing else instead
        ({"enable_tlsv11": True}, {"TLSv1.1"}),
        ({"enable_tlsv1": True}, {"TLSv1", "TLSv1.1"}),
    ],
)
@pytest.mark.parametrize("ciphers", ["", "HIGH"])
def test_old_versions_only_on_request(
    authority: Authority, files: Pair, settings: dict[str, bool], accepted: set[str], ciphers: str
) -> None:
    context = made(of(files, ciphers=ciphers), TlsSettings(**settings)).ssl
    spoken = set()
    for version, name in OLD.items():
        try:
            connect(context, client_of(authority, version))
            spoken.add(name)
        except ssl.SSLError as error:
            if error.reason != "UNSUPPORTED_PROTOCOL":
                raise
    assert spoken == accepted
    connect(context, client_of(authority))


def test_ciphers(files: Pair) -> None:
    def of_tls_1_2(context: Context) -> list[str]:
        rows = context.ssl.get_ciphers()
        return [row["name"] for row in rows if row["protocol"] != "TLSv1.3"]

    found = of_tls_1_2(made(of(files)))
    assert found[0] == "ECDHE-ECDSA-AES128-GCM-SHA256"
    for name in found:
        assert name.startswith(("ECDHE-", "DHE-"))
        assert "GCM" in name or "CHACHA20" in name
    one = "ECDHE-ECDSA-AES256-GCM-SHA384"
    assert of_tls_1_2(made(of(files, ciphers=one))) == [one]
    with pytest.raises(TlsError, match="cipher list 'NONSENSE'"):
        made(of(files, ciphers="NONSENSE"))


def test_the_order_of_the_server_counts_and_chacha_for_who_prefers_it(
    authority: Authority, files: Pair
) -> None:
    first, second = "ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-ECDSA-AES128-GCM-SHA256"
    chacha = "ECDHE-ECDSA-CHACHA20-POLY1305"
    context = made(of(files, ciphers=f"{first}:{second}:{chacha}")).ssl
    for preferred, chosen in (
        (f"{second}:{first}:{chacha}", first),
        (f"{chacha}:{second}", chacha),
    ):
        client = client_of(authority, TLS_1_2)
        client.set_ciphers(preferred)
        cipher = connect(context, client).server.cipher()
        assert cipher is not None
        assert cipher[0] == chosen


def test_options(authority: Authority, files: Pair) -> None:
    options = made(of(files)).ssl.options
    assert options & ssl.OP_NO_RENEGOTIATION
    assert options & ssl.OP_NO_COMPRESSION
    assert not options & ssl.OP_NO_TICKET
    context = made(of(files), TlsSettings(options=536870912)).ssl  # no TLS 1.3
    client = client_of(authority)
    client.minimum_version = TLS_1_2
    assert connect(context, client).server.version() == "TLSv1.2"


def test_alpn(authority: Authority, files: Pair) -> None:
    context = made(of(files), TlsSettings(alpn=("http/1.1",))).ssl
    for offered, chosen in ((["h2", "http/1.1"], "http/1.1"), (["spdy/3"], None), ([], None)):
        client = client_of(authority)
        if offered:
            client.set_alpn_protocols(offered)
        assert connect(context, client).server.selected_alpn_protocol() == chosen
    client.set_alpn_protocols(["http/1.1", "h2"])
    both = made(of(files)).ssl
    assert connect(both, client).server.selected_alpn_protocol() == "h2"
    three = made(of(files), spdy=True).ssl
    for offered, chosen in (
        (["http/1.1", "spdy/3.1", "h2"], "h2"),
        (["http/1.1", "spdy/3.1"], "spdy/3.1"),
        (["http/1.1", "spdy/3"], "http/1.1"),
    ):
        client = client_of(authority)
        client.set_alpn_protocols(offered)
        assert connect(three, client).server.selected_alpn_protocol() == chosen
    assert (
        connect(made(of(files), TlsSettings(alpn=())).ssl, client).server.selected_alpn_protocol()
        is None
    )


# --- client certificates --------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("required", [False, True])
@pytest.mark.parametrize("reach", [False, True])
def test_client_certificates(
    authority: Authority,
    files: Pair,
    tmp_path: Path,
    version: ssl.TLSVersion,
    required: bool,
    reach: bool,
) -> None:
    good = authority.issue("good")
    foreign = Authority(tmp_path, "other").issue("foreign")
    context = made(of(files, ca=authority.file, required=required), reach=reach).ssl

    def shown(*pair: Path) -> bytes | None:
        return connect(context, client_of(authority, version, pair)).server.getpeercert(True)

    assert shown(good.cert, good.key) == good.der
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
        shown(foreign.cert, foreign.key)
    if required:
        with pytest.raises(ssl.SSLError, match="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
            shown()
    else:
        assert shown() is None
    nobody = made(of(files), reach=reach).ssl
    ends = connect(nobody, client_of(authority, version, (good.cert, good.key)))
    assert ends.server.getpeercert(True) is None


@pytest.mark.parametrize(("depth", "accepted"), [(0, False), (1, True)])
def test_verify_depth(
    authority: Authority, files: Pair, tmp_path: Path, depth: int, accepted: bool
) -> None:
    between = Authority(tmp_path, "between", authority)
    pair = between.issue("client")
    with pair.cert.open("ab") as chain:
        chain.write(between.file.read_bytes())
    context = made(of(files, ca=authority.file, required=True), TlsSettings(verify_depth=depth)).ssl
    direct = authority.issue("direct")
    connect(context, client_of(authority, shown=(direct.cert, direct.key)))
    client = client_of(authority, shown=(pair.cert, pair.key))
    if accepted:
        connect(context, client)
    else:
        with pytest.raises(ssl.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
            connect(context, client)


def test_domains(files: Pair) -> None:
    pairs = [of(files), of(files, ca="/a"), of(files, ca="/a", required=True), of(files, ca="/b")]
    domains = [domain_of(pair) for pair in pairs]
    assert domains[0] == ""
    assert len(set(domains)) == len(domains)


# --- sessions -------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kept", ["ticket", "store"])
def test_sessions_stay_where_they_belong(
    authority: Authority, files: Pair, tmp_path: Path, version: ssl.TLSVersion, kept: str
) -> None:
    """Resumed by whoever has the same identity and asks for the same of clients, nobody else."""
    other_ca = tmp_path / "other-ca.pem"
    other_ca.write_bytes(authority.file.read_bytes())
    pair = of(files)
    keys = TicketKeys(TicketSettings(), 300, print) if kept == "ticket" else None
    sessions = Sessions(hooks(), Dictionary(), 300) if kept == "store" else None
    settings = TlsSettings(tickets=TicketSettings(enabled=kept == "ticket"))

    def make(pair: PairSettings, identity: str = "name a") -> ssl.SSLContext:
        return made(pair, settings, identity, keys=keys, sessions=sessions).ssl

    optional = replace(pair, client_ca=str(authority.file))
    required = replace(optional, client_required=True)
    elsewhere = replace(optional, client_ca=str(other_ca))  # the same CA on another machine
    variants = [make(pair), make(pair, "name b"), make(optional), make(required)]
    good = authority.issue("good")
    client = client_of(authority, version, (good.cert, good.key))
    held = []
    for number, context in enumerate(variants):
        session = visit(context, client)[1]
        held.append(session)
        for other, each in enumerate(variants):
            assert visit(each, client, session)[0] == (other == number), (number, other)
    assert visit(make(elsewhere), client, held[2])[0]
    other_ca.write_bytes(Authority(tmp_path, "third").file.read_bytes() + other_ca.read_bytes())
    assert not visit(make(elsewhere), client, held[2])[0]  # trust has changed


@pytest.mark.parametrize("version", VERSIONS)
def test_neither_tickets_nor_sessions(
    authority: Authority, files: Pair, version: ssl.TLSVersion
) -> None:
    off = TlsSettings(tickets=TicketSettings(enabled=False))
    for settings in (off, TlsSettings(options=int(ssl.OP_NO_TICKET))):
        context = made(of(files), settings).ssl
        assert context.options & ssl.OP_NO_TICKET
        assert context.num_tickets == 0
        client = client_of(authority, version)
        session = visit(context, client)[1]
        assert not visit(context, client, session)[0]
        assert context.session_stats()["number"] == 0


def test_one_ticket_and_nothing_kept_here(authority: Authority, files: Pair) -> None:
    """OpenSSL would hold 20,480 sessions of clients without tickets, a context."""
    context = made(of(files)).ssl
    assert context.num_tickets == 1
    client = client_of(authority, TLS_1_2)
    client.options |= ssl.OP_NO_TICKET
    for _ in range(3):
        visit(context, client)
    assert context.session_stats()["number"] == 0


@pytest.mark.parametrize("version", VERSIONS)
def test_without_hooks_sessions_are_resumed_within_a_process(
    authority: Authority, files: Pair, version: ssl.TLSVersion
) -> None:
    context = made(of(files, ca=authority.file), reach=False).ssl
    client = client_of(authority, version)
    session = visit(context, client)[1]
    assert visit(context, client, session)[0]


def test_time_of_sessions(files: Pair) -> None:
    library = hooks().library
    for timeout in (300, 77):
        settings = TlsSettings(sessions=SessionSettings(timeout=timeout))
        context = made(of(files), settings).ssl
        assert library.SSL_CTX_get_timeout(hooks().pointer(context)) == timeout
