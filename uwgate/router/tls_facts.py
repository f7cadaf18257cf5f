"""What nodes are told of a TLS connection: uwsgi variables, and X-SSL-… fields.

Both are made once a connection. Fields of these names that a client sends never reach a node while
``https-client-headers`` is on.
"""

from __future__ import annotations

from urllib.parse import quote_from_bytes

from uwgate.protocols.uwsgi import var
from uwgate.tls.peer import Peer

_MAX_VALUE = 65535


def variables(peer: Peer, *, export: bool) -> bytes:
    """HTTPS_CLIENT_CERTIFICATE (DER), HTTPS_DN and, with ``export`` (https-export-cert), HTTPS_CC
    (PEM), for a client that showed a certificate. One that fits no uwsgi variable is left out."""
    assert peer.der is not None
    if len(peer.der) > _MAX_VALUE // 2:
        return b""
    parts = [
        var(b"HTTPS_CLIENT_CERTIFICATE", peer.der),
        var(b"HTTPS_DN", peer.subject.encode("utf-8")[:_MAX_VALUE]),
    ]
    if export:
        parts.append(var(b"HTTPS_CC", peer.pem))
    return b"".join(parts)


def header_lines(peer: Peer) -> bytes:
    """The fields, each with CRLF in front:

    X-SSL-Protocol, X-SSL-Cipher, X-SSL-Client-Verify (``SUCCESS`` or ``NONE``), and of a client
    certificate X-SSL-Client-S-DN, -I-DN, -Serial (hexadecimal), -Fingerprint (SHA-256,
    hexadecimal) and -Cert (PEM, percent-encoded).
    """
    facts = [
        (b"Protocol", peer.version.encode("ascii")),
        (b"Cipher", peer.cipher.encode("ascii")),
        (b"Client-Verify", b"NONE" if peer.der is None else b"SUCCESS"),
    ]
    if peer.der is not None:
        facts += [
            (b"Client-S-DN", peer.subject.encode("ascii", "backslashreplace")),
            (b"Client-I-DN", peer.issuer.encode("ascii", "backslashreplace")),
            (b"Client-Serial", peer.serial.encode("ascii")),
            (b"Client-Fingerprint", peer.fingerprint.encode("ascii")),
            (b"Client-Cert", quote_from_bytes(peer.pem, safe="/").encode("ascii")),
        ]
    return b"".join(b"\r\nX-SSL-%b: %b" % fact for fact in facts)
