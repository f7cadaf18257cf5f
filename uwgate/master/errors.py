"""What keeps an instance from starting."""

from __future__ import annotations


class StartError(Exception):
    """One clear line for the operator: which option, which value, what is wrong.

    Raised before the first worker is forked; ``supervisor.run`` logs it and returns 1.
    """


def explain(error: OSError) -> str:
    """The reason of an ``OSError`` in lower case, without number and file name."""
    reason = error.strerror or str(error) or "unknown error"
    return reason[:1].lower() + reason[1:]
