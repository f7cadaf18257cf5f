"""What can go wrong with TLS for the operator's eyes."""

from __future__ import annotations


class TlsError(Exception):
    """A certificate, key, CA, cipher list or key file cannot be used: one line that names it."""
