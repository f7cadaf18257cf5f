"""Content codings that a client accepts (RFC 9110 §12.5.3)."""

from __future__ import annotations

import re

from uwgate.protocols.http1 import TOKEN

__all__ = ["accepted"]

_members = re.compile(rb"[^,]++").findall
# codings [ OWS ";" OWS "q=" qvalue ]                                   RFC 9110 §12.4.2, §12.5.3
# qvalue = ( "0" [ "." 0*3DIGIT ] ) / ( "1" [ "." 0*3("0") ] )
_member = re.compile(
    rb"[\t ]*+(" + TOKEN.pattern + rb")"
    rb"(?:[\t ]*+;[\t ]*+[qQ]=(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?))?[\t ]*+"
).fullmatch

# RFC 9110 §8.4.1.3: the old name, that a recipient has to take as the new one.
_ALIASES = {b"x-gzip": b"gzip"}


def accepted(value: bytes | None, available: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """The ``available`` codings (lower case) that an Accept-Encoding value allows, best first.

    Best is the highest q; at the same q, the order of ``available`` decides. What the client ranks
    below an answer without coding ("identity", named or by ``*``) is not among them. ``*`` stands
    for what is not named; members that are malformed are no members; of two members with one name
    the first counts. Nothing for no value, though that would allow everything: such clients rarely
    decode anything.
    """
    if not value:
        return ()
    weights = _weights(value)
    others = weights.get(b"*", 0)
    # Never 0, so that q=0 keeps out what it should.
    least = max(1, weights.get(b"identity", others))
    ranked = [(weights.get(coding, others), coding) for coding in available]
    # Sorting is stable, also in reverse.
    ranked.sort(key=lambda pair: pair[0], reverse=True)
    return tuple(coding for weight, coding in ranked if weight >= least)


def _weights(value: bytes) -> dict[bytes, int]:
    """Lower-case codings and their q in thousandths."""
    weights: dict[bytes, int] = {}
    for member in _members(value):
        match = _member(member)
        if match is not None:
            coding = match[1].lower()
            digits = (match[2] or b"1").replace(b".", b"")
            weights.setdefault(_ALIASES.get(coding, coding), int(digits.ljust(4, b"0")))
    return weights
