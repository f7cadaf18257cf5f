"""The phases of an exchange, in order; from CONNECTING on it counts as active at its node."""

IDLE, RESOLVING, SPOOLING, CONNECTING, SENT, RELAYING, TUNNEL = range(7)
