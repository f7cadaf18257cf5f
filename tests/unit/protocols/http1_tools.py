"""Blocks, parsers and decoded results for the tests of request and response heads."""

from __future__ import annotations

import pytest

from uwgate.protocols.http1 import Fault, Http1Error
from uwgate.protocols.http1_request import RequestBlock, RequestParser, RequestPolicy
from uwgate.protocols.uwsgi import packet, parse_packet

PLAIN = RequestPolicy(x_forwarded=False)
"""A policy that adds nothing of its own."""


def block_of(*lines: bytes) -> bytes:
    """A header block of these field lines."""
    return b"\r\n" + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


def parse(*lines: bytes, policy: RequestPolicy = PLAIN) -> RequestBlock:
    """The meaning of these field lines, the same when it is remembered."""
    raw = block_of(*lines)
    parser = RequestParser(policy)
    first = parser.parse(raw)
    for _ in range(3):  # from known lines, then from the memo
        again = parser.parse(raw)
        assert facts(again) == facts(first)
    assert parser.parse(raw) is again
    return first


def fault(*lines: bytes, policy: RequestPolicy = PLAIN) -> Fault:
    """Why these field lines are refused, every time."""
    parser = RequestParser(policy)
    faults = []
    for _ in range(3):
        with pytest.raises(Http1Error) as caught:
            parser.parse(block_of(*lines))
        faults.append(caught.value.fault)
    assert len(set(faults)) == 1
    return faults[0]


def facts(block: RequestBlock) -> dict[str, object]:
    """Everything that a block says."""
    return {name: getattr(block, name) for name in RequestBlock.__slots__}


def forwarded(block: RequestBlock) -> list[bytes]:
    """The field lines for an HTTP node."""
    empty, *lines = block.forward.split(b"\r\n")
    assert empty == b""
    return lines


def decode(variables: bytes) -> list[tuple[bytes, bytes]]:
    """The variables of a uwsgi variable block, in wire order."""
    decoded = parse_packet(packet(0, 0, variables))
    assert decoded is not None
    return decoded.variables
