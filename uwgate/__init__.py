"""uwgate: the gateway half of uWSGI (HTTP router and friends), built anew on asyncio and uvloop."""

__version__ = "0.1.0"
