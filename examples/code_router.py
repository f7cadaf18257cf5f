"""Node of a host name, for code-router.ini; ``async def`` is fine too."""

NODES = {
    "blue.example": "127.0.0.1:3031",
    "green.example": "http://127.0.0.1:9000",
}


def node_of(host: str) -> str | None:
    """``host``: the Host value in lower case. None: nobody serves it (the client gets a 503)."""
    return NODES.get(host)
